"""A workflow described in a few lines of Python → a file as the editor saves it.

This is where a workflow starts. From then on the file is what counts, and is edited in ComfyUI.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from formats import (
    PREVIEWS,
    Definitions,
    Graph,
    Input,
    inputs_of,
    needed_height,
    new_input,
    new_output,
)

TITLE, GAP, COLUMN_GAP, GROUP_GAP, MARGIN, HEADER = 30, 30, 30, 20, 20, 80
"""Pixels: a node's title, between nodes, columns and groups, around the nodes of a group, above them."""

COLORS = ("#3f789e", "#8A8", "#b58b2a", "#A88", "#88A", "#a1309b")
NOTE = {"color": "#432", "bgcolor": "#653"}
NOTE_WIDTH, NOTE_LETTERS = 760, 145
"""Of a note, and how many letters a line of it takes."""

WIDTH, WIDE = 280, {"SaveImage": 340, "CLIPTextEncode": 300, "NestedAttentionViewMaps": 680}
FREE = (75, 100, 1225, 590)
"""Of a page of 1366 × 768 pixels, what the editor's bars leave free in every front end: left, top, size."""

LETTER = 0.58
"""Width of a letter against the height of its font, in the widest of the fonts that editors take."""

LEGIBLE, LARGE = 0.6, 0.85
"""Scales of the canvas: below the first, the editor draws no texts."""


def _height(markdown: str) -> int:
    """Pixels that a note's text takes in Nodes 2.0, where it takes most. A higher note makes everything
    smaller: the editor opens templates so that all of them is seen."""
    height = 10
    for block in markdown.split("\n\n"):
        for line in block.splitlines():
            letters = re.sub(r"\]\([^)]*\)|[*`]", "", line)  # links show their names alone
            if line.startswith("## "):
                height += 30
            elif line.startswith("|"):
                height += 0 if set(line) <= set("|-") else 24
            else:
                height += 16 * max(1, math.ceil(len(letters) / NOTE_LETTERS))
        height += 10
    return height


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
        return WIDE.get(self.type, WIDTH)

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
    groups: list[Group] = field(default_factory=list)
    numbers: int = 0
    models: list[dict[str, str]] = field(default_factory=list)
    """Files the user has to fetch: name, url, directory. The nodes that load them tell the editor."""

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def group(self, title: str) -> Group:
        """A group to the right of the last one."""
        self.groups.append(Group(title, self))
        return self.groups[-1]

    def editor(self) -> Graph:
        """As the editor saves it."""
        positions, groups, bottom = self._layout()
        view = self._view(positions, groups)
        note = self._note(bottom, FREE[0] / view["scale"] - view["offset"][0])
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
            "extra": {"ds": view, "frontendVersion": "1.27.10"},
            "version": 0.4,
        }

    def _id(self, part: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"nested-attention/{self.name}/{part}"))

    def _layout(self) -> tuple[dict[Node, tuple[int, int]], list[Graph], int]:
        positions, groups, left = {}, [], 0
        for group in self.groups:
            width, height = group.size
            groups.append(
                {
                    "id": len(groups) + 1,
                    "title": group.title,
                    "bounding": [left, 0, width, height],
                    "color": COLORS[len(groups) % len(COLORS)],
                    "font_size": min(24, int((width - 12) / (LETTER * len(group.title)))),
                    "flags": {},
                }
            )
            x = left + MARGIN
            for column in group.columns:
                y = HEADER
                for node in column:
                    positions[node] = (x, y)
                    y += node.height + TITLE + GAP
                x += max((node.width for node in column), default=0) + COLUMN_GAP
            left += width + GROUP_GAP
        return positions, groups, max(group.size[1] for group in self.groups) + GROUP_GAP

    def _view(self, positions: Mapping[Node, tuple[int, int]], groups: list[Graph]) -> Graph:
        """How the editor shows the workflow at first: all of it where that is legible, else the last groups,
        with the sampler and the picture."""
        left, top, width, height = FREE
        boxes = [group["bounding"] for group in groups]
        right = max(x + w for x, _, w, _ in boxes)
        bottom = max(y + h for _, y, _, h in boxes)
        scale = min(max(min(width / right, height / bottom), LEGIBLE), LARGE)
        last = [
            (y, y + node.height)
            for node, (_, y) in positions.items()
            if node.type in ("KSampler", "SaveImage")
        ] or [(0, 0)]
        upper = 0
        if max(end for _, end in last) * scale > height:
            upper = min(last)[0] - HEADER
        across = left / scale if right * scale <= width else (left + width) / scale - right
        down = top / scale if bottom * scale <= height else top / scale - upper
        return {"scale": round(scale, 3), "offset": [round(across), round(down)]}

    def _note(self, bottom: int, left: float) -> Graph:
        """Below the groups, where the view begins."""
        text = f"## {self.heading}\n\n{self.note}"
        return {
            "id": self.numbers + 1,
            "type": "MarkdownNote",
            "pos": [max(0, round(left)), bottom + TITLE + 10],
            "size": [NOTE_WIDTH, 40 + _height(text)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "About this workflow",
            "properties": {},
            "widgets_values": [text],
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
