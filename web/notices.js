/**
 * Warnings on nodes: each stands until its node runs again.
 *
 * The server writes them and cannot take them away, because the editor drops an empty text.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const WIDGET = "$$node-text-preview" // the editor's own, for what a running node says
const standing = new Map() // id of a node → the text that was put on it

export function takeAwayNotices() {
  api.addEventListener("nested_attention.warning", ({ detail }) => standing.set(detail.node, detail.shown))

  // Nodes whose results are remembered do not run, and keep what they said.
  api.addEventListener("executing", ({ detail: id }) => {
    if (!standing.has(id)) return
    takeAway(app.graph, id.split(":").at(-1), standing.get(id)) // 1:2 is node 2 in the subgraph that is node 1
    standing.delete(id)
  })
}

/** From the nodes of this number, here and in subgraphs. What another pack has written there since stays. */
function takeAway(graph, number, text) {
  for (const node of graph?._nodes ?? []) {
    takeAway(node.subgraph, number, text)
    const widget = String(node.id) === number && node.widgets?.find(({ name }) => name === WIDGET)
    if (!widget || widget.value !== text) continue
    node.removeWidget(widget)
    node.setDirtyCanvas?.(true, true)
  }
}
