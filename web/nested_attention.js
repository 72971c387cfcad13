/**
 * Shows the pack's own sentences where the user looks.
 *
 * The editor says of a node that fails only that it failed, and keeps the reason behind "View details". What it
 * shows on a node while it runs is gone when the run ends.
 */
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { root } from "./editor.js"
import { putInPlace } from "./elements.js"
import { showMapsOf } from "./nested_attention_maps.js"
import { keepNotices } from "./notices.js"
import { readOptions, translateOptions } from "./options.js"
import { searchByWords } from "./search.js"
import { showState } from "./state.js"
import { isLinked, previewSubject, showLoaded } from "./subjects.js"

const WAIT_MS = 500 // for the editor's own message
const TITLE = "Nested Attention"
const LOADER = "NestedAttentionLoadEncoder"
const SUBJECT = "NestedAttentionLoadSubject"
const ORIGIN = "nested_attention_origin" // of an encoder: its file, licence and source
const removals = []
const missing = new Map() // what was said of an encoder that is missing → what takes the message away

/** A message that stays until the next run, or the call of what is returned. `kind`: error or warning. */
function show(kind, sentence) {
  const { toast } = app.extensionManager
  let remove
  if (toast.dismiss) {
    const id = toast[kind](TITLE, { description: sentence })
    remove = () => toast.dismiss(id)
  } else {
    // before front end 1.58
    const message = { severity: kind === "warning" ? "warn" : kind, summary: TITLE, detail: sentence }
    toast.add(message)
    remove = () => toast.remove(message)
  }
  removals.push(remove)
  return remove
}

/** Undo and a change of workflows open a graph, too: what holds still is not said again, what no longer does goes. */
function tellOfMissingEncoders() {
  const sentences = new Set(missingEncoders(root()))
  for (const [sentence, remove] of missing) {
    if (sentences.has(sentence)) continue
    missing.delete(sentence)
    remove()
  }
  for (const sentence of sentences) if (!missing.has(sentence)) missing.set(sentence, show("warning", sentence))
}

/** A workflow of somebody else's: which encoder its author had, where this ComfyUI has none of that name. */
function* missingEncoders(graph) {
  for (const node of graph?._nodes ?? []) {
    yield* missingEncoders(node.subgraph)
    const widget = node.type === LOADER && node.widgets?.find(({ name }) => name === "encoder_name")
    const origin = node.properties?.[ORIGIN]
    const there = widget?.options?.values
    if (!widget || !origin || origin.file !== widget.value || (there ?? [origin.file]).includes(origin.file)) continue
    const licence = origin.licence ? `under the licence ${origin.licence}` : "without a licence in the file"
    const source = origin.source ? `, from ${origin.source}` : ""
    yield `Load Subject Encoder: there is no ${origin.file} here. The author of this workflow had it ${licence}${source}.`
  }
}

/** What a node has said under a key of ours, as hosts/comfy/state.py wraps it. */
const toldUnder = (key, output) => output?.[key]?.flat()

/** What a node says of its run. */
function tell(node, output) {
  const [state, subject, maps] = ["state", "subject", "maps"].map((one) => toldUnder(`nested_attention_${one}`, output))
  if (subject) showLoaded(node, subject[0])
  else if (state) showState(node, state)
  if (maps) showMapsOf(node, maps[0])
}

/** Undo and a change of workflows make new nodes. They say what was said in their place. */
function tellAgain(graph, path = "") {
  for (const node of graph?._nodes ?? []) {
    const id = `${path}${node.id}`
    tellAgain(node.subgraph, `${id}:`)
    if (!node.comfyClass?.startsWith("NestedAttention")) continue
    if (node.comfyClass === SUBJECT && !isLinked(node)) continue // it speaks of the subject that is chosen
    tell(node, app.nodeOutputs[id] ?? app.nodeOutputs[`${graph.id}:${node.id}`])
    setTimeout(() => putInPlace(node)) // when the graph that is open is shown
  }
}

/**
 * Nodes that have grown by what they say are not a change of the user's. Editors before 1.58 would take it for one
 * after each Undo, and the next Undo would end at the same place.
 */
function keepSizes({ detail: saved }) {
  for (const { id, nodes } of [saved, ...(saved.definitions?.subgraphs ?? [])]) {
    const graph = root().subgraphs?.get(id) ?? root()
    for (const one of nodes) {
      const node = graph.getNodeById(one.id)
      if (node?.comfyClass?.startsWith("NestedAttention")) one.size = [...node.size]
    }
  }
}

app.registerExtension({
  name: "NestedAttention",

  init: readOptions,

  async setup() {
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
    keepNotices()

    const words = await api.fetchApi("/nested_attention/search_words")
    if (words.ok) searchByWords(await words.json())
  },

  afterConfigureGraph() {
    tellOfMissingEncoders()
    tellAgain(root())
    api.addEventListener("graphChanged", keepSizes, { once: true }) // what Undo has put back
  },

  // Of another workflow they come after its graph.
  onNodeOutputsUpdated() {
    tellAgain(root())
  },

  beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith("NestedAttention")) return
    const { onExecuted } = nodeType.prototype
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      const origin = toldUnder(ORIGIN, output)
      if (origin) this.properties[ORIGIN] = origin[0]
      tell(this, output)
    }
  },

  nodeCreated(node) {
    if (node.comfyClass?.startsWith("NestedAttention")) translateOptions(node)
    if (node.comfyClass === SUBJECT) previewSubject(node)
  },
})
