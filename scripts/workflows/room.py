"""Room for nodes that have grown: what lies below them moves down, and their groups grow with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLE = 30
"""Pixels of the title, which is drawn above a node's position."""

GAP = 20
"""Pixels between two nodes, and between a node and the lower edge of its group."""


def grow(graph: Mapping[str, Any], node: Mapping[str, Any], height: float, room: float = 0) -> None:
    """Make `node` at least `height` pixels high, below its title, and leave it at least `room` pixels, its
    title included. Where that takes more than there is, everything that lies wholly below it, in all columns,
    moves down by what is missing, so that rows stay rows."""
    left, top = node["pos"]
    width, before = node["size"]
    node["size"][1] = max(height, before)
    old, new = top + before, max(top + node["size"][1], top - TITLE + room)
    groups = [group["bounding"] for group in graph.get("groups", ())]
    around = [box for box in groups if _contains(box, left, top, left + width, old)]
    below = [
        other["pos"][1] - TITLE
        for other in graph["nodes"]
        if other["pos"][1] - TITLE >= old and _side_by_side(left, width, other["pos"][0], other["size"][0])
    ]
    below += [y for x, y, w, _ in groups if y >= old and _side_by_side(left, width, x, w)]
    needs = [new + GAP - y for y in below] + [new + GAP - (box[1] + box[3]) for box in around]
    shift = max(needs, default=0)
    if shift <= 0:
        return
    for other in graph["nodes"]:
        if other["pos"][1] - TITLE >= old:
            other["pos"][1] += shift
    for box in groups:
        if box[1] >= old:
            box[1] += shift
        elif box[1] + box[3] > old:
            box[3] += shift


def _contains(box: list[float], left: float, top: float, right: float, bottom: float) -> bool:
    x, y, w, h = box
    return x <= left and y <= top and right <= x + w and bottom <= y + h


def _side_by_side(x: float, width: float, other_x: float, other_width: float) -> bool:
    return x < other_x + other_width and other_x < x + width
