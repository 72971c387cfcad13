/**
 * Warnings on nodes: each stands until its node runs again.
 *
 * The editor shows a text on a node when it is told to, and drops an empty one. Newer editors take all texts away when
 * a run ends, so that a warning would be gone before it is read; it is put there again.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { isOfOpenWorkflow, nodeOf } from "./runs.js"

const WIDGET = "$$node-text-preview" // the editor's own, for what a running node says
const ENDS = ["execution_success", "execution_error", "execution_interrupted"]
const standing = new Map() // id of a node in a run → the node, and the text that was put on it

export function keepNotices() {
  let running
  api.addEventListener("execution_start", ({ detail }) => (running = detail.prompt_id))

  api.addEventListener("nested_attention.warning", ({ detail: { node: id, shown: text, prompt_id, workflow } }) => {
    const node = isOfOpenWorkflow(prompt_id, workflow) && nodeOf(id)
    if (!node) return
    standing.set(id, { node, text })
    put(node, text)
  })

  // Nodes whose results are remembered do not run, and keep what they said.
  api.addEventListener("executing", ({ detail: id }) => {
    const notice = standing.get(id)
    if (!notice || !isOfOpenWorkflow(running)) return
    standing.delete(id)
    takeAway(notice)
  })

  // After the editor, whose listeners may be called later than ours.
  for (const end of ENDS) api.addEventListener(end, () => setTimeout(putBack))
}

/** The editor looks for the number in the graph that is open. */
function put(node, text) {
  if (app.canvas.graph?.getNodeById(node.id) === node)
    api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text })
}

function textOn(node) {
  return node.widgets?.find(({ name }) => name === WIDGET)
}

/** What another pack has written there since stays. */
function takeAway({ node, text }) {
  const widget = textOn(node)
  if (widget?.value !== text) return
  node.removeWidget(widget)
  node.setDirtyCanvas?.(true, true)
}

function putBack() {
  for (const { node, text } of standing.values()) if (!textOn(node)) put(node, text)
}
