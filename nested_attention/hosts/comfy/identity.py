"""Which node is which, in one run and the next.

ComfyUI remembers what a node has put out by the node's class and inputs and by those of all nodes before it.
Ids do not count: the same node has another one in another workflow or in a subgraph. What is kept of a node
longer than a run is kept under its identity, which is made of the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from .graph import link_of, nearest_first
from .notices import node_in_graph, running_graph

_last: tuple[Mapping[str, Any], dict[str, str]] = ({}, {})
"""The graph that was asked for last, which is mostly the one that is being run, and its identities."""


def identities(graph: Mapping[str, Any]) -> Mapping[str, str]:
    """The identity of each node that can run, by its id. graph: in API format."""
    global _last
    known = _last
    if known[0] is not graph:
        known = _last = graph, _identified(graph)
    return known[1]


def running_identity() -> str:
    """The identity of the node that is being run; its id where no graph is known, empty outside of a run.

    A node that another one was expanded into is in no graph, and has that one's.
    """
    at = node_in_graph()
    return identities(running_graph() or {}).get(at, at)


def leading() -> list[str]:
    """Identities of the running node and of all that lead to it, the nearest first."""
    graph, at = running_graph() or {}, node_in_graph()
    known = identities(graph)
    return [known[one] for one in (at, *nearest_first(graph, at)) if one in known]


def node_called(identity: str, formerly: str) -> str:
    """The id, in the running graph, of the node with this identity, whose id was `formerly` when it ran."""
    known = identities(running_graph() or {})
    if known.get(formerly) == identity:
        return formerly
    return next((node_id for node_id, one in known.items() if one == identity), formerly)


def _identified(graph: Mapping[str, Any]) -> dict[str, str]:
    """Of each node, those first that lead to it. Nodes that lead to themselves have none: they do not run."""
    links = {
        node_id: {name: link_of(graph, value) for name, value in node.get("inputs", {}).items()}
        for node_id, node in graph.items()
    }
    order = TopologicalSorter(
        {node_id: {link[0] for link in own.values() if link} for node_id, own in links.items()}
    )
    with contextlib.suppress(CycleError):
        order.prepare()
    known: dict[str, str] = {}
    while ready := order.get_ready():
        for node_id in ready:
            node, own = graph[node_id], links[node_id]
            inputs = [
                [name, [known[link[0]], link[1]] if (link := own[name]) else value]
                for name, value in sorted(node.get("inputs", {}).items())
            ]
            said = json.dumps([node.get("class_type"), inputs], sort_keys=True, default=str)
            known[node_id] = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
        order.done(*ready)
    return known
