"""What can be told of a graph before all of it has run: which samplers use a MODEL with which subjects, and
which texts are encoded with a CLIP that knows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Applier:
    """A node that attaches subjects, for messages. title: as the editor shows it. may_warn: whether it has
    an input `when_missing`."""

    title: str
    may_warn: bool = False


APPLY_SUBJECT = Applier("Apply Subject", may_warn=True)
PERSONALIZE = Applier("Person or Pet in Picture")
SHEET = Applier("Subject Sheet")

APPLY = {"NestedAttentionApplySubject": APPLY_SUBJECT, "NestedAttentionPersonalize": PERSONALIZE}
"""Nodes that attach a subject. The first output of each is the MODEL."""

CARRIED_ON = {"MODEL", "CLIP", "VAE", "NESTED_ATTENTION_MAPS"}
"""Outputs of nodes that change a MODEL or a CLIP and do not use it, such as loaders of LoRAs. Maps are what
Observe Subjects puts out besides: it samples nothing either."""

ANY_TYPE = {"*", "COMFY_MATCHTYPE_V3"}
"""Outputs whose type is that of what is connected, such as a switch's."""

TEXTS = {
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("text_g", "text_l"),
    "NestedAttentionMarkPrompt": ("text",),
}
"""Nodes that read exactly the texts of these inputs."""


def samples_personalised(graph: Mapping[str, Any], by: str | None = None) -> bool:
    """Whether a MODEL output of Apply Subject leads to a node that may sample with it.

    graph: in API format. by: the id of one such node; None: any of them. In doubt it does: what a node does
    with a MODEL is told by its outputs alone.
    """
    reached = [(node_id, 0) for node_id in _applying(graph) if by in (None, node_id)]
    seen = set(reached)
    while reached:
        at = reached.pop()
        for node_id, node in graph.items():
            if at not in _links(graph, node_id):
                continue
            outputs = _outputs(node.get("class_type"))
            if not _carries_on(node.get("class_type"), outputs):
                return True
            models = {(node_id, slot) for slot, kind in enumerate(outputs) if _may_be("MODEL", kind)} - seen
            seen |= models
            reached += models
    return False


def encoded_texts(graph: Mapping[str, Any]) -> list[str] | None:
    """All texts that are encoded with a CLIP of Apply Subject; None if a node may read another one."""
    texts: list[str] = []
    reached = _applying(graph)
    seen = set(reached)
    for at in reached:
        types = _outputs(graph[at].get("class_type"))
        clips = [slot for slot, kind in enumerate(types) if _may_be("CLIP", kind)]
        for node_id, node in graph.items():
            if not any((at, slot) in _links(graph, node_id) for slot in clips):
                continue
            kind = node.get("class_type")
            outputs = _outputs(kind)
            if kind in TEXTS:
                texts += [node["inputs"].get(name) for name in TEXTS[kind]]
            elif "CLIP" not in outputs or not _carries_on(kind, outputs):
                return None
            elif node_id not in seen:
                seen.add(node_id)
                reached.append(node_id)
    return texts if all(isinstance(text, str) for text in texts) else None


def is_negative(graph: Mapping[str, Any], node_id: str) -> bool:
    """Whether a prompt goes nowhere but into inputs for a negative one."""
    names = {
        name
        for node in graph.values()
        for name, value in node.get("inputs", {}).items()
        if isinstance(value, list) and value[:1] == [node_id]
    }
    return names == {"negative"}


def merged_away(graph: Mapping[str, Any], node_id: str) -> set[str]:
    """Ids of the Apply Subject nodes whose MODEL leads to a node through another that merges models, and may
    keep the subjects of one of them alone."""
    merges = [one for one in _before(graph, node_id, _linked) if _merges(graph, one)]
    applying = set(_applying(graph))
    return {one for merge in merges for one in _before(graph, merge, _models) & applying}


def _carries_on(kind: Any, outputs: tuple[str, ...]) -> bool:
    """Whether a node changes the MODEL or CLIP it is given, and does not use it."""
    return kind in APPLY or (bool(outputs) and set(outputs) <= CARRIED_ON | ANY_TYPE)


def _applying(graph: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes that attach a subject."""
    return [node_id for node_id, node in graph.items() if node.get("class_type") in APPLY]


def nearest_first(graph: Mapping[str, Any], node_id: str) -> Iterator[str]:
    """Ids of the nodes that lead to a node, those over the fewest links first."""
    ahead, seen = [node_id], {node_id}
    while ahead:
        ahead = list(dict.fromkeys(one for at in ahead for one, _ in _links(graph, at) if one not in seen))
        seen.update(ahead)
        yield from ahead


def _before(
    graph: Mapping[str, Any], node_id: str, links: Callable[[Mapping[str, Any], str], list[str]]
) -> set[str]:
    """Ids of the nodes from which links lead to a node, over however many others. Not past a switch between
    MODELs, of which nobody knows which one it passes on."""
    found: set[str] = set()
    ahead = [node_id]
    while ahead:
        at = ahead.pop()
        if len(_models(graph, at)) < 2 or _merges(graph, at):
            more = set(links(graph, at)) - found
            found |= more
            ahead += more
    return found


def _models(graph: Mapping[str, Any], node_id: str) -> list[str]:
    """Ids of the nodes whose MODEL a node takes, if it puts out a MODEL itself."""
    if not any(_may_be("MODEL", kind) for kind in _outputs(graph.get(node_id, {}).get("class_type"))):
        return []
    return [
        one
        for one, slot in _links(graph, node_id)
        if any(_may_be("MODEL", k) for k in _outputs(graph[one].get("class_type"))[slot : slot + 1])
    ]


def _merges(graph: Mapping[str, Any], node_id: str) -> bool:
    """Whether a node makes one MODEL of several, where a switch passes one of them on as it is.

    Both take and put out the same, so merges are told by their name, or by their menu: ComfyUI has one for
    merging.
    """
    kind = graph[node_id].get("class_type")
    called = f"{kind} {getattr(_node_class(kind), 'CATEGORY', '')}".lower()
    return "merg" in called and len(_models(graph, node_id)) > 1


def _linked(graph: Mapping[str, Any], node_id: str) -> list[str]:
    """Ids of the nodes that a node is linked to by its inputs."""
    return [one for one, _ in _links(graph, node_id)]


def _may_be(wanted: str, kind: str) -> bool:
    """Whether an output of that type gives what is wanted."""
    return kind == wanted or kind in ANY_TYPE


def _links(graph: Mapping[str, Any], node_id: str) -> list[tuple[str, int]]:
    """What a node is linked to by its inputs: ids of nodes, and which of their outputs."""
    values = graph.get(node_id, {}).get("inputs", {}).values()
    return [link for value in values if (link := link_of(graph, value)) is not None]


def link_of(graph: Mapping[str, Any], value: Any) -> tuple[str, int] | None:
    """The id of the node that an input's value is a link to, and which of its outputs; None if it is none."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    node_id, slot = str(value[0]), value[1]
    return (node_id, slot) if node_id in graph and isinstance(slot, int) else None


def _outputs(class_type: Any) -> tuple[str, ...]:
    """Types of a node's outputs; none if it is not known."""
    return tuple(map(str, getattr(_node_class(class_type), "RETURN_TYPES", ()) or ()))


def _node_class(class_type: Any) -> Any:
    """None if it is not known."""
    module = sys.modules.get("nodes")  # ComfyUI's; it runs the graph
    return getattr(module, "NODE_CLASS_MAPPINGS", {}).get(class_type)
