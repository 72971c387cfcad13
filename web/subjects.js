/** Load Subject: the thumbnail and the provenance of the subject that is chosen. */
import { api } from "../../scripts/api.js"
import { showState } from "./state.js"

const NAME = "subject_name"
const asked = new WeakMap() // node → what it was last asked to show

export function previewSubject(node) {
  const widget = node.widgets?.find(({ name }) => name === NAME)
  if (!widget) return
  const { callback } = widget
  widget.callback = function (value) {
    callback?.apply(this, arguments)
    showSubject(node, value)
  }
  // Once a workflow that is being opened has set its value, and its links.
  setTimeout(() => {
    if (!isLinked(node)) showSubject(node, widget.value)
  })
}

/** Whether the subject's name comes from another node, so that the widget's value counts for nothing. */
export function isLinked(node) {
  return node.inputs?.find(({ widget }) => widget?.name === NAME)?.link != null
}

/** After a run: the subject that was loaded where the name comes from another node, else the one chosen since. */
export function showLoaded(node, name) {
  const chosen = node.widgets?.find((widget) => widget.name === NAME)?.value
  return showSubject(node, isLinked(node) ? name : (chosen ?? name))
}

async function showSubject(node, name) {
  const asking = { name }
  asked.set(node, asking)
  const response = await api.fetchApi(`/nested_attention/subject?name=${encodeURIComponent(name)}`)
  const found = await response.json()
  if (asked.get(node) !== asking) return // it was asked again while the server was busy
  showState(node, found.lines ?? [found.error], found.thumbnail)
}
