/** Elements of the page on nodes, in both renderers. */
import { app } from "../../scripts/app.js"

const NAME = "nestedAttentionWidget" // in an element's dataset: the name of its widget

/** A widget that shows an element. Nothing of it is saved with the workflow or sent to the server. */
export function addElement(node, name, type, style, options) {
  const element = document.createElement("div")
  element.dataset[NAME] = name
  Object.assign(element.style, style)
  const widget = node.addDOMWidget(name, type, element, { serialize: false, hideOnZoom: false, ...options })
  passToCanvas(element)
  return widget
}

/**
 * Nodes 2.0 puts a widget's element on the page once. Undo makes new nodes with the ids of those that were there,
 * and the page keeps the elements of the old ones.
 */
export function putInPlace(node) {
  if (!LiteGraph.vueNodesMode || node.graph !== app.canvas.graph) return
  const shown = document.querySelector(`[data-node-id="${node.id}"]`)
  for (const { element } of node.widgets ?? []) {
    const name = element?.dataset[NAME]
    if (name && !element.isConnected)
      shown?.querySelector(`[data-nested-attention-widget="${name}"]`)?.replaceWith(element)
  }
}

/**
 * In the older renderer elements lie over the canvas and keep events from it. As on the editor's own fields, the wheel
 * zooms where there is nothing to scroll, the middle button pans, and the right one opens the node's menu.
 */
function passToCanvas(element) {
  const listen = (kind, handle) =>
    element.addEventListener(kind, (event) => LiteGraph.vueNodesMode || handle(event), { capture: true, passive: false })
  listen("wheel", (event) => {
    const upright = Math.abs(event.deltaY) >= Math.abs(event.deltaX)
    if (upright && !event.ctrlKey && scrolls(element)) return
    event.preventDefault()
    app.canvas.processMouseWheel(event)
  })
  listen("pointerdown", (event) => event.button && app.canvas.processMouseDown(event)) // which captures the pointer
  listen("contextmenu", (event) => event.preventDefault())
}

function scrolls(element) {
  return element.scrollHeight > element.clientHeight && getComputedStyle(element).overflowY !== "hidden"
}
