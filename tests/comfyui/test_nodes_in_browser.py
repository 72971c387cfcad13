"""What stands on nodes in ComfyUI's own editor: warnings, lines, maps.

With every front end and renderer of front_ends.py.
"""

from __future__ import annotations

import base64
import json
import math
import time
from itertools import combinations, product
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
from editor import TOASTS, Editor
from front_ends import FrontEnd
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
TEMPLATES: dict[str, str] = run_path(str(ROOT / "scripts" / "workflows" / "names.py"))["TEMPLATES"]
SAVED = Path(__file__).resolve().parent / "saved_workflows"
MARKUP = "<img src=x onerror=document.title=1>"
"""A prompt of somebody else's, in angle brackets as a subject is."""

STANDING = """() => {
    const all = graph => (graph?._nodes ?? []).flatMap(node => [node, ...all(node.subgraph)])
    return all(app.graph).flatMap(node => (node.widgets ?? [])
        .filter(({name}) => name === '$$node-text-preview').map(({value}) => [node.type, value]))
}"""
SEEN = """() => [document.body.textContent,
    ...[...document.querySelectorAll('textarea')].map(({value}) => value)].join('\\n')"""
"""All texts of the page: Nodes 2.0 shows that of a node in a field."""

SAYS = "([node, text]) => app.api.dispatchCustomEvent('progress_text', {nodeId: String(node), text})"
RUNS = "id => app.api.dispatchCustomEvent('executing', id)"
LOOK = """() => {
    const node = app.graph._nodes.find(({type, widgets}) => type === 'CLIPTextEncode' && widgets.length > 1)
    app.canvas.ds.scale = 1  // from afar, texts are not drawn
    app.canvas.centerOnNode(node)
    app.canvas.setDirty(true, true)
}"""
RUN = """async () => {
    const done = new Promise(resolve => app.api.addEventListener('executing', function end({detail}) {
        if (detail) return
        app.api.removeEventListener('executing', end)
        setTimeout(resolve)  // after what was to be done when the run had ended
    }))
    await app.queuePrompt(0)
    await done
}"""


STATE = "nested_attention_state"
CANVAS = "() => [app.canvas.ds.scale, app.canvas.ds.offset[0]]"
TELL = """kind => {
    const lines = ['word: person', 'licence: Apache-2.0', 'the small demo world; reads last_hidden_state',
        'α 2, norm inner, 32 tokens']
    for (const {id} of app.graph._nodes.filter(({type}) => type === kind))
        app.api.dispatchCustomEvent('executed', {node: String(id), display_node: String(id),
            prompt_id: '', output: {nested_attention_state: lines}})
}"""
CAPTURE = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
    tracker.captureCanvasState ? tracker.captureCanvasState() : tracker.checkState()
    return tracker.redoQueue.length
}"""
SHOWN = """() => app.graph._nodes.some(node =>
    node.nestedAttentionMaps?.isConnected && node.nestedAttentionMaps.querySelector('.na-place'))"""


def load(editor: Editor, name: str) -> None:
    workflow: dict[str, Any] = json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))
    editor.load(workflow, name)


def open_template(editor: Editor, name: str) -> None:
    """As it is shipped now; `load` opens what was saved long ago."""
    workflow = json.loads((ROOT / "workflows" / f"{TEMPLATES[name]}.json").read_text(encoding="utf-8"))
    editor.load(workflow, name)


def standing(editor: Editor) -> dict[str, list[str]]:
    """What stands on nodes, by their type."""
    found: dict[str, list[str]] = {}
    for kind, text in editor.evaluate(STANDING):
        found.setdefault(kind, []).append(text)
    return found


def test_a_warning_stands_on_its_node_until_that_runs_again(editor: Editor) -> None:
    load(editor, "avatar_person")
    for name, value in (("steps", 1), ("batch_size", 1), ("when_missing", "warn"), ("seed", 1)):
        editor.set_widget(name, value)
    editor.set_widget("text", f"a photo of a {MARKUP}")
    editor.evaluate(RUN)
    said = standing(editor)
    assert {kind: len(texts) for kind, texts in said.items()} == {"CLIPTextEncode": 1, "KSampler": 1}
    assert "calls none of the subjects" in said["CLIPTextEncode"][0]
    assert "no prompt carries" in said["KSampler"][0]
    editor.evaluate(LOOK)
    # A prompt in it is text, not markup.
    editor.page.wait_for_function(f"() => ({SEEN})().includes('‹img src=x')")
    assert "‹person›" in editor.evaluate(SEEN)
    assert editor.page.locator("img[src=x]").count() == 0
    # The text node is remembered, and the sampler runs.
    editor.set_widget("seed", 2)
    editor.evaluate(RUN)
    assert standing(editor) == said
    # What another pack has written, on a node of its own and over a warning, is not ours to take away.
    types = ("SaveImage", "KSampler")
    for kind in types:
        number = editor.evaluate("kind => app.graph._nodes.find(node => node.type === kind).id", kind)
        editor.evaluate(SAYS, [number, "another pack's"])
        editor.evaluate(RUNS, str(number))
    assert standing(editor) == {**said, **{kind: ["another pack's"] for kind in types}}
    editor.set_widget("text", "a photo of a person")
    editor.evaluate(RUN)  # newer editors take away the other pack's, too
    assert {text for texts in standing(editor).values() for text in texts} <= {"another pack's"}
    editor.page.wait_for_function(f"() => !({SEEN})().includes('‹img src=x')")


def test_a_warning_in_a_subgraph_is_taken_away(editor: Editor) -> None:
    load(editor, "avatar_subgraph")
    inside = editor.evaluate(
        """() => {
            const outer = app.graph._nodes.find(node => node.subgraph)
            app.canvas.openSubgraph(outer.subgraph, outer)
            const inner = outer.subgraph._nodes.find(node => node.type === 'NestedAttentionApplySubject')
            return `${outer.id}:${inner.id}`
        }"""
    )
    editor.page.wait_for_timeout(500)  # the editor takes note of what is open
    # By its number alone, which all front ends look for in what is open: 1.27 fails to find `14:5` there.
    editor.evaluate(SAYS, [inside.split(":")[1], "ours"])
    assert standing(editor) == {"NestedAttentionApplySubject": ["ours"]}
    warning = {"node": inside, "text": "ours", "shown": "ours"}
    editor.evaluate("warning => app.api.dispatchCustomEvent('nested_attention.warning', warning)", warning)
    editor.evaluate(RUNS, inside)
    assert standing(editor) == {}


QUEUE_TWO = """async () => {
    let left = 2
    const done = new Promise(resolve => app.api.addEventListener('executing', function end({detail}) {
        if (detail || --left) return
        app.api.removeEventListener('executing', end)
        setTimeout(resolve, 100)
    }))
    const set = (name, value) => app.graph._nodes.flatMap(({widgets}) => widgets ?? [])
        .filter(widget => widget.name === name).forEach(widget => { widget.value = value })
    set('steps', 40)  // so that the other workflow is open when the first ends
    await app.queuePrompt(0)
    set('text', 'a photo of a lamp')
    await app.queuePrompt(0)
    window.bothDone = done
}"""
OF_ANOTHER = """id => {
    const execution = document.getElementById('vue-app').__vue_app__
        .config.globalProperties.$pinia._s.get('execution')
    const queued = execution.queuedJobs ?? execution.queuedPrompts
    queued.other = {nodes: {}, workflow: {path: 'workflows/other.json'}}
    const say = (event, detail) => app.api.dispatchCustomEvent(event, detail)
    say('execution_start', {prompt_id: 'other', timestamp: 0})
    say('nested_attention.warning', {node: id, text: 'theirs', shown: 'theirs', prompt_id: 'other'})
    say('executing', id)
    say('executing', null)
    say('execution_start', {prompt_id: 'reloaded', timestamp: 0})
    const mine = {node: id, text: 'theirs', shown: 'theirs', prompt_id: 'reloaded', workflow: 'of another'}
    say('nested_attention.warning', mine)
    say('executing', null)
}"""
"""A run of another workflow that is open, and one from before the page was loaded."""


def test_a_warning_is_put_on_no_node_of_another_workflow(editor: Editor) -> None:
    """The two were one when they were opened, so that their nodes have the same ids."""
    load(editor, "avatar_person")
    for name, value in (("batch_size", 1), ("when_missing", "warn"), ("seed", 11)):
        editor.set_widget(name, value)
    editor.evaluate(QUEUE_TWO)
    editor.load(json.loads((SAVED / "avatar_person.json").read_text(encoding="utf-8")), "another")
    editor.evaluate("() => window.bothDone")
    assert standing(editor) == {}
    said = editor.page.locator(TOASTS).filter(has_text="no prompt carries")
    expect(said).to_have_count(1)  # that of the first run may be fading
    # And a run of another workflow takes none away.
    number = editor.evaluate("() => String(app.graph._nodes.find(({type}) => type === 'KSampler').id)")
    warning = {"node": number, "text": "ours", "shown": "ours"}
    editor.evaluate("warning => app.api.dispatchCustomEvent('nested_attention.warning', warning)", warning)
    editor.evaluate(OF_ANOTHER, number)
    editor.page.wait_for_timeout(500)  # texts are put back at the end of a run
    assert standing(editor) == {"KSampler": ["ours"]}


class TestMaps:
    """What View Subject Maps shows on the node, and what it takes to look at another place."""

    VIEW = "() => app.graph._nodes.find(node => node.type === 'NestedAttentionViewMaps')"

    @pytest.fixture(scope="class")
    def seen(self, editor: Editor) -> dict[str, Any]:
        """The document that the node shows, after a run."""
        open_template(editor, "avatar_inspect")
        editor.set_widget("steps", 2)
        editor.run.click()
        editor.page.locator(".na-place").first.wait_for(timeout=300_000)
        assert editor.says() == []
        return editor.evaluate(
            f"""async () => {{
                const view = ({self.VIEW})()
                const [[file]] = app.nodeOutputs[view.id].nested_attention_maps
                return (await app.api.fetchApi(`/view?${{new URLSearchParams(file)}}`)).json()
            }}"""
        )

    def place(self, editor: Editor, x: float, y: float) -> tuple[float, float]:
        """Where on the page a place of the picture is."""
        editor.page.locator(".na-picture").scroll_into_view_if_needed()
        box = editor.page.locator(".na-picture").bounding_box()
        assert box is not None
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def test_pointing_at_a_place_shows_the_numbers_of_the_document(
        self, editor: Editor, seen: dict[str, Any]
    ) -> None:
        (picture,) = seen["pictures"]
        assert [one["title"] for one in picture["subjects"]] == ["person", "pet"]
        told = []
        for x, y in ((0.3, 0.4), (0.72, 0.8)):
            editor.page.mouse.move(*self.place(editor, x, y))
            editor.page.wait_for_timeout(500)
            told.append(editor.page.locator(".na-details").inner_text())
            one = picture["subjects"][0]
            word, rows, columns = one["word"], *one["word"]["grid"]
            at = int(y * rows) * columns + int(x * columns)
            share = base64.b64decode(word["data"])[at] * word["max"] / 255
            assert f"attention to the word {100 * share:.1f} %" in told[-1]
            rows, columns, count = *one["tokens"]["grid"], one["tokens"]["count"]
            at = (int(y * rows) * columns + int(x * columns)) * count
            numbers, shares = (
                np.frombuffer(base64.b64decode(one["tokens"][name]), "<u2")[at : at + count].tolist()
                for name in ("indices", "shares")
            )
            shown = editor.page.locator(".na-token").all_inner_texts()
            assert [text.split() for text in shown] == [
                [f"#{token}", f"{100 * share / 65535:.1f}", "%"]
                for token, share in zip(numbers, shares, strict=True)
            ]
        assert told[0] != told[1]

    def points(self, editor: Editor) -> list[str]:
        """Those that the node's widget has."""
        widget = f"({self.VIEW})().widgets.find(one => one.name === 'points')"
        return [point for point in editor.evaluate(f"() => {widget}.value").split("; ") if point]

    def free_place(self, seen: dict[str, Any]) -> tuple[float, float]:
        """Far from the marks, one of which a click there would take away."""
        marked = seen["pictures"][0]["subjects"][0]["points"]
        places = product((0.25, 0.5, 0.75), repeat=2)
        return max(places, key=lambda at: min(math.dist(at, point) for point in marked))

    def test_another_place_samples_nothing_again(
        self, editor: Editor, seen: dict[str, Any], definitions: dict[str, Any]
    ) -> None:
        """And the choice of a subject stays. Nodes that are remembered say again what they have said."""
        assert self.points(editor) == []
        marked = seen["pictures"][0]["subjects"][0]["points"]
        free = self.free_place(seen)
        editor.page.mouse.click(*self.place(editor, *free))
        points = self.points(editor)
        assert len(points) == len(marked) + 1
        assert math.dist(free, [float(value) for value in points[-1].split(",")]) < 0.04  # in the same cell
        subject = editor.page.get_by_title("Subject", exact=True)
        subject.select_option(label="pet")
        assert subject.evaluate("one => getComputedStyle(one).backgroundColor") != "rgb(255, 255, 255)"
        spans = editor.page.get_by_title("Layer or steps").locator("option").all_inner_texts()
        assert [one for one in spans if one.startswith("step")] == ["step 1", "step 2"]
        editor.evaluate("() => document.querySelector('.na-picture').classList.add('before')")
        history = "async () => Object.values(await (await app.api.fetchApi('/history')).json())"
        runs = len(editor.evaluate(history))
        editor.run.click()
        end = time.monotonic() + 120
        while len(editor.evaluate(history)) == runs and time.monotonic() < end:
            editor.page.wait_for_timeout(200)
        last = max(editor.evaluate(history), key=lambda run: run["prompt"][0])
        (cached,) = (data["nodes"] for kind, data in last["status"]["messages"] if kind == "execution_cached")
        graph = last["prompt"][2]
        ran = {node["class_type"] for number, node in graph.items() if number not in cached}
        assert "NestedAttentionViewMaps" in ran and "KSampler" not in ran and "VAEDecode" not in ran
        if "has_intermediate_output" in definitions["NestedAttentionApplySubject"]:
            said = [graph[n]["class_type"] for n, out in last["outputs"].items() if STATE in out]
            assert "NestedAttentionApplySubject" in said
        editor.page.locator(".na-picture:not(.before)").wait_for()
        assert editor.page.locator(".na-details b").inner_text().startswith("pet")

    def test_the_arrow_keys_move_to_a_place_and_enter_marks_it(
        self, editor: Editor, seen: dict[str, Any]
    ) -> None:
        editor.page.mouse.move(0, 0)
        editor.page.locator(".na-picture").focus()
        before, told = self.points(editor), editor.page.locator(".na-place").inner_text()
        for _ in range(4):
            editor.page.keyboard.press("ArrowUp")
        now = editor.page.locator(".na-place").inner_text()
        spoken = editor.page.locator(".na-maps [role=status]")  # for who does not see the picture
        assert now != told and spoken.text_content().startswith(f"{now}, attention to the word ")
        editor.page.keyboard.press("Enter")
        assert self.points(editor)[:-1] == before
        assert spoken.text_content().startswith(f"marked, {now}")

    def test_numbers_are_of_all_layers_where_none_can_be_chosen(
        self, editor: Editor, seen: dict[str, Any]
    ) -> None:
        show = editor.page.get_by_title("Show", exact=True)
        layer = editor.page.get_by_title("Layer or steps")
        editor.page.mouse.move(0, 0)
        editor.page.locator(".na-picture").focus()
        editor.page.keyboard.press("ArrowDown")
        of_all = editor.page.locator(".na-word").inner_text()
        for number in range(len(seen["pictures"][0]["subjects"][0]["layers"])):
            layer.select_option(f"layers {number}")
            if editor.page.locator(".na-word").inner_text() != of_all:
                break
        else:
            pytest.fail("all layers are alike there")
        show.select_option("all")
        assert editor.page.locator(".na-word").inner_text() == of_all
        show.select_option("word")
        assert editor.page.locator(".na-word").inner_text() != of_all
        layer.select_option("mean")

    def test_wheel_and_buttons_over_what_a_node_shows_are_the_canvas_s(
        self, editor: Editor, front_end: FrontEnd, seen: dict[str, Any]
    ) -> None:
        for shown in (".na-picture", ".nested-attention-state"):
            box = editor.page.locator(shown).first.bounding_box()
            assert box is not None
            editor.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            view = editor.evaluate(CANVAS)
            editor.page.mouse.wheel(0, 100)
            editor.page.wait_for_function(f"before => ({CANVAS})()[0] < before", arg=view[0])
            editor.page.mouse.wheel(0, -100)
            editor.page.wait_for_function(f"before => Math.abs(({CANVAS})()[0] - before) < 1e-6", arg=view[0])
            editor.page.mouse.down(button="middle")
            editor.page.mouse.move(box["x"] + box["width"] / 2 + 30, box["y"] + box["height"] / 2)
            editor.page.mouse.up(button="middle")
            editor.page.wait_for_function(f"before => ({CANVAS})()[1] > before + 20", arg=view[1])
            if not front_end.nodes_2:  # which has a menu of its own
                editor.evaluate("""() => { app.canvas.processContextMenu = node => {
                    window.asked = node.type
                    delete app.canvas.processContextMenu
                } }""")
                editor.page.mouse.click(box["x"] + box["width"] / 2 + 30, box["y"] + 5, button="right")
                editor.page.wait_for_function("() => window.asked?.startsWith('NestedAttention')")
                editor.evaluate("() => { delete window.asked }")

    def test_undo_and_another_workflow_leave_what_nodes_say(
        self, editor: Editor, seen: dict[str, Any]
    ) -> None:
        """Both make all nodes anew. The maps answer to clicks as before."""
        said = sorted(editor.page.locator(".nested-attention-state").all_inner_texts())
        assert said
        for command in ("Comfy.Undo", "Workspace.PreviousOpenedWorkflow"):
            if command != "Comfy.Undo":
                open_template(editor, "avatar_start")
                editor.page.locator(".na-picture").wait_for(state="detached")
            editor.evaluate("name => app.extensionManager.command.execute(name)", command)
            editor.page.wait_for_function(SHOWN)
            editor.fit()
            editor.page.wait_for_function(
                "number => document.querySelectorAll('.nested-attention-state').length === number",
                arg=len(said),
            )
            assert sorted(editor.page.locator(".nested-attention-state").all_inner_texts()) == said
            before = self.points(editor)
            editor.page.mouse.click(*self.place(editor, *self.free_place(seen)))
            assert self.points(editor) != before


def test_a_node_that_grows_by_what_it_says_covers_nothing_and_does_not_stop_undo(editor: Editor) -> None:
    open_template(editor, "avatar_grid")
    editor.evaluate(CAPTURE)
    editor.evaluate("() => { app.graph._nodes[0].title = 'another' }")
    editor.evaluate(TELL, "NestedAttentionLoadEncoder")
    editor.page.locator(".nested-attention-state").first.wait_for()
    nodes, _ = editor.boxes()
    assert [(a.title, b.title) for a, b in combinations(nodes, 2) if a.overlaps(b)] == []
    editor.evaluate(CAPTURE)
    editor.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    editor.page.wait_for_timeout(500)  # nodes are drawn
    assert editor.evaluate(CAPTURE), "what was undone can be redone, so nothing has changed since"


def test_the_maps_of_a_step_appear_in_a_subgraph_too(editor: Editor) -> None:
    """A node in one has an id of two parts in what the server sends."""
    open_template(editor, "avatar_inspect")
    shown = editor.evaluate("""() => {
        const observe = app.graph._nodes.find(node => node.type === "NestedAttentionObserve")
        const { node } = app.graph.convertToSubgraph(new Set([observe]))
        const [inner] = node.subgraph._nodes
        const subjects = [{ title: "anna", colour: "#ff0000", grid: [1, 2], data: btoa("xy") }]
        const detail = { node: `${node.id}:${inner.id}`, step: 0, steps: 2, subjects }
        for (const more of [{}, { step: 1, workflow: "of another" }])
            app.api.dispatchCustomEvent("nested_attention.glimpse", { ...detail, ...more })
        const { width, height } = inner.nestedAttentionGlimpse.querySelector("canvas")
        return [inner.nestedAttentionGlimpse.textContent, width / height]
    }""")
    assert shown == ["anna: step 1 of 2", 2]  # in the picture's proportions
