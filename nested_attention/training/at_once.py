"""Several runs at a time, each in a process of its own, that stop together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from types import FrameType
from typing import TypeVar

from .stopping import Stopped, asked_to_stop

Result = TypeVar("Result")
_POLL = 0.5
"""Seconds between looks at whether it is to stop."""


def at_once(
    work: Callable[..., Result], runs: Sequence[tuple[object, ...]], workers: int
) -> Iterator[Result]:
    """What `work` gives for the arguments of each run, in the order in which they are done.

    SIGTERM and Ctrl+C stop all: a training saves, anything else is left, and no other run begins. Raises
    Stopped after that, and what a run has raised.
    """
    # A fork would inherit the locks of torch's threads, and could not use a GPU.
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(stop,))
    with asked_to_stop() as asked, pool:
        left = {pool.submit(_watched, work, run) for run in runs}
        try:
            while left and not asked:
                done, left = wait(left, timeout=_POLL, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            if asked:
                stop.set()
            for each in left:
                each.cancel()
    if asked:
        raise Stopped(
            f"stopped by {signal.Signals(asked[0]).name}; what has been trained is saved, and the same "
            "command goes on from there"
        )


def _begin(stop: Event) -> None:
    """A process between two runs leaves signals to the one that it works for: killed as it waits for its next
    run, it would keep the others from theirs."""
    global _stop
    _stop = stop
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


_stop: Event


def _watched(work: Callable[..., Result], run: tuple[object, ...]) -> Result:
    """One run, with the signal that it is to stop: a trainer saves at it."""
    if _stop.is_set():
        raise Stopped("stopped before it began")
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if _stop.wait(_POLL):
                signal.raise_signal(signal.SIGTERM)
                return

    signal.signal(signal.SIGTERM, _leave)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return work(*run)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ended.set()
        watcher.join()


def _leave(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name}")
