/**
 * View Subject Maps shows its maps on the node; Observe Subjects shows where the words land while a picture is sampled.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { showMaps } from "./nested_attention_view.js"

const VIEW = "NestedAttentionViewMaps"
const OBSERVE = "NestedAttentionObserve"
const [WIDTH, HEIGHT] = [680, 480] // of the view, which has to be large enough to point at
const SIDE = 160

/** A widget that is an element of the page, in both renderers of nodes. */
function addElement(node, name, height) {
  const element = document.createElement("div")
  Object.assign(element.style, { overflow: "auto", width: "100%", boxSizing: "border-box" })
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => height }
  node.addDOMWidget(name, "nested_attention_maps", element, options)
  return element
}

const textOf = (points) => points.map((point) => point.map((value) => value.toFixed(4)).join(", ")).join("; ")

const pointsOf = (text) => {
  const points = text.split(";").map((part) => part.split(",").map(Number))
  return points.every((point) => point.length === 2 && point.every((v) => v >= 0 && v <= 1)) ? points : null
}

async function show(node, { filename, subfolder, type }) {
  const answer = await api.fetchApi(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  if (!answer.ok) return
  const maps = await answer.json()
  const widget = node.widgets?.find((one) => one.name === "points")
  const typed = widget?.value?.trim()
  showMaps(node.nestedAttentionMaps, maps, {
    points: typed ? pointsOf(typed) : null,
    onPoints(points) {
      if (!widget) return
      widget.value = textOf(points)
      widget.callback?.(widget.value)
    },
  })
}

/** Each subject's map of the step just done, side by side, in its colour. */
function glimpse(node, { step, steps, subjects }) {
  if (!node.nestedAttentionGlimpse) {
    node.nestedAttentionGlimpse = addElement(node, "glimpse", SIDE + 24)
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
  }
  const canvas = document.createElement("canvas")
  Object.assign(canvas, { width: SIDE * subjects.length, height: SIDE })
  canvas.style.maxWidth = "100%"
  const pen = canvas.getContext("2d")
  pen.fillRect(0, 0, canvas.width, canvas.height)
  subjects.forEach(({ colour, grid, data }, at) => {
    const values = Uint8Array.from(atob(data), (c) => c.charCodeAt(0))
    const small = document.createElement("canvas")
    Object.assign(small, { width: grid[1], height: grid[0] })
    const pixels = new ImageData(grid[1], grid[0])
    const rgb = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16))
    values.forEach((value, i) => pixels.data.set([...rgb, value], 4 * i))
    small.getContext("2d").putImageData(pixels, 0, 0)
    pen.drawImage(small, at * SIDE, 0, SIDE, SIDE)
  })
  const caption = document.createElement("div")
  caption.textContent = `${subjects.map((one) => one.title).join(", ")}: step ${step + 1} of ${steps}`
  node.nestedAttentionGlimpse.replaceChildren(canvas, caption)
}

/** The node of an execution's id, in which the nodes of subgraphs stand behind those they are in: 12:7. */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part)
    graph = node?.subgraph
  }
  return node
}

app.registerExtension({
  name: "NestedAttention.Maps",

  nodeCreated(node) {
    if (node.comfyClass !== VIEW) return
    node.nestedAttentionMaps = addElement(node, "maps", HEIGHT)
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
    node.nestedAttentionMaps.textContent = "The maps appear here when the workflow has run."
    const before = node.onExecuted
    node.onExecuted = function (output) {
      before?.apply(this, arguments)
      const file = output?.nested_attention_maps?.[0]
      if (file) show(this, file)
    }
  },

  setup() {
    api.addEventListener("nested_attention.glimpse", ({ detail }) => {
      const node = nodeOf(detail.node)
      if (node?.comfyClass === OBSERVE && detail.subjects.length) glimpse(node, detail)
    })
  },
})
