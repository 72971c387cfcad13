/**
 * Warnings on nodes: each stands until its node runs again.
 *
 * The server writes them and cannot take them away, because the editor drops an empty text. Newer editors take
 * all texts away when a run ends, so that a warning would be gone before it is read; it is put there again.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const WIDGET = "$$node-text-preview" // the editor's own, for what a running node says
const ENDS = ["execution_success", "execution_error", "execution_interrupted"]
const standing = new Map() // id of a node → the text that was put on it, and the nodes that show it

export function keepNotices() {
  api.addEventListener("nested_attention.warning", ({ detail: { node: id, shown: text } }) => {
    const number = id.split(":").at(-1) // 1:2 is node 2 in the subgraph that is node 1
    const nodes = [...nodesNumbered(app.graph, number)].filter((node) => textOn(node)?.value === text)
    standing.set(id, { text, nodes })
  })

  // Nodes whose results are remembered do not run, and keep what they said.
  api.addEventListener("executing", ({ detail: id }) => {
    const notice = standing.get(id)
    standing.delete(id)
    notice?.nodes.forEach((node) => takeAway(node, notice.text))
  })

  // After the editor, whose listeners may be called later than ours.
  for (const end of ENDS) api.addEventListener(end, () => setTimeout(putBack))
}

/** The nodes of this number, here and in subgraphs. */
function* nodesNumbered(graph, number) {
  for (const node of graph?._nodes ?? []) {
    yield* nodesNumbered(node.subgraph, number)
    if (String(node.id) === number) yield node
  }
}

function textOn(node) {
  return node.widgets?.find(({ name }) => name === WIDGET)
}

/** What another pack has written there since stays. */
function takeAway(node, text) {
  const widget = textOn(node)
  if (widget?.value !== text) return
  node.removeWidget(widget)
  node.setDirtyCanvas?.(true, true)
}

/** On the graph that is open alone: the editor would look for the id in another one, too. */
function putBack() {
  const graph = app.canvas.graph
  for (const [id, { text, nodes }] of standing)
    if (nodes.some((node) => graph?.getNodeById(node.id) === node && !textOn(node)))
      api.dispatchCustomEvent("progress_text", { nodeId: id, text })
}
