/**
 * Lists of choices in the editor's language, where the editor can show other words than the values. What is saved and
 * sent stays as it is.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

let nodes = {}

/** To be called before the first node is made. */
export async function readOptions() {
  const language = app.extensionManager.setting.get("Comfy.Locale")
  if (language === "en") return
  const response = await api.fetchApi("/i18n")
  if (response.ok) nodes = (await response.json())[language]?.nodeDefs ?? {}
}

export function translateOptions(node) {
  for (const widget of node.widgets ?? []) {
    const names = nodes[node.comfyClass]?.inputs[widget.name]?.options
    if (names) widget.options.getOptionLabel = (value) => names[value] ?? value ?? ""
  }
}
