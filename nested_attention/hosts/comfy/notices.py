"""Warnings, where they are seen: in the log, and on the node that is being run.

A picture that lacks its subject looks like any other. Whoever draws in the editor does not read the log.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from comfy_execution.utils import get_executing_context

EVENT = "nested_attention.warning"
"""The message that web/nested_attention.js shows under the pack's name: `node`, the running node's id, and
`text`.

`shown` is all that is to stand on the node: web/notices.js puts it there, where the workflow of the run is
open, and takes it away when the node runs again. ComfyUI's own way of it goes to whichever node has the id.
"""

TITLE = "Nested Attention: "
"""Before messages that no node of ours gives, for the log."""

_UNMARKED = str.maketrans("<>", "‹›")
"""The editor makes HTML of the text on a node: some front ends leave `<alice>` out, others run what a shared
workflow's prompt says in `<img …>`."""

logger = logging.getLogger("nested_attention")


class _Notices:
    """What has been said on nodes of the editor in the present run."""

    def __init__(self) -> None:
        self._run: str | None = None
        self._said: dict[str, list[str]] = {}  # by node
        self._lock = threading.Lock()

    def show(self, message: str) -> None:
        """Shows the message on the running node, once a run, below what it has been told before.

        On the node it goes without the node's own name: older editors show two lines and a half of it.
        """
        _, run, node = _running()
        if _client() is None:
            return
        text = message.removeprefix(TITLE)
        with self._lock:
            if run != self._run:
                self._run, self._said = run, {}
            said = self._said.setdefault(node, [])
            short = text.removeprefix(f"{_title()}: ")
            if short in said:
                return
            said.append(short)
            shown = "\n\n".join(said).translate(_UNMARKED)
        send(EVENT, {"node": node, "text": text, "shown": shown})


def running_server() -> Any:
    """ComfyUI's server; None where none is running."""
    # Looked up, not imported: importing it is for main.py, and the pack can be loaded without.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _running() -> tuple[Any, str, str]:
    """The server, the run and the node that is executed; no server outside of one and of its nodes."""
    context = get_executing_context()
    return (None, "", "") if context is None else (running_server(), context.prompt_id, str(context.node_id))


def send(event: str, data: Mapping[str, Any]) -> None:
    """Sends the editor that has queued the run a message of ours; nothing where none has.

    With the ids of the run and of the workflow it was queued from, by which web/runs.js tells whether that
    workflow is open.
    """
    (server, run, _), client = _running(), _client()
    if client is not None:
        server.send_sync(event, {**data, "prompt_id": run, "workflow": _workflow()}, client)


def _workflow() -> str | None:
    """The id of the workflow that the run was queued from, None where what came with the run has none."""
    found: Any = _queued()[1]
    for key in ("extra_pnginfo", "workflow", "id"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _client() -> str | None:
    """The id of the editor that has queued the run, None for a run of another program's.

    A message to None would go to every editor that is open. The run's own record has it: what the server
    holds is the client of the prompt that it has started last.
    """
    return _queued()[1].get("client_id")


def running_graph() -> Mapping[str, Any] | None:
    """The graph that is being run, in API format; None if that cannot be told."""
    return _queued()[0]


def _queued() -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
    """The graph that is being run, and what it was queued with; None and nothing if that cannot be told."""
    server, run, _ = _running()
    running = [] if server is None else list(server.prompt_queue.currently_running.values())
    for _, prompt_id, graph, more, *_ in running:
        if prompt_id == run:
            return graph, more
    return None, {}


def running_id() -> str | None:
    """The run that is going on, None outside of one."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def running_node() -> str:
    """The id of the node that is being run, empty outside of one."""
    context = get_executing_context()
    return "" if context is None else str(context.node_id)


def node_in_graph() -> str:
    """The id of the running node in the graph that is run: of the one that was expanded into it and others,
    where it is not in that itself."""
    node = running_node()
    return node if node in (running_graph() or {}) else node.split(".")[0]


def expanded_from() -> str | None:
    """The class of the node that was expanded into the running one and others; None if none was."""
    at = node_in_graph()
    return None if at == running_node() else (running_graph() or {}).get(at, {}).get("class_type")


def _title() -> str:
    """What the editor calls the running node."""
    titles = getattr(sys.modules.get("nodes"), "NODE_DISPLAY_NAME_MAPPINGS", {})  # ComfyUI's module
    return titles.get(_running_class(), "")


def _running_class() -> str | None:
    return (running_graph() or {}).get(running_node(), {}).get("class_type")


def _here() -> str:
    """The node that is being run, for the log: ` (KSampler, node 3)`."""
    name = _running_class()
    return f" ({name}, node {running_node()})" if name else ""


_notices = _Notices()


def warn(message: str) -> None:
    """Logs a warning and shows it on the running node."""
    logger.warning(message + _here())
    _notices.show(message)


class _WarnOnce:
    """Logs a warning the first time it is given, and shows it on the running node in every run: a prompt is
    often tokenised several times for one picture."""

    def __init__(self) -> None:
        self._log = lru_cache(maxsize=256)(logger.warning)
        self.cache_clear = self._log.cache_clear

    def __call__(self, message: str) -> None:
        self._log(message + _here())
        _notices.show(message)


warn_once = _WarnOnce()
