"""The two formats of a workflow: as the editor saves it, and as the server takes it (API format).

A *definition* is a node's entry in the server's `/object_info`: its inputs, outputs and names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from room import grow

Graph = dict[str, Any]
Definitions = Mapping[str, Mapping[str, Any]]

NOTES = {"MarkdownNote", "Note"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PREVIEWS = {
    "PreviewImage": 240,
    "SaveImage": 360,
    "MaskPreview": 200,
    "LoadImage": 240,
    "NestedAttentionPersonalize": 280,
    "NestedAttentionAlignFace": 280,
    "NestedAttentionIsolateSubject": 280,
    "NestedAttentionSaveSubject": 250,
}
"""Pixels that a new node takes for the pictures it shows."""

STATES = {
    "NestedAttentionPersonalize": 76,
    "NestedAttentionApplySubject": 62,
    "NestedAttentionViewMaps": 500,
    "NestedAttentionObserve": 200,
    "NestedAttentionLoadSubject": 160,
}
"""Pixels of the lines, or of the view, in which a node says what it has done, once it has run."""

INPUT_NODE, OUTPUT_NODE = -10, -20
"""What a subgraph's links call its own inputs and outputs."""


@dataclass(frozen=True)
class Input:
    """One input of a node's definition. `kind`: its type, COMBO for every list of choices."""

    name: str
    kind: str
    options: Mapping[str, Any]
    choices: tuple[Any, ...]
    required: bool

    @property
    def is_widget(self) -> bool:
        return self.kind in WIDGETS and not self.options.get("forceInput")

    @property
    def default(self) -> Any:
        """What the editor puts into the widget of a new node."""
        empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
        first = self.choices[0] if self.choices else ""
        return self.options.get("default", empty.get(self.kind, first))


def inputs_of(definition: Mapping[str, Any]) -> list[Input]:
    """In the editor's order."""
    found = []
    for section in ("required", "optional"):
        for name in definition["input_order"].get(section, []):
            kind, *rest = definition["input"][section][name]
            options = dict(rest[0]) if rest else {}
            listed = kind if isinstance(kind, list) else options.get("options", [])
            kind = "COMBO" if isinstance(kind, list) else kind
            found.append(Input(name, kind, options, tuple(listed), section == "required"))
    return found


def widget_values(definition: Mapping[str, Any], values: list[Any]) -> dict[str, Any]:
    """The editor's `widgets_values` by name. Two kinds of widgets bring a second one that is not an input."""
    rest = iter(values)
    named = {}
    for entry in inputs_of(definition):
        if entry.is_widget:
            try:
                named[entry.name] = next(rest)
            except StopIteration:
                break  # saved before the node had this input
            if entry.options.get("control_after_generate") or entry.options.get("image_upload"):
                next(rest, None)
    return named


def graphs_of(editor: Graph) -> Iterator[Graph]:
    """The workflow itself and the subgraphs it defines."""
    yield editor
    yield from editor.get("definitions", {}).get("subgraphs", [])


def to_api(editor: Graph, definitions: Definitions) -> Graph:
    """The same graph in API format, as the editor exports it: nodes inside a subgraph are called 5:2.

    Raises ValueError for what a shipped workflow should not have: nodes switched off, and nodes ComfyUI does
    not know.
    """
    subgraphs = {graph["id"]: graph for graph in editor.get("definitions", {}).get("subgraphs", [])}
    api: Graph = {}
    _flatten(_Level(editor, (), None), subgraphs, definitions, api)
    return dict(sorted(api.items(), key=lambda item: [int(part) for part in item[0].split(":")]))


@dataclass(frozen=True)
class _Level:
    """A graph as it stands inside another one: the ids of the nodes around it, and where it lies."""

    graph: Graph
    path: tuple[int, ...]
    outer: _Level | None

    def node(self, number: int) -> Graph:
        return next(node for node in self.graph["nodes"] if node["id"] == number)

    def source(self, link: int) -> tuple[int, int]:
        """The node and output a link comes from. A workflow's links are lists, a subgraph's are objects."""
        for one in self.graph["links"]:
            if isinstance(one, list) and one[0] == link:
                return one[1], one[2]
            if isinstance(one, dict) and one["id"] == link:
                return one["origin_id"], one["origin_slot"]
        raise ValueError(f"there is no link {link}")


def _flatten(level: _Level, subgraphs: Mapping[str, Graph], definitions: Definitions, api: Graph) -> None:
    for node in level.graph["nodes"]:
        if node["type"] in NOTES:
            continue
        if node["mode"] != 0:
            raise ValueError(f"node {node['id']} ({node['type']}) is bypassed or muted")
        if node["type"] in subgraphs:
            inner = _Level(subgraphs[node["type"]], (*level.path, node["id"]), level)
            _flatten(inner, subgraphs, definitions, api)
            continue
        if node["type"] not in definitions:
            raise ValueError(f"ComfyUI has no node {node['type']}")
        definition = definitions[node["type"]]
        sources = {
            entry["name"]: source
            for entry in node["inputs"]
            if entry["link"] is not None and (source := _resolve(level, entry["link"], subgraphs)) is not None
        }
        values = widget_values(definition, node.get("widgets_values", []))
        title = node.get("title") or definition["display_name"]
        api[":".join(map(str, (*level.path, node["id"])))] = {
            "class_type": node["type"],
            "inputs": {**sources, **{k: v for k, v in values.items() if k not in sources}},
            "_meta": {"title": title},
        }


def _resolve(level: _Level, link: int, subgraphs: Mapping[str, Graph]) -> list[Any] | None:
    """Where a link comes from once subgraphs are taken apart; None if from an unconnected subgraph input."""
    number, slot = level.source(link)
    if number == INPUT_NODE:
        assert level.outer is not None
        name = level.graph["inputs"][slot]["name"]
        entries = level.outer.node(level.path[-1])["inputs"]
        outside = next((e["link"] for e in entries if e["name"] == name), None)
        return None if outside is None else _resolve(level.outer, outside, subgraphs)
    node = level.node(number)
    if node["type"] in subgraphs:
        inner = _Level(subgraphs[node["type"]], (*level.path, number), level)
        ends = [one["id"] for one in inner.graph["links"] if _ends(one, slot)]
        return _resolve(inner, ends[0], subgraphs)
    return [":".join(map(str, (*level.path, number))), slot]


def _ends(link: Mapping[str, Any], slot: int) -> bool:
    return link["target_id"] == OUTPUT_NODE and link["target_slot"] == slot


def update(editor: Graph, definitions: Definitions, version: str) -> Graph:
    """The editor's format with the inputs and outputs that nodes have gained, at their defaults and with room
    for them, and the pack's version. Raises ValueError if a node has lost one: saved workflows are to keep
    working."""
    editor = copy.deepcopy(editor)
    for graph in graphs_of(editor):
        for node in graph["nodes"]:
            if node["type"] in definitions:
                _update_node(node, definitions[node["type"]], version)
                definition = definitions[node["type"]]
                grow(graph, node, needed_height(definition), needed_room(node["type"], definition))
    return editor


def _update_node(node: Graph, definition: Mapping[str, Any], version: str) -> None:
    known = inputs_of(definition)
    entries = {entry["name"]: entry for entry in node["inputs"]}
    lost = set(entries) - {entry.name for entry in known}
    if lost:
        raise ValueError(f"{node['type']} has no input {', '.join(sorted(lost))} any more")
    values = widget_values(definition, node["widgets_values"])
    for entry in known:
        if entry.name not in entries:
            node["inputs"].append(new_input(entry))
        if entry.is_widget and entry.name not in values:
            node["widgets_values"].append(entry.default)
    for index, (kind, name) in enumerate(zip(definition["output"], definition["output_name"], strict=True)):
        if index >= len(node["outputs"]):
            node["outputs"].append(new_output(name, kind))
    if node["type"].startswith("NestedAttention"):
        node["properties"]["ver"] = version


def new_input(entry: Input) -> Graph:
    slot: Graph = {"localized_name": entry.name, "name": entry.name}
    if not entry.required:
        slot["shape"] = 7  # how the editor draws an optional input
    slot["type"] = entry.kind
    if entry.is_widget:
        slot["widget"] = {"name": entry.name}
    return {**slot, "link": None}


def new_output(name: str, kind: str) -> Graph:
    return {"localized_name": name, "name": name, "type": kind, "links": None}


def needed_height(definition: Mapping[str, Any]) -> int:
    """Pixels a node takes below its title, at least, with a line of text in each text box."""
    inputs = inputs_of(definition)
    slots = max(sum(not entry.is_widget for entry in inputs), len(definition["output"]))
    widgets = [entry for entry in inputs if entry.is_widget]
    rows = sum(64 if entry.options.get("multiline") else 24 for entry in widgets)
    seeds = sum(bool(entry.options.get("control_after_generate")) for entry in widgets)
    return 10 + 20 * slots + rows + 24 * seeds + STATES.get(definition.get("name", ""), 0)


def needed_room(kind: str, definition: Mapping[str, Any]) -> int:
    """Pixels a node takes in the newer renderer (Nodes 2.0), at most: with its title, the inputs that are
    folded away at first, the pictures it shows, and a line below it that says a fault or whose node it is."""
    inputs = inputs_of(definition)
    slots = max(sum(not entry.is_widget for entry in inputs), len(definition["output"]))
    room = 68 + 20 * slots
    for entry in inputs:
        if entry.is_widget:
            room += 28 + 40 * bool(entry.options.get("multiline")) + 8 * (entry.kind == "STRING")
            room += 36 * bool(entry.options.get("image_upload"))  # the button
    if kind.startswith("NestedAttention"):
        room += 24  # for what unfolds the rest
    return room + STATES.get(kind, 0) + (232 if kind in PREVIEWS else 0)
