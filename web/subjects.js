/** Load Subject: the thumbnail and the provenance of the subject that is chosen, before it is run. */
import { api } from "../../scripts/api.js"
import { showState } from "./state.js"

export function previewSubject(node) {
  const widget = node.widgets?.find(({ name }) => name === "subject_name")
  if (!widget) return
  const { callback } = widget
  widget.callback = function (value) {
    callback?.apply(this, arguments)
    show(node, value)
  }
  setTimeout(() => show(node, widget.value)) // once a workflow that is being opened has set its value
}

async function show(node, name) {
  const response = await api.fetchApi(`/nested_attention/subject?name=${encodeURIComponent(name)}`)
  const found = await response.json()
  node.imgs = undefined // of the subject that was chosen when the node ran last
  showState(node, found.lines ?? [found.error], found.thumbnail)
}
