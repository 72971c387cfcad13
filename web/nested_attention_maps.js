/**
 * View Subject Maps shows its maps on the node; Observe Subjects shows where the words land while a picture is sampled.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addElement, putInPlace } from "./elements.js"
import { bytes, rgbOf, showMaps, tinted } from "./nested_attention_view.js"
import { isOfOpenWorkflow, nodeOf } from "./runs.js"

const VIEW = "NestedAttentionViewMaps"
const OBSERVE = "NestedAttentionObserve"
const [WIDTH, HEIGHT] = [680, 480] // of the view, which has to be large enough to point at
const SIDE = 160
const STYLE = { overflow: "auto", width: "100%", boxSizing: "border-box" }

const choices = new Map() // a node's place in the workflow → what was chosen there
const asked = new WeakMap() // node → the name of the document that it was last asked to show

const addMaps = (node, name, height) =>
  addElement(node, name, "nested_attention_maps", STYLE, { getMinHeight: () => height }).element

const textOf = (points) => points.map((point) => point.map((value) => value.toFixed(4)).join(", ")).join("; ")

const pointsOf = (text) => {
  const points = text.split(";").map((part) => part.split(",").map(Number))
  return points.every((point) => point.length === 2 && point.every((v) => v >= 0 && v <= 1)) ? points : null
}

/** file: the document, as the server names files. */
export async function showMapsOf(node, { filename, subfolder, type }) {
  asked.set(node, filename)
  const answer = await api.fetchApi(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
  if (!answer.ok) return
  const maps = await answer.json()
  if (asked.get(node) !== filename) return // another run has ended while the server was busy
  const widget = node.widgets?.find((one) => one.name === "points")
  const typed = widget?.value?.trim()
  const place = `${node.graph?.id}:${node.id}`
  if (!choices.has(place)) choices.set(place, {})
  putInPlace(node)
  showMaps(node.nestedAttentionMaps, maps, {
    choice: choices.get(place),
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
    node.nestedAttentionGlimpse = addMaps(node, "glimpse", SIDE + 24)
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
  }
  const longest = Math.max(...subjects[0].grid)
  const [height, width] = subjects[0].grid.map((cells) => Math.round((SIDE * cells) / longest))
  const canvas = document.createElement("canvas")
  Object.assign(canvas, { width: width * subjects.length, height })
  canvas.style.maxWidth = "100%"
  const pen = canvas.getContext("2d")
  pen.fillRect(0, 0, canvas.width, canvas.height)
  subjects.forEach(({ colour, grid, data }, at) => {
    pen.drawImage(tinted(grid, bytes(data), 255, rgbOf(colour), 255), at * width, 0, width, height)
  })
  const caption = document.createElement("div")
  caption.textContent = `${subjects.map((one) => one.title).join(", ")}: step ${step + 1} of ${steps}`
  node.nestedAttentionGlimpse.replaceChildren(canvas, caption)
}

app.registerExtension({
  name: "NestedAttention.Maps",

  nodeCreated(node) {
    if (node.comfyClass !== VIEW) return
    node.nestedAttentionMaps = addMaps(node, "maps", HEIGHT)
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
    node.nestedAttentionMaps.textContent = "The maps appear here when the workflow has run."
  },

  setup() {
    api.addEventListener("nested_attention.glimpse", ({ detail }) => {
      const node = isOfOpenWorkflow(detail.prompt_id, detail.workflow) && nodeOf(detail.node)
      if (node?.comfyClass === OBSERVE && detail.subjects.length) glimpse(node, detail)
    })
  },
})
