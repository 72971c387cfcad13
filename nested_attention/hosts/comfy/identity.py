"""Which node is which, in one run and the next.

ComfyUI remembers what a node has put out by the node's class and inputs and by those of all nodes before it.
Ids do not count: the same node has another one in another workflow or in a subgraph. What is kept of a node
longer than a run is kept under its identity, which is made of the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .graph import link_of, nearest_first
from .notices import running_graph, running_node

_last: tuple[Mapping[str, Any], dict[str, str]] = ({}, {})
"""The graph that was asked for last, which is mostly the one that is being run, and its identities."""


def identities(graph: Mapping[str, Any]) -> Mapping[str, str]:
    """The identity of each node, by its id. graph: in API format."""
    global _last
    known = _last
    if known[0] is not graph:
        known = graph, {}
        for node_id in graph:
            _identify(graph, node_id, known[1])
        _last = known
    return known[1]


def running_identity() -> str:
    """The identity of the node that is being run; its id where no graph is known, empty outside of a run.

    A node that another one was expanded into is in no graph, and has that one's.
    """
    at = _in_graph()
    return identities(running_graph() or {}).get(at, at)


def leading() -> list[str]:
    """Identities of the running node and of all that lead to it, the nearest first."""
    graph, at = running_graph() or {}, _in_graph()
    known = identities(graph)
    return [known[one] for one in (at, *nearest_first(graph, at)) if one in known]


def node_called(identity: str, formerly: str) -> str:
    """The id, in the running graph, of the node with this identity, whose id was `formerly` when it ran."""
    known = identities(running_graph() or {})
    if known.get(formerly) == identity:
        return formerly
    return next((node_id for node_id, one in known.items() if one == identity), formerly)


def _in_graph() -> str:
    """The id of the running node, or of the one that was expanded into it."""
    node = running_node()
    return node if node in (running_graph() or {}) else node.split(".")[0]


def _identify(graph: Mapping[str, Any], node_id: str, known: dict[str, str]) -> str:
    if node_id not in known:
        known[node_id] = ""  # for nodes that lead to themselves, which do not run
        node = graph[node_id]
        said = [node.get("class_type")]
        for name, value in sorted(node.get("inputs", {}).items()):
            link = link_of(graph, value)
            said.append([name, value] if link is None else [name, _identify(graph, link[0], known), link[1]])
        text = json.dumps(said, sort_keys=True, default=str)
        known[node_id] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return known[node_id]
