"""Some nodes of a workflow as a subgraph, as the editor saves it."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from draft import WIDTH
from formats import INPUT_NODE, OUTPUT_NODE, Graph


def into_subgraph(
    editor: Graph,
    title: str,
    numbers: set[int],
    name: str,
    position: list[int],
    exposed: Collection[tuple[str, str]] = (),
) -> Graph:
    """The workflow with these nodes moved into a subgraph, as the editor's *Convert to Subgraph* does.

    Links that come from outside become inputs of it, one an output they read; links to outside, outputs.
    exposed: types of nodes and names of their widgets that become inputs, and widgets, of the subgraph too.
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
    widgets, values = [], []
    for kind, widget in exposed:
        node = next(node for node in inside if node["type"] == kind)
        index = next(at for at, entry in enumerate(node["inputs"]) if entry["name"] == widget)
        entry, last = node["inputs"][index], last + 1
        entry["link"] = last
        inner.append((last, INPUT_NODE, len(entries), node["id"], index, entry["type"]))
        entries[node["id"], widget] = [widget, entry["type"], None, [last]]
        widgets.append(widget)
        named = [one["name"] for one in node["inputs"] if "widget" in one]
        values.append(node["widgets_values"][named.index(widget)])
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
        "size": [WIDTH, 40 + 24 * (len(entries) + len(exits))],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {
                "name": slot[0],
                "type": slot[1],
                **({"widget": {"name": slot[0]}} if slot[0] in widgets else {}),
                "link": slot[2],
            }
            for slot in entries.values()
        ],
        "outputs": [{"name": slot[0], "type": slot[1], "links": slot[2]} for slot in exits.values()],
        "title": title,
        "properties": {"proxyWidgets": []},
        "widgets_values": values,
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
