/**
 * Shows the maps of one sampling: point at a place of the picture and see which of the subject's tokens it took, and
 * where in the reference pictures they come from.
 *
 * The document is the one that nested_attention/inspection/document.py describes. The editor's widget and the page of
 * `nested-attention inspect` use this file alike.
 */

const SIDE = 360 // pixels of the picture that is pointed at
const REFERENCE = 112
const HEAT = [255, 140, 0]
const STEP = 1 / 64 // of the picture's sides, for an arrow key
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }

const STYLE = `
.na-maps { font: 12px system-ui, sans-serif; color: inherit; display: flex; flex-direction: column; gap: 6px; min-width: 0 }
.na-maps .na-bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center }
.na-maps select { font: inherit; max-width: 260px; border-radius: 3px;
  background: var(--comfy-input-bg, Field); color: var(--input-text, FieldText); border: 1px solid var(--border-color, #999) }
.na-maps .na-main { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start }
.na-maps canvas { image-rendering: auto; display: block; border-radius: 3px }
.na-maps .na-picture { cursor: crosshair; max-width: 100%; touch-action: none }
.na-maps .na-picture:focus-visible { outline: 2px solid #3b82f6; outline-offset: -2px }
.na-maps .na-details { flex: 1 1 220px; min-width: 200px; display: flex; flex-direction: column; gap: 4px }
.na-maps .na-token { display: grid; grid-template-columns: 52px 1fr 48px; gap: 6px; align-items: center }
.na-maps .na-token > div { height: 9px; background: #8884; border-radius: 2px }
.na-maps .na-token > div > div { height: 100%; border-radius: 2px }
.na-maps .na-token span:last-child { text-align: right; font-variant-numeric: tabular-nums }
.na-maps .na-references { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 4px }
.na-maps .na-spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
.na-maps figure { margin: 0 } .na-maps figcaption { opacity: .75 }
`

export const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
const words = (text) => new Uint16Array(bytes(text).buffer) // little-endian, as every browser's machine is
const within = (value) => Math.min(Math.max(value, 0), 0.9999)
const percent = (share) => `${(100 * share).toFixed(1)} %`

/** An element with properties and children. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

function picture(url) {
  return new Promise((resolve) => {
    const image = new Image()
    image.onload = () => resolve(image)
    image.onerror = () => resolve(null)
    image.src = url
  })
}

/** A map as a small canvas: its colour, as opaque as the map is high; `opacity`, up to 255, where it is highest. */
export function tinted(grid, values, most, colour, opacity = 215) {
  const [height, width] = grid
  const canvas = element("canvas", { width, height })
  const pixels = new ImageData(width, height)
  for (let i = 0; i < width * height; i++) {
    pixels.data.set(colour, 4 * i)
    pixels.data[4 * i + 3] = most ? (opacity * values[i]) / most : 0
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0)
  return canvas
}

function coloured({ grid: [height, width], data }) {
  const rgb = bytes(data)
  const pixels = new ImageData(width, height)
  for (let i = 0; i < width * height; i++) {
    pixels.data.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i)
    pixels.data[4 * i + 3] = 235
  }
  const canvas = element("canvas", { width, height })
  canvas.getContext("2d").putImageData(pixels, 0, 0)
  return canvas
}

export const rgbOf = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))

/** The picture in grey, and what is laid over it. */
function paint(canvas, image, layers) {
  const pen = canvas.getContext("2d")
  pen.clearRect(0, 0, canvas.width, canvas.height)
  pen.imageSmoothingEnabled = image && image.naturalWidth > canvas.width
  if (image) {
    pen.filter = layers.length ? "grayscale(1) brightness(.8)" : "none"
    pen.drawImage(image, 0, 0, canvas.width, canvas.height)
    pen.filter = "none"
  }
  pen.imageSmoothingEnabled = true
  for (const layer of layers) pen.drawImage(layer, 0, 0, canvas.width, canvas.height)
}

/** The number of a map's cell at a place, x and y in [0, 1]. */
function cellAt([rows, columns], [x, y]) {
  const row = Math.min(Math.floor(y * rows), rows - 1)
  return row * columns + Math.min(Math.floor(x * columns), columns - 1)
}

/** What a place took of a subject: tokens with their shares, strongest first. */
export function tokensAt(subject, point) {
  const { grid, count, indices, shares } = subject.tokens
  const start = cellAt(grid, point) * count
  const numbers = words(indices).subarray(start, start + count)
  const parts = words(shares).subarray(start, start + count)
  return [...numbers].map((token, i) => ({ token, share: parts[i] / 65535 }))
}

/** A map's value at a place. */
export function valueAt(map, point) {
  return (bytes(map.data)[cellAt(map.grid, point)] * map.max) / 255
}

/**
 * Fills `root` with the view of a document. onPoint: is called with the places that are marked, [[x, y], …] in [0, 1],
 * when a click has added or removed one. points: the places to begin with, if not the document's own. choice: an object that keeps
 * what is chosen; given again, it is chosen in another document too, where that has it.
 */
export function showMaps(root, maps, { onPoints = () => {}, points = null, choice: state = {} } = {}) {
  Object.assign(state, { picture: 0, subject: 0, show: "word", detail: "mean", ...state, points, hover: null })
  const canvas = element("canvas", {
    className: "na-picture",
    tabIndex: 0,
    role: "application", // its arrow keys are its own
    ariaLabel: "Picture: the arrow keys move to a place, Enter marks it or takes the mark away",
  })
  const details = element("div", { className: "na-details" })
  const spoken = element("div", { className: "na-spoken", role: "status" }) // what the keys did; the mouse says nothing
  const bar = element("div", { className: "na-bar" })
  root.replaceChildren(
    element("style", { textContent: STYLE }),
    element("div", { className: "na-maps" }, bar, element("div", { className: "na-main" }, canvas, details, spoken)),
  )

  const shown = () => maps.pictures[state.picture]
  const subject = () => shown().subjects[state.subject]
  const marked = () => state.points ?? subject()?.points ?? []

  function choice(label, options, value, choose) {
    const select = element("select", { title: label, ariaLabel: label })
    for (const [key, text] of options) select.append(element("option", { value: key, textContent: text }))
    select.value = value
    select.onchange = () => {
      choose(select.value)
      update()
    }
    bar.append(select)
  }

  function controls() {
    bar.replaceChildren()
    if (maps.pictures.length > 1) {
      const pictures = maps.pictures.map((_, i) => [i, `picture ${i + 1}`])
      choice("Picture", pictures, state.picture, (value) => (state.picture = +value))
    }
    const subjects = shown().subjects
    if (!subjects.length) return
    if (subjects.length > 1)
      choice("Subject", subjects.map((one, i) => [i, one.title]), state.subject, (value) =>
        Object.assign(state, { subject: +value, title: subjects[value].title }),
      )
    const kinds = [
      ["word", "where the word lands"],
      ["change", "size of the change"],
      ["place", "the subject's place"],
      ["values", "values as colours"],
      ["all", "all words"],
      ["none", "the picture alone"],
    ]
    choice("Show", kinds, state.show, (value) => (state.show = value))
    if (byLayer()) {
      const { layers, steps } = subject()
      const which = [["mean", "all layers and steps"]]
      layers.forEach((one, i) =>
        which.push([`layers ${i}`, `${one.site.replaceAll(/attentions\.|transformer_blocks\.|\.attn2/g, "")} (${one.word.grid.join(" × ")})`]),
      )
      const span = (first, last) => (first === last ? `step ${first + 1}` : `steps ${first + 1} to ${last + 1}`)
      steps.forEach((one, i) => which.push([`steps ${i}`, span(one.first, one.last)]))
      choice("Layer or steps", which, state.detail, (value) => (state.detail = value))
    }
  }

  /** Whether one layer, or a few steps, can be chosen. */
  function byLayer() {
    return ["word", "change", "place"].includes(state.show)
  }

  /** What the chosen layer or steps say of a subject; all of them where none can be chosen. */
  function source(one) {
    const [kind, number] = state.detail.split(" ")
    return kind === "mean" || !byLayer() ? one : (one[kind][number] ?? one)
  }

  function overlays() {
    if (!subject() || state.show === "none") return []
    if (state.show === "values") return [coloured(subject().values)]
    const all = state.show === "all"
    return (all ? shown().subjects : [subject()]).map((one) => {
      const map = all ? one.word : source(one)[state.show]
      return tinted(map.grid, bytes(map.data), 255, rgbOf(one.colour))
    })
  }

  const images = new Map()
  async function imageOf(url) {
    if (!images.has(url)) images.set(url, await picture(url))
    return images.get(url)
  }

  let drawn = 0
  async function draw() {
    const turn = ++drawn
    const image = await imageOf(shown().image)
    if (turn !== drawn) return
    paint(canvas, image, overlays())
    const pen = canvas.getContext("2d")
    marked().forEach(([x, y], i) => {
      pen.beginPath()
      pen.arc(x * canvas.width, y * canvas.height, 9, 0, 7)
      Object.assign(pen, { fillStyle: "#fffd", strokeStyle: "#222", lineWidth: 2 })
      pen.fill()
      pen.stroke()
      Object.assign(pen, { fillStyle: "#222", font: "12px sans-serif", textAlign: "center", textBaseline: "middle" })
      pen.fillText(String(i + 1), x * canvas.width, y * canvas.height)
    })
    if (state.hover) {
      const [x, y] = state.hover
      Object.assign(pen, { strokeStyle: "#fff", lineWidth: 1.5 })
      pen.strokeRect(x * canvas.width - 5, y * canvas.height - 5, 10, 10)
    }
  }

  function tell() {
    details.replaceChildren()
    const one = subject()
    if (!one) {
      details.append("No subject was seen in this picture.")
      return
    }
    const point = state.hover ?? marked().at(-1)
    if (!point) {
      details.append("Point at a place of the picture.")
      return
    }
    const tokens = tokensAt(one, point)
    const [width, height] = [shown().width, shown().height]
    details.append(
      element("b", { textContent: `${one.title}: the word ${one.word_text}` }),
      element("div", {
        className: "na-place",
        textContent: `place ${Math.floor(point[0] * width)}, ${Math.floor(point[1] * height)}`,
      }),
      element("div", { className: "na-word", textContent: `attention to the word ${percent(valueAt(source(one).word, point))}` }),
      element("div", { className: "na-change", textContent: `size of the change ${valueAt(source(one).change, point).toFixed(2)}` }),
    )
    for (const { token, share } of tokens) {
      const fill = element("div")
      Object.assign(fill.style, { width: `${100 * Math.min(1, share / (tokens[0].share || 1))}%`, background: one.colour })
      details.append(
        element("div", { className: "na-token" },
          element("span", { textContent: `#${token}` }), element("div", {}, fill), element("span", { textContent: percent(share) })),
      )
    }
    const top = (number) => tokens.slice(0, number).reduce((sum, { share }) => sum + share, 0)
    details.append(
      element("div", { className: "na-top", textContent: `the strongest ${percent(top(1))}, the two strongest ${percent(top(2))}` }),
    )
    const references = element("div", { className: "na-references" })
    details.append(references)
    const drawnFrom = bytes(one.drawn.data)
    one.references.forEach((reference, i) => {
      const share = drawnFrom[cellAt(one.drawn.grid, point) * one.drawn.images + i] / 255
      const text = one.references.length > 1 ? `picture ${i + 1}: ${percent(share)}` : "where these tokens looked"
      if (!reference.image) {
        references.append(element("div", { textContent: `${text}, not known (loaded from a file, or averaged)` }))
        return
      }
      const sheet = element("canvas", { width: REFERENCE, height: REFERENCE })
      references.append(element("figure", {}, sheet, element("figcaption", { textContent: text })))
      const heat = new Float32Array(reference.grid[0] * reference.grid[1])
      for (const { token, share: part } of tokens) {
        const map = reference.maps[token]
        if (!map) continue
        bytes(map.data).forEach((value, at) => (heat[at] += (part * map.max * value) / 255))
      }
      const layers = heat.some((value) => value) ? [tinted(reference.grid, heat, Math.max(...heat), HEAT)] : []
      imageOf(reference.image).then((image) => paint(sheet, image, layers))
    })
  }

  /** Another document or picture may not have what is chosen. */
  function keepWhatIsThere() {
    if (!shown()) state.picture = 0
    const titles = shown().subjects.map(({ title }) => title)
    if (titles[state.subject] !== state.title) state.subject = Math.max(0, titles.indexOf(state.title))
    const [kind, number] = state.detail.split(" ")
    if (kind !== "mean" && !subject()?.[kind]?.[number]) state.detail = "mean"
  }

  function update() {
    keepWhatIsThere()
    const { width, height } = shown()
    const scale = SIDE / Math.max(width, height)
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale))
      Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) })
    controls()
    draw()
    tell()
  }

  function placeOf(event) {
    const box = canvas.getBoundingClientRect()
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)]
  }

  function pointAt(place) {
    state.hover = place
    draw()
    tell()
  }

  /** Marks a place, or takes the mark away that is there. */
  function mark(place) {
    const near = ([x, y]) => Math.hypot((x - place[0]) * canvas.width, (y - place[1]) * canvas.height) < 10
    const before = marked()
    state.points = before.some(near) ? before.filter((one) => !near(one)) : [...before, place.map((v) => +v.toFixed(4))]
    onPoints(state.points)
    draw()
    tell()
  }

  canvas.onpointermove = (event) => pointAt(placeOf(event))
  canvas.onpointerleave = canvas.onblur = () => pointAt(null)
  canvas.onpointerdown = (event) => event.stopPropagation() // the editor would drag the node
  canvas.onclick = (event) => mark(placeOf(event))
  canvas.onkeydown = (event) => {
    const way = ARROWS[event.key]
    if ((!way && event.key !== "Enter") || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    event.stopPropagation() // the editor would move nodes
    const place = state.hover ?? marked().at(-1) ?? [0.5, 0.5]
    const before = marked().length
    if (way) pointAt(place.map((value, axis) => within(value + way[axis])))
    else mark(place)
    const said = [".na-place", ".na-word", ".na-change"].map((name) => details.querySelector(name)?.textContent)
    if (!way) said.unshift(marked().length > before ? "marked" : "mark taken away")
    spoken.textContent = said.filter(Boolean).join(", ")
  }
  update()
}
