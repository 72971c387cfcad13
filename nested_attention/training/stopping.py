"""How a run is asked to stop, by a cluster or by a person: it then saves before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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


def leave_signals(worker: int) -> None:
    """Ctrl+C reaches every process of a terminal, and SIGTERM often every one of a job. Those that read
    examples leave it to the one that trains, which ends its step and saves. A second SIGTERM is meant for
    them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
