"""The pack in ComfyUI's own editor, in a real browser: every workflow opens, and the avatar ones draw.

With every front end and renderer of front_ends.py.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from runpy import run_path
from types import ModuleType
from typing import Any

import pytest
from editor import SAYS, TOASTS, Editor, without_meta
from front_ends import FRONT_ENDS, SIZE, FrontEnd
from PIL import Image

from nested_attention.demo.draw import load_workflow

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
SAVED = Path(__file__).resolve().parent / "saved_workflows"
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
_names = run_path(str(ROOT / "scripts" / "workflows" / "names.py"))
TEMPLATES: dict[str, str] = _names["TEMPLATES"]
SERVER_NAMES: dict[str, str] = {name: _names["server_name"](name) for name in NAMES}
SAVED_NAMES = sorted(path.stem for path in SAVED.glob("*.json"))
SOMEBODY = ROOT / "weights" / "subjects" / "somebody.safetensors"
APPLY = "NestedAttentionApplySubject"

NODES = """() => app.graph._nodes.flatMap(node => [node, ...(node.subgraph?._nodes ?? [])]).map(node => ({
    id: Number(node.id),
    type: node.type,
    known: node.type in LiteGraph.registered_node_types,
    red: !!node.has_errors || (node.inputs ?? []).some(input => input.hasErrors),
}))"""


def load(editor: Editor, name: str, folder: Path = ROOT / "workflows", *, fit: bool = True) -> dict[str, Any]:
    """name: a template's, or that of its file for the server; see scripts/workflows/names.py."""
    path = folder / f"{name}.json"
    if not path.is_file():
        path = folder / f"{TEMPLATES[name]}.json"
    workflow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    (editor.load if fit else editor.open)(workflow, path.stem)  # as the template is called
    return workflow


@pytest.mark.parametrize("name", NAMES)
def test_the_editor_opens_a_workflow_with_no_node_missing(editor: Editor, name: str) -> None:
    """And would send the server exactly what stands in the API file."""
    workflow = load(editor, name)
    nodes = editor.evaluate(NODES)
    inside = [n for graph in workflow.get("definitions", {}).get("subgraphs", []) for n in graph["nodes"]]
    assert {node["id"] for node in nodes} == {node["id"] for node in [*workflow["nodes"], *inside]}
    assert [node for node in nodes if not node["known"]] == []
    files = [model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    if SERVER_NAMES[name].startswith("avatar_"):
        assert [node for node in nodes if node["red"]] == []
        assert editor.says() == []
    else:  # the user is told which files to fetch
        said = editor.wait_for_words()
        assert [file for file in files if file not in said] == []
    assert editor.prompt() == without_meta(load_workflow(SERVER_NAMES[name]))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_on_a_workflow_covers_anything(
    editor: Editor, name: str, script: Callable[[str], ModuleType]
) -> None:
    """Nodes keep clear of each other and inside their groups, with pictures and all inputs shown."""
    load(editor, name)
    formats = script("workflows/formats.py")
    states = formats.STATES.keys() - {"NestedAttentionLoadSubject"}  # which has asked the server already
    editor.show_pictures(formats.PREVIEWS.keys() - {"LoadImage"}, "example.png", states)
    editor.unfold()
    nodes, groups = editor.boxes()
    for boxes in (nodes, groups):
        assert [(a.title, b.title) for a, b in combinations(boxes, 2) if a.overlaps(b)] == []
    outside = [node.title for node in nodes if not any(group.contains(node) for group in groups)]
    assert outside == ["About this workflow"]


@pytest.mark.parametrize("name", NAMES)
def test_opened_on_a_small_screen_the_sampler_and_the_picture_are_in_view(editor: Editor, name: str) -> None:
    """At 1366 × 768 pixels, without scrolling, where the text on nodes is still drawn."""
    try:
        editor.page.set_viewport_size({"width": 1366, "height": 768})
        load(editor, name, fit=False)
        seen = editor.in_view({"KSampler", "SaveImage"})
        assert ("SaveImage", True) in seen and all(clear for _, clear in seen), seen
        assert editor.evaluate("() => app.canvas.ds.scale") >= 0.59
    finally:
        editor.page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})


@pytest.mark.parametrize(
    "front_end", [one for one in FRONT_ENDS if not one.nodes_2], indirect=True, ids=str, scope="module"
)
@pytest.mark.parametrize("name", SAVED_NAMES)
def test_a_workflow_saved_long_ago_sends_the_same_values_and_links(
    editor: Editor, name: str, definitions: dict[str, Any]
) -> None:
    """Whatever has become of the shipped file since. What nodes have gained has its default."""
    load(editor, name, SAVED)
    before = without_meta(json.loads((SAVED / "api" / f"{name}.json").read_text(encoding="utf-8")))
    now = editor.prompt()
    assert now.keys() == before.keys()
    for number, node in now.items():
        definition = definitions[node["class_type"]]["input"]
        known = {**definition.get("required", {}), **definition.get("optional", {})}
        gained = {key: value for key, value in node["inputs"].items() if key not in before[number]["inputs"]}
        assert gained == {key: known[key][1]["default"] for key in gained}
        assert {**node, "inputs": {k: v for k, v in node["inputs"].items() if k not in gained}} == before[
            number
        ]


@pytest.mark.parametrize("bypassed", [("person",), ("person", "pet")], ids="+".join)
def test_a_bypassed_node_is_as_if_it_were_not_there(editor: Editor, bypassed: tuple[str, ...]) -> None:
    """The server gets the graph without it: what it draws then is in test_server.py, beside strength 0."""
    load(editor, "avatar_person_and_pet")
    whole = load_workflow("avatar_person_and_pet")
    chain = [number for number, node in whole.items() if node["class_type"] == APPLY]
    names = {n: whole[whole[n]["inputs"]["encoder"][0]]["inputs"]["encoder_name"] for n in chain}
    off = {n for n in chain if any(f"/{kind}_" in names[n] for kind in bypassed)}
    assert len(off) == len(bypassed)
    for number in off:
        editor.evaluate("number => { app.graph.getNodeById(number).mode = 4 }", number)
    left = editor.prompt()
    assert {n for n, node in left.items() if node["class_type"] == APPLY} == set(chain) - off
    world = next(n for n, node in left.items() if node["class_type"] == "NestedAttentionDemoWorld")
    last = next((n for n in chain if n not in off), world)
    for kind, name, output in (("KSampler", "model", 0), ("CLIPTextEncode", "clip", 1)):
        wires = [node["inputs"][name] for node in left.values() if node["class_type"] == kind]
        assert wires and all(wire == [last, output] for wire in wires)
    for number in set(chain) - off:
        assert left[number]["inputs"]["model"] == [world, 0]
        assert left[number]["inputs"]["clip"] == [world, 1]


@pytest.mark.parametrize("name", ["avatar_person", "avatar_person_and_pet"])
def test_queued_in_the_editor_the_picture_appears(
    editor: Editor, front_end: FrontEnd, name: str, request: pytest.FixtureRequest
) -> None:
    keep = bool(request.config.getoption("--editor-screenshot")) and name == "avatar_person"
    keep = keep and not front_end.nodes_2
    load(editor, name)
    if not keep:  # two steps are enough to see that it runs
        editor.set_widget("steps", 2)
    assert editor.pictures() == [0]
    editor.run.click()
    editor.wait_for_pictures(4)
    assert editor.says() == []
    assert [node for node in editor.evaluate(NODES) if node["red"]] == []
    if keep:  # large enough that the editor writes on the nodes
        editor.evaluate("() => { Object.assign(app.canvas.ds, {scale: 0.69, offset: [38, 225]}) }")
        editor.evaluate("() => { app.canvas.setDirty(true, true) }")
        time.sleep(2)
        with Image.open(io.BytesIO(editor.page.screenshot())) as picture:
            small = picture.convert("RGB").quantize(160, dither=Image.Dither.NONE)
            small.save(ROOT / "docs" / "editor.png", optimize=True)


@pytest.mark.parametrize("when_missing", ["error", "warn"])
def test_a_prompt_without_the_word_shows_its_reason(editor: Editor, when_missing: str) -> None:
    """What the user reads when the subject would be missing from the picture, without a click."""
    load(editor, "avatar_person")
    editor.set_widget("steps", 2)
    editor.set_widget("batch_size", 1)
    editor.set_widget("when_missing", when_missing)
    editor.set_widget("text", f"a photo of a {when_missing} lamp in a room")
    editor.run.click()
    if when_missing == "warn":
        editor.wait_for_pictures(1)
    said = editor.page.locator(SAYS).filter(has_text="no prompt carries the subject 'person'")
    said.first.wait_for(timeout=120_000)
    editor.page.wait_for_timeout(1000)  # a second message would have come
    assert said.count() == 1
    assert "Apply Subject" in said.inner_text()
    assert "lamp" in said.inner_text()


UNTRIED = iter(product(("last_hidden_state", "as stored"), ("inner", "as stored"), (True, False)))
"""Settings of a loader that mean the same: with others than before it runs, and is not remembered."""


def test_an_encoder_says_what_it_is_and_a_missing_one_where_it_was_from(editor: Editor) -> None:
    """On the node once it has run; and with the workflow, for those who open it without the file."""
    load(editor, "avatar_person")
    editor.set_widget("steps", 1)
    for name, value in zip(("features", "norm", "ignore_unexpected"), next(UNTRIED), strict=True):
        editor.set_widget(name, value)
    editor.run.click()
    loader = "app.graph._nodes.find(node => node.type === 'NestedAttentionLoadEncoder')"
    said = f"{loader}.widgets.find(widget => widget.name === 'nested_attention_state')?.element.textContent"
    editor.page.wait_for_function(f"() => {said}", timeout=120_000)
    assert "licence: Apache-2.0\nthe small world; reads" in editor.evaluate(f"() => {said}")
    assert editor.evaluate(f"() => {loader}.properties.nested_attention_origin.licence") == "Apache-2.0"
    nodes, _ = editor.boxes()
    assert not [(a, b) for a, b in combinations(nodes, 2) if a.overlaps(b)], "with what the nodes say"
    graph = json.loads((ROOT / "workflows" / f"{TEMPLATES['avatar_person']}.json").read_text())
    (node,) = (node for node in graph["nodes"] if node["type"] == "NestedAttentionLoadEncoder")
    node["widgets_values"][0] = "cats.safetensors"
    origin = {"file": "cats.safetensors", "licence": "CC BY 4.0", "source": "example.org/cats"}
    node["properties"]["nested_attention_origin"] = origin
    editor.load(graph, "with cats")
    told = editor.page.locator(TOASTS).filter(has_text="there is no cats.safetensors here")
    told.first.wait_for()
    assert "under the licence CC BY 4.0, from example.org/cats" in told.first.inner_text()
    # Once, while that holds: Undo and a change of tabs open a graph, too.
    again = "graph => app.loadGraphData(graph, true, true, 'with cats')"
    for opened, messages in ((graph, 1), (graph, 1), ({**graph, "nodes": [], "links": []}, 0), (graph, 1)):
        editor.evaluate(again, opened)
        editor.page.wait_for_timeout(700)  # messages come and go slowly
        assert told.count() == messages


def test_a_run_takes_away_what_the_one_before_has_said(editor: Editor) -> None:
    load(editor, "avatar_person")
    editor.set_widget("steps", 1)
    editor.set_widget("when_missing", "warn")
    editor.set_widget("text", "a photo of a lamp")
    said = editor.page.locator(TOASTS).filter(has_text="no prompt carries")
    editor.run.click()
    said.wait_for(timeout=120_000)
    editor.set_widget("text", "a photo of a person")
    editor.run.click()
    said.wait_for(state="detached", timeout=120_000)


PERSON_OR_PET = "Person or Pet in Picture"
FIRST = (
    *("face", "identity", "person", "pet", "IPAdapter", "consistent character", "reference image"),
    *("likeness", "photo", "subject", "dog", "character", "InstantID"),
)
"""What people type who want the one node."""

FOUND_BY = {
    "ipadapter": "Load Subject Encoder",
    "consistent character": "Load Subject",
    "reference image": "Encode Subject",
    "instantid": "Apply Subject",
    "nested attention": "Apply Subject",
    "remove background": "Isolate Subject",
    "face crop": "Align Face",
    "small world": "Demo World",
    "avatars": "Demo World",
}
"""What people type → one of the nodes that they are offered, on every core."""


def test_what_people_type_finds_the_nodes(editor: Editor, front_end: FrontEnd) -> None:
    for words, name in FOUND_BY.items():
        found = editor.search(words)
        assert any(name in one for one in found), f"{words!r} finds {found[:5]}"
    for words in FIRST:
        found = [one.split("\n")[0].strip() for one in editor.search(words)]
        if front_end.searches_names:  # the pack's own list decides
            assert found[0] == PERSON_OR_PET, f"{words!r} finds {found[:5]}"
        else:  # the editor ranks names before aliases, and its core's nodes among them
            assert PERSON_OR_PET in found, f"{words!r} finds {found[:12]}"


CHOOSE = """name => {
    const node = app.graph._nodes.find(node => node.type === 'NestedAttentionLoadSubject')
    const widget = node.widgets.find(widget => widget.name === 'subject_name')
    if (!widget.options.values.includes(name) && !name.startsWith('nobody')) return false
    widget.value = name
    widget.callback(name)
    return true
}"""


BESIDE = """() => {
    const node = app.graph._nodes.find(node => node.type === 'NestedAttentionLoadSubject')
    const elements = document.querySelectorAll(`[data-node-id="${node.id}"] img`)
    return LiteGraph.vueNodesMode ? elements.length - 1 : node.imgs?.length ?? 0
}"""
"""How many pictures Load Subject shows beside its thumbnail."""


def test_load_subject_shows_whom_it_would_load(editor: Editor) -> None:
    """When it is opened, when it has run, when one that was saved since is chosen after a refresh, and when
    that is gone. Nothing is left of the picture before."""
    load(editor, "avatar_load_subject")
    said = editor.page.locator(".nested-attention-state")
    said.filter(has_text="from 1 picture").locator("img").wait_for()
    editor.set_widget("steps", 1)
    editor.run.click()
    editor.wait_for_pictures(4)
    said.filter(has_text="from 1 picture").locator("img").wait_for()
    folder = editor.server.base / "output" / "subjects"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new_00001_.safetensors").write_bytes(SOMEBODY.read_bytes())
    editor.evaluate("() => app.extensionManager.command.execute('Comfy.RefreshNodeDefinitions')")
    editor.page.wait_for_function(CHOOSE, arg="subjects/new_00001_.safetensors [output]")
    said.filter(has_text=time.strftime("saved %Y-")).locator("img").wait_for()
    assert editor.evaluate(BESIDE) == 0
    assert editor.evaluate(CHOOSE, "nobody.safetensors")
    said.filter(has_text="there is no saved subject 'nobody.safetensors'").wait_for()
    assert not said.locator("img").count()
    editor.check_canvas()


LATE = """async ([chosen, loaded]) => {
    const {api} = app, {fetchApi} = api, held = []
    const node = app.graph._nodes.find(node => node.type === 'NestedAttentionLoadSubject')
    const widget = node.widgets.find(widget => widget.name === 'subject_name')
    const choose = name => { widget.value = name; widget.callback(name) }
    const answer = text => ({ok: true, json: async () => ({lines: [text]})})
    const shown = () => node.widgets.find(({name}) => name === 'nested_attention_state').element.textContent
    api.fetchApi = function (route) {
        if (!route.startsWith('/nested_attention/subject?')) return fetchApi.apply(this, arguments)
        const name = decodeURIComponent(route.split('name=')[1])
        return new Promise(resolve => held.push(text => resolve(answer(`${name} ${text}`))))
    }
    const settled = () => new Promise(resolve => setTimeout(resolve, 100))
    try {
        choose(chosen), choose(loaded), choose(chosen)
        held[2]('as it is now')
        await settled()
        held[0]('as it was'), held[1]('as it was')
        await settled()
        const first = shown()
        node.onExecuted({nested_attention_subject: [[loaded]], nested_attention_state: [['loaded']]})
        held[3]('after the run')
        await settled()
        return [first, shown()]
    } finally { api.fetchApi = fetchApi }
}"""


LINKED = """async loaded => {
    const {api} = app, {fetchApi} = api, asked = []
    const settled = () => new Promise(resolve => setTimeout(resolve, 300))
    api.fetchApi = function (route) {
        if (!route.startsWith('/nested_attention/subject?')) return fetchApi.apply(this, arguments)
        asked.push(decodeURIComponent(route.split('name=')[1]))
        return Promise.resolve({ok: true, json: async () => ({lines: [asked.at(-1)]})})
    }
    try {
        const saved = app.graph.serialize()
        const node = saved.nodes.find(node => node.type === 'NestedAttentionLoadSubject')
        const [id, link] = [saved.last_node_id + 1, saved.last_link_id + 1]
        const end = {name: '', type: '*'}
        saved.nodes.push({id, type: 'Reroute', pos: [0, 0], size: [75, 26], flags: {}, order: 0, mode: 0,
            inputs: [{...end, link: null}], outputs: [{...end, links: [link]}], properties: {}})
        let at = node.inputs.findIndex(({widget}) => widget?.name === 'subject_name')
        const own = {name: 'subject_name', type: 'COMBO', widget: {name: 'subject_name'}}
        if (at < 0) at = node.inputs.push(own) - 1
        node.inputs[at].link = link
        saved.links.push([link, id, 0, node.id, at, '*'])
        Object.assign(saved, {last_node_id: id, last_link_id: link})
        app.nodeOutputs[node.id] = {} // of a run before
        await app.loadGraphData(saved, false, false)
        await settled()
        const opened = [...asked]
        app.nodeOutputs[node.id] = {nested_attention_subject: [[loaded]]}
        await app.loadGraphData(saved, false, false)
        await settled()
        return [opened, asked]
    } finally { api.fetchApi = fetchApi }
}"""


def test_load_subject_does_not_show_the_value_that_a_wire_replaces(editor: Editor) -> None:
    """When it is opened, nobody; when Undo has made the node anew, who was loaded."""
    load(editor, "avatar_load_subject")
    editor.page.locator(".nested-attention-state").filter(has_text="from 1 picture").wait_for()
    assert editor.evaluate(LINKED, "loaded.safetensors") == [[], ["loaded.safetensors"]]


def test_what_load_subject_shows_is_what_was_chosen_last(editor: Editor) -> None:
    """Not what an answer says that comes late, nor a run that was queued with another one."""
    load(editor, "avatar_load_subject")
    editor.page.locator(".nested-attention-state").filter(has_text="from 1 picture").wait_for()
    shown = editor.evaluate(LATE, ["chosen.safetensors", "loaded.safetensors"])
    assert shown == ["chosen.safetensors as it is now", "chosen.safetensors after the run"]


def test_a_canvas_that_is_drawn_no_more_is_told_of(editor: Editor) -> None:
    """An exception while it is drawn stops it for good: the tests after that would wait for its pictures."""
    load(editor, "avatar_person")
    editor.evaluate("() => { app.canvas.pause_rendering = true }")
    try:
        with pytest.raises(AssertionError, match="draws its canvas no more"):
            editor.check_canvas()
    finally:
        editor.evaluate("() => { app.canvas.pause_rendering = false }")
    editor.check_canvas()


def test_lists_are_in_the_editors_language_where_it_can_show_that(
    editor: Editor, front_end: FrontEnd
) -> None:
    """And send what they sent. The last test of an editor, which is left as it was."""
    language = "language => app.extensionManager.setting.set('Comfy.Locale', language)"
    widget = """() => app.graph._nodes.find(node => node.type === 'NestedAttentionPersonalize')
        .widgets.find(widget => widget.name === 'likeness')"""
    try:
        editor.evaluate(language, "zh")
        editor.reload()
        load(editor, "avatar_start")
        label, shown, value = editor.evaluate(f"(w => [w.label, w._displayValue, w.value])(({widget})())")
        assert (label, value) == ("相似度", "balanced")
        assert shown == ("balanced" if front_end.searches_names else "均衡")
        if front_end.nodes_2:
            editor.page.locator("[data-node-id]").get_by_text("均衡").first.wait_for()
        sent = [n["inputs"] for n in editor.prompt().values() if "likeness" in n["inputs"]]
        assert [one["likeness"] for one in sent] == ["balanced"]
    finally:
        editor.evaluate(language, "en")
        editor.reload()
