"""What is kept from one run of ComfyUI to the next belongs to the node it was kept for."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from test_foreign_rows import drawn, together, two
from torch import Tensor


class Runs:
    """Runs of a graph in which a node joins a prompt for each picture and keeps none of them."""

    def __init__(self, queue: Any = None) -> None:
        self._queue = queue

    def draw(
        self, chain: tuple[Any, Any], *texts: str, named: Any = None, ids: str = "", remembered: Any = None
    ) -> tuple[Tensor, Any]:
        """The pictures, and what the node that joins has put out. named: inputs of Apply Subject. ids: before
        those of all nodes. remembered: what it has put out in an earlier run, so that it does not run."""
        from comfy_execution.utils import CurrentNodeContext
        from tiny import encode

        run = uuid4().hex
        applied, joins, other, samples = (f"{ids}{n}" for n in (2, 6, 7, 8))
        clip = {"clip": [applied, 1]}
        graph = {
            applied: {"class_type": "NestedAttentionApplySubject", "inputs": {"named": named}},
            joins: {"class_type": "SomebodysSchedule", "inputs": {**clip, "text": "\n".join(texts)}},
            other: {"class_type": "CLIPTextEncode", "inputs": {**clip, "text": "bad"}},
            samples: {
                "class_type": "KSampler",
                "inputs": {"model": [applied, 0], "positive": [joins, 0], "negative": [other, 0]},
            },
        }
        if self._queue is not None:
            self._queue.currently_running = {0: (0, run, graph, {}, [])}
        if remembered is None:
            with CurrentNodeContext(run, joins):
                remembered = together(chain[1], *texts)
        with CurrentNodeContext(run, other):
            bad = encode(chain[1], "bad")
        with CurrentNodeContext(run, samples):
            return drawn(chain[0], remembered, bad, batch=len(texts)), remembered


def alice(world: Any, word: str) -> tuple[Any, Any]:
    return world.apply(world.model, world.clip, name="alice", word=word)


@pytest.mark.parametrize("ids", ["", "12:"], ids=["same-nodes", "other-nodes"])
def test_what_earlier_runs_called_a_subject_does_not_count(world: Any, ids: str) -> None:
    from tiny import carries

    texts = "a woman at home", "a man at sea"
    man, woman = (alice(world, word) for word in ("man", "woman"))
    runs = Runs()
    first, _ = runs.draw(man, *texts)
    other, _ = runs.draw(woman, *texts, ids=ids)
    again, _ = runs.draw(man, *texts)
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)
    assert carries(other[0], first[0]) and carries(other[1], first[1])
    assert runs.draw(two(world), "<alice> in a red coat", "<bob> in a blue coat")
    swapped, _ = runs.draw(two(world), "<bob> in a red coat", "<alice> in a blue coat", ids=ids)
    runs.draw(two(world), "<alice> in a red coat", "<bob> in a blue coat")
    back, _ = runs.draw(two(world), "<bob> in a red coat", "<alice> in a blue coat", ids=ids)
    assert torch.equal(back, swapped)


@pytest.mark.parametrize("ids", ["", "12:"], ids=["same-ids", "other-ids"])
def test_prompts_that_are_remembered_are_those_of_their_node(
    world: Any, monkeypatch: pytest.MonkeyPatch, ids: str
) -> None:
    """ComfyUI has not encoded them again, and another run's read the same."""
    queue = SimpleNamespace(currently_running={})
    instance = SimpleNamespace(prompt_queue=queue, send_sync=lambda *_: None)
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    )
    texts = f"a woman in a park {ids}", f"a man in a park {ids}"  # which no other test has
    chains = {word: alice(world, word) for word in ("man", "woman")}
    runs = Runs(queue)
    firsts = {word: runs.draw(chain, *texts, named=word) for word, chain in chains.items()}
    for word, (first, remembered) in firsts.items():
        again, _ = runs.draw(chains[word], *texts, named=word, ids=ids, remembered=remembered)
        assert torch.equal(again, first)
