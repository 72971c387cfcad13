/**
 * Nodes found by what people type: the pack's search words, in editors whose search looks at names alone.
 *
 * Newer editors search `search_aliases` themselves; there nothing is changed.
 */
import { store } from "./editor.js"

const ALIASES = "search_aliases"

/**
 * words: node id → words; of two nodes with the same word the one that stands first is offered first. To be called
 * once the editor knows its nodes.
 */
export function searchByWords(words) {
  const service = store("nodeDef")?.nodeSearchService
  if (!service?.searchNode || !service.nodeFuseSearch || service.nodeFuseSearch.keys.includes(ALIASES)) return
  const kind = Object.getPrototypeOf(service)
  const { searchNode } = kind
  const order = Object.keys(words)
  kind.searchNode = function (query, filters, options, ...more) {
    const found = searchNode.call(this, query, filters, options, ...more)
    const typed = query.trim().toLowerCase()
    if (!typed) return found
    const offered = searchNode.call(this, "", filters, undefined, ...more)
    const named = (matches) =>
      order.filter((name) => words[name].some(matches)).flatMap((name) => offered.filter((one) => one.name === name))
    const ours = [...new Set([...named((word) => word === typed), ...named((word) => begins(word, typed))])]
    return [...ours, ...found.filter((one) => !ours.includes(one))].slice(0, options?.limit)
  }
}

/** Whether a word of the text, or the text itself, begins with what was typed. */
function begins(text, typed) {
  return ` ${text}`.includes(` ${typed}`)
}
