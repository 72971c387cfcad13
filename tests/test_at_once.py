"""Runs in processes of their own stop together, and nothing begins after that."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from nested_attention.errors import NestedAttentionError
from nested_attention.training.at_once import at_once
from nested_attention.training.stopping import Stopped, asked_to_stop


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, in processes that start anew: they get this one's places to look in."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parent.parent)])


def double(value: int) -> int:
    if value < 0:
        raise NestedAttentionError(f"{value} cannot be doubled")
    return 2 * value


def until_stopped(folder: Path, name: str, saves: bool) -> str:
    """A run that saves when it is asked to stop, as a training does, or does not, as a drawing; for a minute
    at most."""
    end = time.monotonic() + 60
    with asked_to_stop() if saves else nullcontext([]) as asked:
        (folder / f"{name} began").touch()
        while not asked and time.monotonic() < end:
            time.sleep(0.05)
    (folder / f"{name} saved").touch()
    raise Stopped(f"{name} stopped")


def test_results_come_as_they_are_done_and_a_fault_by_its_message() -> None:
    assert sorted(at_once(double, [(1,), (2,), (3,)], 2)) == [2, 4, 6]
    with pytest.raises(NestedAttentionError, match="-1 cannot be doubled"):
        list(at_once(double, [(-1,)], 2))


def when(ready: Callable[[], bool], number: signal.Signals) -> threading.Thread:
    """Sends this process a signal as soon as it is ready."""

    def send() -> None:
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_all_save_and_nothing_that_waits_begins(tmp_path: Path, number: signal.Signals) -> None:
    """The second does not save, and is left."""
    sender = when(lambda: len(list(tmp_path.glob("* began"))) == 2, number)
    started = time.monotonic()
    with pytest.raises(Stopped, match=f"stopped by {number.name}; what has been trained is saved"):
        list(at_once(until_stopped, [(tmp_path, f"run {i}", i == 0) for i in range(6)], 2))
    sender.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run 0 began", "run 0 saved", "run 1 began"]
    assert time.monotonic() - started < 60
