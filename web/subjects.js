/** Load Subject: the thumbnail and the provenance of the subject that is chosen, or that was loaded last. */
import { api } from "../../scripts/api.js"
import { showState } from "./state.js"

const asked = new WeakMap() // node → the name that it was last asked to show

export function previewSubject(node) {
  const widget = node.widgets?.find(({ name }) => name === "subject_name")
  if (!widget) return
  const { callback } = widget
  widget.callback = function (value) {
    callback?.apply(this, arguments)
    showSubject(node, value)
  }
  setTimeout(() => showSubject(node, widget.value)) // once a workflow that is being opened has set its value
}

export async function showSubject(node, name) {
  asked.set(node, name)
  const response = await api.fetchApi(`/nested_attention/subject?name=${encodeURIComponent(name)}`)
  const found = await response.json()
  if (asked.get(node) !== name) return // another was chosen while the server was busy
  showState(node, found.lines ?? [found.error], found.thumbnail)
}
