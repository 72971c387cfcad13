"""The pack in ComfyUI's own editor, in a real browser: every workflow opens, and the avatar ones draw."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import BrowserError, Chromium, find_chromium
from PIL import Image

from nested_attention.demo.draw import load_workflow
from nested_attention.demo.server import ComfyServer

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SIZE = (1900, 780)

SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no welcome
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
RUN = "[data-testid=queue-button] button"
READY = f"!!(window.app?.graph && app.extensionManager && document.querySelector('{RUN}'))"
NODES = """app.graph._nodes.flatMap(node => [node, ...(node.subgraph?._nodes ?? [])]).map(node => ({
    id: node.id,
    type: node.type,
    known: node.type in LiteGraph.registered_node_types,
    red: !!node.has_errors || (node.inputs ?? []).some(input => input.hasErrors),
}))"""
SAYS = "[...document.querySelectorAll('.p-dialog, .p-toast-message')].map(shown => shown.innerText)"
PICTURES = """app.graph._nodes.filter(node => node.type === 'SaveImage').map(node =>
    (node.imgs ?? []).filter(image => image.complete && image.naturalWidth).length)"""


@pytest.fixture(scope="module")
def editor(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """ComfyUI's editor as a newly installed browser shows it."""
    program, where = find_chromium()
    assert program, where
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(SETTINGS))
    with Chromium(program, tmp_path_factory.mktemp("chromium"), SIZE) as browser:
        browser.open(server.url)
        browser.wait_for(READY, "ComfyUI's editor", limit_s=180)
        yield browser


def load(editor: Chromium, name: str) -> dict[str, Any]:
    """Opens a workflow, all of it in view, after closing what the one before had to say."""
    editor.evaluate("document.querySelectorAll('.p-dialog-close-button').forEach(button => button.click())")
    editor.wait_for("!document.querySelector('.p-dialog-mask')", "dialogs to close", limit_s=30)
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    editor.evaluate(f"app.loadGraphData({json.dumps(workflow)}, true, true, {json.dumps(name)})")
    editor.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    return dict(workflow)


@pytest.mark.parametrize("name", NAMES)
def test_the_editor_opens_a_workflow_with_no_node_missing(editor: Chromium, name: str) -> None:
    """And would send the server exactly what stands in the API file."""
    workflow = load(editor, name)
    nodes = editor.evaluate(NODES)
    inside = [n for graph in workflow.get("definitions", {}).get("subgraphs", []) for n in graph["nodes"]]
    assert {node["id"] for node in nodes} == {node["id"] for node in [*workflow["nodes"], *inside]}
    assert [node for node in nodes if not node["known"]] == []
    assert [node for node in nodes if node["red"]] == []
    said = editor.evaluate(SAYS)
    if name.startswith("avatar_"):
        assert said == []
    else:  # the user is told which files to fetch, and of nothing else
        assert [text.split("\n")[0] for text in said] == ["Missing Models"]
    assert graph(editor) == load_workflow(name)


@pytest.mark.parametrize("bypassed", [{"person"}, {"person", "pet"}], ids="+".join)
def test_a_bypassed_node_is_as_if_it_were_not_there(editor: Chromium, bypassed: set[str]) -> None:
    """The server gets the graph without it: what it draws then is in test_server.py, beside strength 0."""
    load(editor, "avatar_person_and_pet")
    chain = [n for n, node in load_workflow("avatar_person_and_pet").items() if node["class_type"] == APPLY]
    encoders = {n: node["inputs"]["encoder"] for n, node in graph(editor).items() if n in chain}
    names = {n: graph(editor)[encoders[n][0]]["inputs"]["encoder_name"] for n in chain}
    off = {n for n in chain if any(f"/{kind}_" in names[n] for kind in bypassed)}
    assert len(off) == len(bypassed)
    for number in off:
        editor.evaluate(f"void (app.graph.getNodeById({number}).mode = 4)")
    left = graph(editor)
    assert {n for n, node in left.items() if node["class_type"] == APPLY} == set(chain) - off
    world = next(n for n, node in left.items() if node["class_type"] == "NestedAttentionDemoWorld")
    last = next((n for n in chain if n not in off), world)
    for kind, name, output in (("KSampler", "model", 0), ("CLIPTextEncode", "clip", 1)):
        wires = [node["inputs"][name] for node in left.values() if node["class_type"] == kind]
        assert wires and all(wire == [last, output] for wire in wires)
    for number in set(chain) - off:
        assert left[number]["inputs"]["model"] == [world, 0]
        assert left[number]["inputs"]["clip"] == [world, 1]


APPLY = "NestedAttentionApplySubject"


def graph(editor: Chromium) -> dict[str, Any]:
    """What the editor would send the server."""
    return dict(editor.evaluate("app.graphToPrompt().then(prompt => prompt.output)"))


@pytest.mark.parametrize("name", ["avatar_person", "avatar_person_and_pet"])
def test_queued_in_the_editor_the_picture_appears(
    editor: Chromium, name: str, request: pytest.FixtureRequest
) -> None:
    keep = bool(request.config.getoption("--editor-screenshot")) and name == "avatar_person"
    load(editor, name)
    if not keep:  # two steps are enough to see that it runs
        set_widget(editor, "steps", 2)
    assert editor.evaluate(PICTURES) == [0]
    editor.click(RUN)
    editor.wait_for(f"(p => p.length && p.every(n => n === 4))({PICTURES})", "four pictures", limit_s=300)
    assert editor.evaluate(SAYS) == []
    assert [node for node in editor.evaluate(NODES) if node["red"]] == []
    if keep:  # large enough that the editor writes on the nodes
        editor.evaluate("void Object.assign(app.canvas.ds, {scale: 0.69, offset: [38, 225]})")
        editor.evaluate("void app.canvas.setDirty(true, true)")
        time.sleep(2)
    shown = editor.screenshot()
    with Image.open(io.BytesIO(shown)) as picture:
        assert picture.size == SIZE
        if keep:
            small = picture.convert("RGB").quantize(160, dither=Image.Dither.NONE)
            small.save(ROOT / "docs" / "editor.png", optimize=True)


def test_a_prompt_without_the_word_shows_its_reason(editor: Chromium) -> None:
    """What the user reads when the subject would be missing from the picture."""
    load(editor, "avatar_person")
    set_widget(editor, "steps", 2)
    set_widget(editor, "text", "a photo of a lamp in a room")
    editor.click(RUN)
    shown = editor.wait_for(f"{SAYS}.join()", "the error", limit_s=300)
    assert "Apply Subject" in shown
    assert "'person'" in shown
    assert "lamp" in shown


def runs(group: int) -> bool:
    """Whether a process of the group is there; killed ones are until the system has seen to them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def set_widget(editor: Chromium, widget: str, value: Any) -> None:
    """The same value in every widget of a name."""
    editor.evaluate(
        "for (const node of app.graph._nodes) for (const widget of node.widgets ?? [])"
        f" if (widget.name === {json.dumps(widget)}) widget.value = {json.dumps(value)}"
    )


def test_a_browser_ends_and_leaves_nothing_running(comfyui: Path, tmp_path: Path) -> None:
    """At the end of its block, and by itself when whoever held its pipe is gone."""
    program, where = find_chromium()
    assert program, where
    with Chromium(program, tmp_path / "first") as browser:
        assert browser.evaluate("1 + 1") == 2
        with pytest.raises(BrowserError, match="no answer in time"):
            browser.evaluate("new Promise(() => {})", limit_s=0.5)
        with pytest.raises(BrowserError, match="waited 1 s for rain in vain"):
            browser.wait_for("false", "rain", limit_s=1)
        group = browser.pid
    end = time.monotonic() + 30
    while runs(group):
        assert time.monotonic() < end, "Chromium's helpers are still there"
        time.sleep(0.1)

    orphan = Chromium(program, tmp_path / "second").__enter__()
    orphan.close_pipes()
    assert orphan.wait(limit_s=30)
    orphan.__exit__(None, None, None)
