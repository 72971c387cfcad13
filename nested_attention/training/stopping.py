"""How a run is asked to stop, by a cluster or by a person: it then saves before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed

from ..errors import NestedAttentionError


class Stopped(NestedAttentionError):
    """A run was asked to stop before its end. It is saved, and goes on from there."""


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl+C instead of dying of them; a second Ctrl+C does not wait. Only the main
    thread can; elsewhere nothing is collected."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def collect(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, collect) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


LEFT = 60
"""Seconds that a process which reads examples lives on after SIGTERM."""


def leave_signals(worker: int) -> None:
    """Ctrl+C reaches every process of a terminal, and SIGTERM often every one of a job, more than once: from
    the cluster and from the launcher. Those that read examples leave both to the one that trains, which ends
    its step and saves; they end with it, and some time after SIGTERM in any case."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "alarm"):  # which Windows lacks
            signal.alarm(LEFT)

    signal.signal(signal.SIGTERM, leave)


class Agreement:
    """Whether any process of a run was asked to stop. Several are told of it at the same step.

    They agree over the hosts' own connection: a GPU's would have the host wait for what the GPU has still to
    do, at every step.
    """

    def __init__(self, processes: int) -> None:
        self._hosts: Any = torch.distributed.new_group(backend="gloo") if processes > 1 else None

    def __call__(self, stop: bool) -> bool:
        if self._hosts is None:
            return stop
        asked = torch.tensor(int(stop))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._hosts)
        return bool(asked)
