"""A workflow described in a few lines of Python → a file as the editor saves it.

This is where a workflow starts. From then on the file is what counts, and is edited in ComfyUI.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from formats import (
    INPUT_NODE,
    OUTPUT_NODE,
    PREVIEWS,
    Definitions,
    Graph,
    Input,
    inputs_of,
    needed_height,
    new_input,
    new_output,
)

TITLE, GAP, COLUMN_GAP, MARGIN, HEADER = 30, 40, 80, 20, 80
"""Pixels: a node's title, between nodes, between columns, around the nodes of a group, above them."""

COLORS = ("#3f789e", "#8A8", "#b58b2a", "#A88", "#88A", "#a1309b")
NOTE = {"color": "#432", "bgcolor": "#653"}
WIDE = {"SaveImage": 420, "NestedAttentionViewMaps": 680}


@dataclass(frozen=True)
class Slot:
    """An output of a node of the draft."""

    node: Node
    index: int

    @property
    def kind(self) -> str:
        return str(self.node.definition["output"][self.index])


@dataclass(eq=False)
class Node:
    number: int
    type: str
    definition: Any
    given: dict[str, Any]
    title: str | None
    color: dict[str, str]

    def __getitem__(self, name: str) -> Slot:
        return Slot(self, self.definition["output_name"].index(name))

    @property
    def out(self) -> Slot:
        """Its only output."""
        assert len(self.definition["output"]) == 1, self.type
        return Slot(self, 0)

    @property
    def inputs(self) -> list[Input]:
        return inputs_of(self.definition)

    @property
    def width(self) -> int:
        return WIDE.get(self.type, 320)

    @property
    def height(self) -> int:
        text = any(entry.options.get("multiline") for entry in self.inputs)
        return needed_height(self.definition) + PREVIEWS.get(self.type, 0) + 60 * text


@dataclass(eq=False)
class Group:
    """Nodes in columns, in a frame with a title."""

    title: str
    draft: Draft
    columns: list[list[Node]] = field(default_factory=lambda: [[]])

    def add(self, type: str, title: str | None = None, **given: Any) -> Node:
        """A node below the last one of the column. `given`: values of widgets, Slots for inputs."""
        definition = self.draft.definitions[type]
        unknown = set(given) - {entry.name for entry in inputs_of(definition)}
        assert not unknown, f"{type} has no input {unknown}"
        color = {}
        if type == "CLIPTextEncode":
            negative = title == "Negative prompt"
            color = {"color": "#322", "bgcolor": "#533"} if negative else {"color": "#232", "bgcolor": "#353"}
        node = Node(self.draft.next_number(), type, definition, given, title, color)
        self.columns[-1].append(node)
        self.draft.nodes.append(node)
        return node

    def column(self) -> None:
        """What is added from now on stands to the right."""
        self.columns.append([])

    @property
    def size(self) -> tuple[int, int]:
        widths = [max((node.width for node in column), default=0) for column in self.columns]
        heights = [sum(node.height + TITLE + GAP for node in column) - GAP for column in self.columns]
        inside = sum(widths) + COLUMN_GAP * (len(widths) - 1)
        return inside + 2 * MARGIN, max(heights) + HEADER - TITLE + MARGIN + 10


@dataclass(eq=False)
class Draft:
    """name: the file's, for its ids. heading, note: what stands beside the graph, in Markdown."""

    name: str
    heading: str
    note: str
    definitions: Definitions
    version: str
    core_version: str
    nodes: list[Node] = field(default_factory=list)
    rows: list[list[Group]] = field(default_factory=lambda: [[]])
    numbers: int = 0
    models: list[dict[str, str]] = field(default_factory=list)
    """Files the user has to fetch: name, url, directory. The nodes that load them tell the editor."""

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def group(self, title: str) -> Group:
        """A group to the right of the last one."""
        self.rows[-1].append(Group(title, self))
        return self.rows[-1][-1]

    def row(self) -> None:
        """Groups from now on stand below."""
        self.rows.append([])

    def editor(self) -> Graph:
        """As the editor saves it."""
        positions, groups, bottom = self._layout()
        note = self._note(bottom)
        nodes, links = self._nodes(positions)
        return {
            "id": self._id("workflow"),
            "revision": 0,
            "last_node_id": note["id"],
            "last_link_id": len(links),
            "nodes": [note, *nodes],
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [60, 120]}, "frontendVersion": "1.27.10"},
            "version": 0.4,
        }

    def _id(self, part: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"nested-attention/{self.name}/{part}"))

    def _layout(self) -> tuple[dict[Node, tuple[int, int]], list[Graph], int]:
        positions, groups, top = {}, [], 0
        for row in self.rows:
            left = 0
            for group in row:
                width, height = group.size
                groups.append(
                    {
                        "id": len(groups) + 1,
                        "title": group.title,
                        "bounding": [left, top, width, height],
                        "color": COLORS[len(groups) % len(COLORS)],
                        "font_size": 24,
                        "flags": {},
                    }
                )
                x = left + MARGIN
                for column in group.columns:
                    y = top + HEADER
                    for node in column:
                        positions[node] = (x, y)
                        y += node.height + TITLE + GAP
                    x += max((node.width for node in column), default=0) + COLUMN_GAP
                left += width + GAP
            top += max(group.size[1] for group in row) + GAP
        return positions, groups, top

    def _note(self, bottom: int) -> Graph:
        lines = self.note.count("\n") + len(self.note) // 90 + 4
        return {
            "id": self.numbers + 1,
            "type": "MarkdownNote",
            "pos": [0, bottom + TITLE + 10],
            "size": [760, max(160, 24 * lines)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "About this workflow",
            "properties": {},
            "widgets_values": [f"## {self.heading}\n\n{self.note}"],
            **NOTE,
        }

    def _nodes(self, positions: dict[Node, tuple[int, int]]) -> tuple[list[Graph], list[list[Any]]]:
        links: list[list[Any]] = []
        outgoing: dict[Slot, list[int]] = {}
        saved = []
        for node in self.nodes:
            entries = []
            for index, entry in enumerate(node.inputs):
                slot = new_input(entry)
                source = node.given.get(entry.name)
                if isinstance(source, Slot):
                    number = len(links) + 1
                    links.append([number, source.node.number, source.index, node.number, index, source.kind])
                    outgoing.setdefault(source, []).append(number)
                    slot["link"] = number
                entries.append(slot)
            saved.append(self._node(node, positions[node], entries))
        for node, one in zip(self.nodes, saved, strict=True):
            for index, slot in enumerate(one["outputs"]):
                slot["links"] = outgoing.get(Slot(node, index))
        self._order(saved)
        return saved, links

    def _node(self, node: Node, position: tuple[int, int], entries: list[Graph]) -> Graph:
        ours = node.type.startswith("NestedAttention")
        pack = ("nested-attention", self.version) if ours else ("comfy-core", self.core_version)
        values = []
        for entry in node.inputs:
            if entry.is_widget:
                given = node.given.get(entry.name, entry.default)
                values.append(entry.default if isinstance(given, Slot) else given)
                if entry.options.get("control_after_generate"):
                    values.append("fixed")
                if entry.options.get("image_upload"):
                    values.append("image")
        names = zip(node.definition["output_name"], node.definition["output"], strict=True)
        wanted = [model for model in self.models if model["name"] in values]
        titled = {} if node.title is None else {"title": node.title}
        return {
            "id": node.number,
            "type": node.type,
            "pos": list(position),
            "size": [node.width, node.height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": entries,
            "outputs": [new_output(name, kind) for name, kind in names],
            "properties": {
                "cnr_id": pack[0],
                "ver": pack[1],
                "Node name for S&R": node.type,
                **({"models": wanted} if wanted else {}),
            },
            "widgets_values": values,
            **titled,
            **node.color,
        }

    @staticmethod
    def _order(saved: list[Graph]) -> None:
        """The order of execution, after the note's 0. Nodes are added after the ones they read from."""
        for order, node in enumerate(saved, start=1):
            node["order"] = order


def into_subgraph(editor: Graph, title: str, numbers: set[int], name: str, position: list[int]) -> Graph:
    """The workflow with these nodes moved into a subgraph, as the editor's *Convert to Subgraph* does.

    Links that come from outside become inputs of it, one an output they read; links to outside, outputs.
    """
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"nested-attention/subgraph/{name}"))
    inside = [node for node in editor["nodes"] if node["id"] in numbers]
    outside = [node for node in editor["nodes"] if node["id"] not in numbers]
    instance = max(node["id"] for node in editor["nodes"]) + 1
    kept, inner, entries, exits = [], [], {}, {}
    for number, source, output, target, entry, kind in editor["links"]:
        names = {node["id"]: node for node in editor["nodes"]}
        if source in numbers and target in numbers:
            inner.append((number, source, output, target, entry, kind))
        elif target in numbers:
            wanted = names[target]["inputs"][entry]["name"]
            slot = entries.setdefault((source, output), [wanted, kind, number, []])
            slot[3].append(number)
            inner.append((number, INPUT_NODE, list(entries).index((source, output)), target, entry, kind))
        elif source in numbers:
            slot = exits.setdefault(
                (source, output), [names[source]["outputs"][output]["name"], kind, [], []]
            )
            slot[2].append(number)
            kept.append([number, instance, list(exits).index((source, output)), target, entry, kind])
        else:
            kept.append([number, source, output, target, entry, kind])
    last = editor["last_link_id"]
    for index, ((source, output), slot) in enumerate(exits.items()):
        last += 1
        slot[3].append(last)
        inner.append((last, source, output, OUTPUT_NODE, index, slot[1]))
        for node in inside:
            if node["id"] == source:
                own = [n for n in node["outputs"][output]["links"] if n not in slot[2]]
                node["outputs"][output]["links"] = [*own, last]
    for index, ((source, output), (_, kind, number, gone)) in enumerate(entries.items()):
        last += 1  # the outer link; those inside keep their numbers
        kept.append([last, source, output, instance, index, kind])
        entries[source, output][2] = last
        for node in outside:
            if node["id"] == source:
                own = [n for n in node["outputs"][output]["links"] if n not in gone]
                node["outputs"][output]["links"] = [*own, last]
        assert number in gone
    box = [min(n["pos"][0] for n in inside), min(n["pos"][1] for n in inside)]
    right = max(n["pos"][0] + n["size"][0] for n in inside)
    definition = {
        "id": identity,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": instance, "lastLinkId": last, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": title,
        "inputNode": {"id": INPUT_NODE, "bounding": [box[0] - 200, box[1], 120, 40 + 20 * len(entries)]},
        "outputNode": {"id": OUTPUT_NODE, "bounding": [right + 80, box[1], 120, 40 + 20 * len(exits)]},
        "inputs": [
            {
                "id": str(uuid.uuid5(uuid.UUID(identity), f"in {index}")),
                "name": slot[0],
                "type": slot[1],
                "linkIds": slot[3],
                "localized_name": slot[0],
                "pos": [box[0] - 100, box[1] + 20 + 20 * index],
            }
            for index, slot in enumerate(entries.values())
        ],
        "outputs": [
            {
                "id": str(uuid.uuid5(uuid.UUID(identity), f"out {index}")),
                "name": slot[0],
                "type": slot[1],
                "linkIds": slot[3],
                "localized_name": slot[0],
                "pos": [right + 100, box[1] + 20 + 20 * index],
            }
            for index, slot in enumerate(exits.values())
        ],
        "widgets": [],
        "nodes": inside,
        "groups": [],
        "links": [
            dict(
                zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), one, strict=True)
            )
            for one in inner
        ],
        "extra": {},
    }
    node = {
        "id": instance,
        "type": identity,
        "pos": position,
        "size": [320, 40 + 20 * max(len(entries), len(exits))],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": slot[0], "type": slot[1], "link": slot[2]} for slot in entries.values()],
        "outputs": [{"name": slot[0], "type": slot[1], "links": slot[2]} for slot in exits.values()],
        "title": title,
        "properties": {"proxyWidgets": []},
        "widgets_values": [],
    }
    nodes = _ordered([*outside, node], kept)
    return {
        **editor,
        "last_node_id": instance,
        "last_link_id": last,
        "nodes": nodes,
        "links": kept,
        "definitions": {"subgraphs": [definition]},
    }


def _ordered(nodes: list[Graph], links: list[list[Any]]) -> list[Graph]:
    """With `order` set to an order of execution."""
    waiting = {node["id"]: {link[1] for link in links if link[3] == node["id"]} for node in nodes}
    done: list[int] = []
    while waiting:
        ready = [number for number, sources in waiting.items() if sources <= set(done)]
        assert ready, "the workflow goes round in circles"
        done += ready
        for number in ready:
            del waiting[number]
    for node in nodes:
        node["order"] = done.index(node["id"])
    return nodes
