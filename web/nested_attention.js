/**
 * Shows the pack's own sentences where the user looks.
 *
 * The editor says of a node that fails only that it failed, and keeps the reason behind "View details". What it
 * shows on a node while it runs is gone when the run ends.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { showState } from "./state.js"

const WAIT_MS = 500 // for the editor's own message
const TITLE = "Nested Attention"
const removals = []

/** A message that stays until the next run. `kind`: error or warning. */
function show(kind, sentence) {
  const { toast } = app.extensionManager
  if (toast.dismiss) {
    const id = toast[kind](TITLE, { description: sentence })
    removals.push(() => toast.dismiss(id))
  } else {
    // before front end 1.58
    const message = { severity: kind === "warning" ? "warn" : kind, summary: TITLE, detail: sentence }
    toast.add(message)
    removals.push(() => toast.remove(message))
  }
}

app.registerExtension({
  name: "NestedAttention.Messages",

  setup() {
    api.addEventListener("execution_start", () => {
      for (const remove of removals.splice(0)) remove()
    })

    api.addEventListener("execution_error", ({ detail }) => {
      if (!detail.exception_type.endsWith("NestedAttentionError")) return
      const sentence = detail.exception_message.trim()
      setTimeout(() => {
        if (!document.body.innerText.includes(sentence)) show("error", sentence)
      }, WAIT_MS)
    })

    api.addEventListener("nested_attention.warning", ({ detail }) => show("warning", detail.text))
  },

  beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith("NestedAttention")) return
    const { onExecuted } = nodeType.prototype
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      if (output?.nested_attention_state) showState(this, output.nested_attention_state)
    }
  },
})
