/** What newer and older editors keep in different places. */
import { app } from "../../scripts/app.js"

/** The graph of the workflow that is open, whichever subgraph is shown. */
export const root = () => app.rootGraph ?? app.graph

/** One of the editor's stores by its name; undefined where there is none. */
export const store = (name) => {
  const pinia = document.getElementById("vue-app")?.__vue_app__?.config.globalProperties.$pinia
  return pinia?._s.get(name)
}
