/**
 * What a node says of itself once it has run, in a few lines on the node: which word, which encoder, what was
 * taken of the pictures. Nothing of it is saved with the workflow or sent to the server.
 */
import { addElement, putInPlace } from "./elements.js"

const WIDGET = "nested_attention_state"
const LINE = 14 // pixels
const MARGIN = 4
const PICTURE = 96 // pixels in height

/**
 * Puts lines of text on a node, in place of those that were there, and a picture above them if there is one.
 * Works in both renderers of nodes.
 */
export function showState(node, lines, picture = null) {
  const widget = node.widgets?.find((one) => one.name === WIDGET) ?? addWidget(node)
  putInPlace(node)
  widget.element.replaceChildren(...(picture ? [thumbnail(picture)] : []), lines.join("\n"))
  if (!LiteGraph.vueNodesMode) { // Nodes 2.0 gives its elements their room
    const [width, height] = node.computeSize()
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])])
  }
  node.graph?.setDirtyCanvas(true, true)
}

function thumbnail(source) {
  const image = document.createElement("img")
  image.src = source
  Object.assign(image.style, { display: "block", height: `${PICTURE}px`, margin: "0 auto", objectFit: "contain" })
  return image
}

function addWidget(node) {
  const style = {
    whiteSpace: "pre-wrap",
    fontSize: "11px",
    lineHeight: `${LINE}px`,
    overflow: "hidden",
    color: "var(--descrip-text, #999)",
    userSelect: "text",
  }
  const height = () =>
    LINE * lineCount(widget, node) + 4 * MARGIN + (widget.element.querySelector("img") ? PICTURE : 0)
  // Of a kind of its own: "text" would be an input in Nodes 2.0.
  const widget = addElement(node, WIDGET, WIDGET, style, {
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: height,
    getValue: () => "",
    setValue: () => {},
  })
  widget.element.className = "nested-attention-state"
  widget.serialize = false
  return widget
}

/** How many lines the text takes at the node's width, at about 5.4 pixels a character. */
function lineCount(widget, node) {
  const across = Math.max(20, Math.floor((node.size[0] - 30) / 5.4))
  const lines = (widget.element.textContent || "").split("\n")
  return lines.reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / across)), 0)
}
