"""ComfyUI's editor in a browser, for tests and for the scripts that photograph nodes.

Playwright drives the system's Chromium. Its own browsers are not needed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from playwright.sync_api import Locator, Page, TimeoutError, sync_playwright

from nested_attention.demo.server import ComfyServer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no welcome
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
NODES_2 = "Comfy.VueNodes.Enabled"
"""The setting of the newer renderer, Nodes 2.0: nodes are HTML elements, not drawings on a canvas."""

SEARCH = "input[placeholder='Search Nodes...'], input[placeholder='Add a node...']"
FOUND = ".p-autocomplete-option, [data-testid=result-item]"
BARS = (
    *(".comfyui-menu", ".workflow-tabs-container", ".actionbar"),
    *(".side-tool-bar-container", "[data-testid=queue-button]"),
)
"""What lies over the canvas: above, and on the left."""

RUN = "button[data-testid=queue-button], [data-testid=queue-button] button"
TOASTS = ".p-toast-message, [data-toast-kind=error], [data-toast-kind=warning]"
SAYS = f".p-dialog, {TOASTS}, [data-testid=error-overlay]"
CLOSE = (
    ".p-dialog-close-button, .p-toast-close-button, [data-testid=toast-close], "
    "[data-testid=error-overlay-dismiss]"
)
PICTURES = """() => app.graph._nodes.filter(node => node.type === 'SaveImage').map(node => {
    const elements = document.querySelectorAll(`[data-node-id="${node.id}"] img`)
    return [...(LiteGraph.vueNodesMode ? elements : node.imgs ?? [])]
        .filter(image => image.complete && image.naturalWidth).length
})"""
"""The first renderer draws a node's pictures. Nodes 2.0 makes elements of them, and may keep the others."""

BOXES = """() => {
    const {x, y} = app.canvas.canvas.getBoundingClientRect(), {scale, offset} = app.canvas.ds
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const elements = new Map(app.graph._nodes.map(node =>
        [node, document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()]))
    if (LiteGraph.vueNodesMode && [...elements.values()].some(element => !element?.height)) return null
    return [
        app.graph._nodes.map(node => {
            const element = elements.get(node)
            return [node.title, ...(element
                ? [(element.x - x) / scale - offset[0], (element.y - y) / scale - offset[1],
                   element.width / scale, element.height / scale]
                : [node.pos[0], node.pos[1] - title, node.size[0], node.size[1] + title])]
        }),
        app.graph._groups.map(group => [group.title, ...group._bounding]),
    ]
}"""


class Box(NamedTuple):
    """A rectangle on the canvas, in its own pixels."""

    title: str
    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def contains(self, other: Box) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


def find_chromium() -> tuple[str | None, str]:
    """The program or None, and in words where it is or was looked for."""
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        return shutil.which(named), f"CHROMIUM_PATH is {named}"
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return found, found or f"there is no {', '.join(NAMES[:-1])} or {NAMES[-1]} on PATH"


@contextmanager
def open_editor(
    server: ComfyServer, program: str, size: tuple[int, int], *, nodes_2: bool = False
) -> Iterator[Editor]:
    """The editor of a running server as a newly installed browser shows it.

    program: see find_chromium. size: of the page, in pixels. nodes_2: with the newer renderer.
    """
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({**SETTINGS, NODES_2: nodes_2}))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, locale="en-US")
        page.set_default_timeout(120_000)  # a busy machine
        page.goto(server.url)
        editor = Editor(page, server)
        editor.wait_until_up()
        yield editor
        browser.close()


def without_meta(graph: Mapping[str, Any]) -> dict[str, Any]:
    """A graph in API format without titles, which differ between cores, and other remarks."""
    return {
        number: {key: value for key, value in node.items() if key != "_meta"}
        for number, node in graph.items()
    }


class Editor:
    """One page with the editor. What differs between front ends is known here and nowhere else."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        """Exceptions that nothing in the page has caught, with their stacks."""
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))

    def wait_until_up(self) -> None:
        self.run.wait_for(timeout=180_000)
        self.page.wait_for_function("window.app?.graph && app.extensionManager")

    def reload(self) -> None:
        """The page again, as after a change of the language."""
        self.page.wait_for_timeout(500)  # settings are on their way to the server
        self.page.reload()
        self.wait_until_up()

    @property
    def run(self) -> Locator:
        """The button that queues the workflow."""
        return self.page.locator(RUN).first

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression, or of a function of `argument`, in the page."""
        return self.page.evaluate(script, argument)

    def load(self, graph: Mapping[str, Any], name: str) -> None:
        """Opens a workflow, all of it in view, after closing what the one before had to say."""
        self.open(graph, name)
        self.fit()

    def open(self, graph: Mapping[str, Any], name: str) -> None:
        """Opens a workflow in the view that was saved with it."""
        self.check_canvas()
        self.page.wait_for_function(
            """([close, says]) => {
                document.querySelectorAll(close).forEach(one => one.click())
                return !document.querySelector(says)
            }""",
            arg=[CLOSE, SAYS],
            polling=250,  # something more may be said meanwhile
        )
        self.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])

    def check_canvas(self) -> None:
        """Whether the canvas is drawn still: an exception while it is drawn stops it for good."""
        drawn = self.evaluate("() => app.canvas.frame")
        try:
            self.page.wait_for_function("drawn => app.canvas.frame > drawn", arg=drawn, timeout=10_000)
        except TimeoutError:
            raise AssertionError("\n".join(["the editor draws its canvas no more", *self.errors])) from None

    def search(self, words: str) -> list[str]:
        """What the editor's search offers for words typed into it, as texts."""
        box = self._type_into_search(words)
        found = self.page.locator(FOUND).all_inner_texts()
        self.page.keyboard.press("Escape")
        box.wait_for(state="detached")
        return found

    def place_from_search(self, words: str, name: str) -> None:
        """Puts the first of the nodes that are found for the words and have the name on the canvas.

        What is offered is drawn anew while one types, and a click on what has just gone is lost: it is then
        searched for again.
        """
        self.evaluate("() => document.activeElement?.blur()")  # Enter is not to press a button
        before = self.evaluate("() => app.graph._nodes.length")
        for _ in range(5):
            box = self._type_into_search(words)
            with suppress(TimeoutError):
                self.page.locator(FOUND).filter(has_text=name).first.click(timeout=10_000)
            if box.count() and box.is_visible():  # the older front end has it chosen, and placed by Enter
                self.page.keyboard.press("Enter")
            with suppress(TimeoutError):
                box.wait_for(state="detached", timeout=5_000)
                break
            self.page.keyboard.press("Escape")
            box.wait_for(state="detached")
            if self.evaluate("() => app.graph._nodes.length") > before:
                break
        self.page.wait_for_function("before => app.graph._nodes.length > before", arg=before)
        if self.evaluate("() => 'ghostNodeId' in (app.canvas.state ?? {})"):  # it hangs on the mouse
            with suppress(TimeoutError):
                self.page.wait_for_function("() => app.canvas.state.ghostNodeId != null", timeout=3000)
            self.evaluate("() => app.canvas.finalizeGhostPlacement(false)")

    def _type_into_search(self, words: str) -> Locator:
        """The search's box, once it has looked for the words."""
        self.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        box = self.page.locator(SEARCH).first
        box.wait_for()
        box.fill(words)
        self.page.wait_for_timeout(700)  # it waits for the end of typing
        return box

    def fit(self) -> None:
        self.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")

    def show_pictures(self, types: Collection[str], file: str, states: Collection[str] = ()) -> None:
        """As when nodes of these types have made a picture: a file in the server's output folder. states:
        types of nodes that say in some lines what they have done."""
        self.evaluate(
            """([types, filename, states]) => {
                const shows = node => types.includes(node.type) || states.includes(node.type)
                for (const {id, type} of app.graph._nodes.filter(shows)) {
                    const images = types.includes(type) ? [{filename, subfolder: '', type: 'output'}] : []
                    const lines = ['1 picture: face found',
                        'word: person (your own), in the prompt <alice>',
                        'encoder: person_encoder.safetensors · 70 of 70 layers', 'MODEL reaches a sampler']
                    const said = states.includes(type) ? {nested_attention_state: lines} : {}
                    app.api.dispatchCustomEvent('executed', {node: String(id), display_node: String(id),
                        prompt_id: '', output: {...(images.length ? {images} : {}), ...said}})
                }
            }""",
            [list(types), file, list(states)],
        )

    def unfold(self) -> None:
        """Shows the inputs that nodes fold away at first; the older renderer shows all."""
        self.evaluate(
            """() => [...document.querySelectorAll('[data-node-id] button')]
                .filter(button => button.innerText.includes('Show advanced'))
                .forEach(button => button.click())"""
        )

    def in_view(self, types: Collection[str]) -> list[tuple[str, bool]]:
        """Of each node of these types its type, and whether all of it can be seen on the page, clear of the
        editor's bars, once that has come to rest."""
        scale, left, top = self.evaluate(
            """() => {
                const {x, y} = app.canvas.canvas.getBoundingClientRect(), {scale, offset} = app.canvas.ds
                return [scale, x + offset[0] * scale, y + offset[1] * scale]
            }"""
        )
        kinds = self.evaluate("() => app.graph._nodes.map(node => node.type)")
        page = self.page.viewport_size or {"width": 0, "height": 0}
        bars = [self.page.locator(bar).first.bounding_box() for bar in BARS if self.page.locator(bar).count()]
        seen = []
        for kind, box in zip(kinds, self.boxes()[0], strict=True):
            if kind in types:
                shown = Box(
                    box.title,
                    left + scale * box.x,
                    top + scale * box.y,
                    scale * box.width,
                    scale * box.height,
                )
                clear = not any(shown.overlaps(Box("", *map(float, bar.values()))) for bar in bars if bar)
                whole = Box("", 0, 0, page["width"], page["height"]).contains(shown)
                seen.append((kind, whole and clear))
        return seen

    def boxes(self) -> tuple[list[Box], list[Box]]:
        """Nodes, their titles included, and groups, as they are drawn, once that has come to rest."""
        shown = before = None
        while shown is None or shown != before:
            before, shown = shown, self.evaluate(BOXES)
            self.page.wait_for_timeout(250)
        return tuple([Box(*one) for one in part] for part in shown)

    def prompt(self) -> dict[str, Any]:
        """What the editor would send the server: node id → class and inputs."""
        return without_meta(self.evaluate("() => app.graphToPrompt().then(prompt => prompt.output)"))

    def set_widget(self, name: str, value: Any) -> None:
        """The same value in every widget of a name."""
        self.evaluate(
            """([name, value]) => {
                for (const node of app.graph._nodes) for (const widget of node.widgets ?? [])
                    if (widget.name === name) widget.value = value
            }""",
            [name, value],
        )

    def says(self) -> list[str]:
        """The texts of dialogs and messages."""
        return self.page.locator(SAYS).all_inner_texts()

    def wait_for_words(self) -> str:
        """All of what the editor says, as soon as it says anything, its details included."""
        self.page.locator(SAYS).first.wait_for(timeout=300_000)
        details = self.page.get_by_test_id("error-overlay-see-errors")
        if details.count():
            details.click()
            self.page.get_by_test_id("panel-tab-errors").wait_for()
        return str(self.evaluate("() => document.body.innerText"))

    def pictures(self) -> list[int]:
        """How many pictures each Save Image shows."""
        return list(self.evaluate(PICTURES))

    def wait_for_pictures(self, number: int) -> None:
        """Until every Save Image shows so many."""
        shown = f"number => (shown => shown.length && shown.every(n => n === number))(({PICTURES})())"
        for _ in range(29):
            with suppress(TimeoutError):
                self.page.wait_for_function(shown, arg=number, timeout=10_000)
                return
            self.check_canvas()
        self.page.wait_for_function(shown, arg=number, timeout=10_000)
