"""A prompt of 100 kB in a real server: it is encoded nearly as fast as without us, and the server answers all
the while."""

from __future__ import annotations

import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from nested_attention.demo.draw import load_workflow
from nested_attention.demo.server import ComfyServer
from nested_attention.errors import NestedAttentionError

SIZE = 100_000
PIECES = "photograph of <alice> beside <alice:mother>, extraordinarily nin\u0303o person\u0301 "


@contextmanager
def answering(server: ComfyServer) -> Iterator[list[float]]:
    """Asks for the queue over and over, and notes how long each answer takes, in seconds."""
    took: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            start = time.monotonic()
            with suppress(TimeoutError, urllib.error.URLError):
                server.get("/queue")
            took.append(time.monotonic() - start)
            time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


def graph(text: str, clip: str) -> dict[str, Any]:
    """The text encoded with node `clip`'s CLIP: 1 is the checkpoint, 5 Apply Subject."""
    nodes = {
        number: node for number, node in load_workflow("avatar_person").items() if int(number) in (1, 3, 4, 5)
    }
    nodes["5"]["inputs"]["name"] = "alice"
    nodes["6"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [clip, 1], "text": text}}
    nodes["7"] = {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}}
    return nodes


def run(server: ComfyServer, text: str, clip: str) -> tuple[float, float]:
    """Seconds that it takes, and that the slowest answer takes meanwhile."""
    with answering(server) as took:
        start = time.monotonic()
        server.run(graph(text, clip))
        return time.monotonic() - start, max(took, default=0.0)


def test_a_long_prompt_costs_little_more(server: ComfyServer) -> None:
    text = PIECES * (SIZE // len(PIECES))
    run(server, "a person", "5")  # loads what both need
    (plain, plain_slowest), (ours, slowest) = run(server, text, "1"), run(server, text, "5")
    assert ours < plain + 2.0
    assert slowest < 2 * plain_slowest + 1.0  # a busy machine is slow at times for both


def test_a_long_number_in_a_placeholder_is_refused_at_once(server: ComfyServer) -> None:
    start = time.monotonic()
    with pytest.raises(
        NestedAttentionError, match="Apply Subject: the word in <alice:1111.*at most"
    ) as refused:
        server.run(graph("<alice:" + "1" * SIZE + "x>", "5"))
    assert time.monotonic() - start < 5
    assert len(str(refused.value)) < 2000
