/** Where what the server says of a run belongs: other workflows that are open have nodes of the same ids. */
import { app } from "../../scripts/app.js"
import { root, store } from "./editor.js"

/**
 * Whether the run was queued from the workflow that is open. `workflow`: the id of its graph, which two workflows that
 * began as one share. It is all there is for a run that the editor does not know: not yet, or not since the page was
 * loaded. And while another workflow is being opened, its nodes are there before the editor calls it the open one.
 */
export function isOfOpenWorkflow(run, workflow = root().id) {
  const execution = store("execution")
  const queued = (execution?.queuedJobs ?? execution?.queuedPrompts)?.[run]?.workflow // the latter in front end 1.27
  if (workflow ? workflow !== root().id : !queued) return false
  return !queued || queued.path === app.extensionManager.workflow.activeWorkflow?.path
}

/** The node of an execution's id, in which the nodes of subgraphs stand behind those they are in: 12:7. */
export function nodeOf(id) {
  let graph = root()
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part)
    graph = node?.subgraph
  }
  return node
}
