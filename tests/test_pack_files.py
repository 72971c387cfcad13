"""The tools that keep node definitions and translations in files: what they notice, and what they refuse."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Script = Callable[[str], ModuleType]

NODE: dict[str, Any] = {
    "display_name": "A Node",
    "description": "Does what it does with λ.",
    "input": {
        "required": {
            "model": ["MODEL", {"tooltip": "A model."}],
            "size": ["INT", {"default": 8, "tooltip": "Pixels a side."}],
        },
        "optional": {
            "scale": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "tooltip": "From 0 to 2."}],
            "mode": ["COMBO", {"default": "a", "options": ["a", "b"], "tooltip": "Write <alice> for a."}],
        },
    },
    "input_order": {"required": ["model", "size"], "optional": ["scale", "mode"]},
    "output": ["MODEL"],
    "output_name": ["MODEL"],
    "output_tooltips": ["A changed model."],
}


def changed(**paths: Any) -> dict[str, Any]:
    """The node with other options for one of its inputs."""
    node = copy.deepcopy(NODE)
    for name, options in paths.items():
        node["input"]["optional"][name][1].update(options)
    return {"Node": node}


def grown(*names: str, section: str = "optional", first: bool = False) -> dict[str, Any]:
    node = copy.deepcopy(NODE)
    for name in names:
        node["input"][section][name] = ["FLOAT", {"default": 0.0}]
        order = node["input_order"][section]
        order.insert(0 if first else len(order), name)
    return {"Node": node}


def without(name: str) -> dict[str, Any]:
    node = copy.deepcopy(NODE)
    node["input_order"]["optional"].remove(name)
    return {"Node": node}


def moved_back(name: str) -> dict[str, Any]:
    """The node with an input that no longer has to be there, behind those that have to."""
    node = copy.deepcopy(NODE)
    node["input"]["optional"][name] = node["input"]["required"].pop(name)
    node["input_order"] = {section: list(inputs) for section, inputs in node["input"].items()}
    return {"Node": node}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, "Node is gone"),
        (without("scale"), "input 'scale' is gone"),
        (changed(scale={"default": 0.5}), "default of input 'scale' was 1.0, is 0.5"),
        (changed(scale={"max": 1.0}), "input 'scale' allowed 0.0 to 2.0, allows 0.0 to 1.0"),
        (changed(mode={"options": ["a"]}), "input 'mode' no longer offers ['b']"),
        (grown("new", first=True), "put before older ones"),
        (grown("new", section="required"), "the new input 'new' is required"),
        (moved_back("size"), "required of input 'size' was True, is False"),
        ({"Node": {**NODE, "output": ["CLIP"], "output_name": ["CLIP"]}}, "output 0 was"),
    ],
)
def test_a_change_that_breaks_saved_workflows_is_named(
    script: Script, now: dict[str, Any], said: str
) -> None:
    snapshots = script("node_snapshot.py")
    before = snapshots.snapshot({"Node": NODE})
    assert any(said in line for line in snapshots.broken(before, snapshots.snapshot(now)))


@pytest.mark.parametrize(
    "now",
    [
        grown("new"),
        {"Node": NODE, "Other": NODE},
        changed(mode={"options": ["a", "b", "c"]}),
        moved_back("model"),
    ],
)
def test_an_addition_only_wants_a_new_snapshot(script: Script, now: dict[str, Any]) -> None:
    snapshots = script("node_snapshot.py")
    before = snapshots.snapshot({"Node": NODE})
    assert list(snapshots.broken(before, snapshots.snapshot(now))) == []
    assert snapshots.added(before, snapshots.snapshot(now))
    assert not snapshots.added(before, before)


def test_the_snapshot_is_not_written_over_a_break(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = script("node_snapshot.py")
    monkeypatch.setattr(snapshots, "SNAPSHOT", tmp_path / "snapshot.json")
    monkeypatch.setattr(snapshots, "load_definitions", lambda: {"Node": NODE})
    snapshots.main()
    written = (tmp_path / "snapshot.json").read_text()
    monkeypatch.setattr(snapshots, "load_definitions", lambda: without("scale"))
    with pytest.raises(SystemExit, match="(?s)Not written.*input 'scale' is gone"):
        snapshots.main()
    assert (tmp_path / "snapshot.json").read_text() == written


@pytest.fixture
def locales(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, on a folder of its own."""
    module = script("locales.py")
    monkeypatch.setattr(module, "LOCALES", tmp_path)
    monkeypatch.setattr(module, "SOURCES", tmp_path / "sources.json")
    return module


def test_texts_have_the_shape_comfyui_reads(locales: ModuleType) -> None:
    nodes = locales.english({"Node": NODE})
    assert nodes["Node"]["inputs"]["scale"] == {"name": "scale", "tooltip": "From 0 to 2."}
    assert nodes["Node"]["outputs"]["0"] == {"name": "MODEL", "tooltip": "A changed model."}
    assert locales.tree(locales.flat(nodes)) == nodes


def translations(locales: ModuleType, texts: dict[str, str]) -> dict[str, str]:
    return {path: f"ü {text}" for path, text in texts.items()}


def test_what_is_missing_is_filled_in_and_a_reworded_text_comes_back(locales: ModuleType) -> None:
    texts = locales.flat(locales.english({"Node": NODE}))
    assert locales.missing("de", texts) == texts
    locales.fill("de", translations(locales, texts), texts)
    assert locales.missing("de", texts) == {}
    assert list(locales.problems("de", texts)) == []
    path = "Node/inputs/model/tooltip"
    reworded = {**texts, path: "Another model."}
    assert locales.missing("de", reworded) == {path: "Another model."}
    assert list(locales.problems("de", reworded)) == [f"de: {path} is made from another English text"]
    locales.fill("de", {path: "Ein anderes Modell."}, reworded)
    assert list(locales.problems("de", reworded)) == []
    with pytest.raises(SystemExit, match="no node has Other/description"):
        locales.fill("de", {"Other/description": "x"}, texts)


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("Node/inputs/mode/tooltip", "Schreib alice.", "differ in <alice>"),
        ("Node/inputs/scale/tooltip", "Von 0 bis 3.", "differ in 2, 3"),
        ("Node/description", "Macht es.", "differ in λ"),
        ("Node/inputs/model/tooltip", "Ein {model}.", "syntax"),
        ("Node/inputs/model/tooltip", "A model.", "is the English text"),
    ],
)
def test_a_translation_that_loses_something_is_named(
    locales: ModuleType, path: str, text: str, said: str
) -> None:
    texts = locales.flat(locales.english({"Node": NODE}))
    locales.fill("de", {**translations(locales, texts), path: text}, texts)
    (problem,) = locales.problems("de", texts)
    assert path in problem
    assert said in problem


def test_stale_keys_are_named(locales: ModuleType, tmp_path: Path) -> None:
    texts = locales.flat(locales.english({"Node": NODE}))
    locales.fill("de", translations(locales, texts), texts)
    stored = json.loads((tmp_path / "de" / "nodeDefs.json").read_text(encoding="utf-8"))
    stored["Gone"] = {"description": "weg"}
    (tmp_path / "de" / "nodeDefs.json").write_text(json.dumps(stored))
    assert list(locales.problems("de", texts)) == ["de: Gone/description is stale: no node has it"]
