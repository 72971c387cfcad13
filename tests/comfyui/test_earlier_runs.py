"""What is kept from one run of ComfyUI to the next belongs to the node it was kept for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from test_foreign_rows import drawn, together, two
from torch import Tensor


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of a server, as far as the pack looks at it."""
    queue = SimpleNamespace(currently_running={})
    server = SimpleNamespace(prompt_queue=queue, send_sync=lambda *_: None)
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    return queue


@contextmanager
def running(queue: Any, run: str, graph: Mapping[str, Any], node: str) -> Iterator[None]:
    from comfy_execution.utils import CurrentNodeContext

    if queue is not None:
        queue.currently_running = {0: (0, run, graph, {}, [])}
    with CurrentNodeContext(run, node):
        yield


def renamed(graph: Mapping[str, Any], before: str) -> dict[str, Any]:
    """The graph with this before each id, as nodes of a subgraph have it."""
    return json.loads(re.sub(r'"(\d+)"', rf'"{before}\1"', json.dumps(graph)))


def run_schedule(
    queue: Any,
    chain: tuple[Any, Any],
    *texts: str,
    named: Any = None,
    ids: str = "",
    remembered: Any = None,
) -> tuple[Tensor, Any]:
    """Runs a graph in which a node joins a prompt for each picture, and keeps none of them.

    Gives the pictures, and what that node has put out. named: inputs of Apply Subject. ids: before those of
    all nodes. remembered: what it has put out in an earlier run, so that it does not run.
    """
    from tiny import encode

    graph = renamed(
        {
            "2": {"class_type": "NestedAttentionApplySubject", "inputs": {"named": named}},
            "6": {"class_type": "SomebodysSchedule", "inputs": {"clip": ["2", 1], "text": "\n".join(texts)}},
            "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "bad"}},
            "8": {
                "class_type": "KSampler",
                "inputs": {"model": ["2", 0], "positive": ["6", 0], "negative": ["7", 0]},
            },
        },
        ids,
    )
    run = uuid4().hex
    if remembered is None:
        with running(queue, run, graph, f"{ids}6"):
            remembered = together(chain[1], *texts)
    with running(queue, run, graph, f"{ids}7"):
        bad = encode(chain[1], "bad")
    with running(queue, run, graph, f"{ids}8"):
        return drawn(chain[0], remembered, bad, batch=len(texts)), remembered


def alice(world: Any, word: str) -> tuple[Any, Any]:
    return world.apply(world.model, world.clip, name="alice", word=word)


@pytest.mark.parametrize("ids", ["", "12:"], ids=["same-nodes", "other-nodes"])
def test_what_earlier_runs_called_a_subject_does_not_count(world: Any, ids: str) -> None:
    from tiny import carries

    texts = "a woman at home", "a man at sea"
    man, woman = (alice(world, word) for word in ("man", "woman"))
    first, _ = run_schedule(None, man, *texts)
    other, _ = run_schedule(None, woman, *texts, ids=ids)
    again, _ = run_schedule(None, man, *texts)
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)
    assert carries(other[0], first[0]) and carries(other[1], first[1])
    either = "<alice> in a red coat", "<bob> in a blue coat"
    swapped = "<bob> in a red coat", "<alice> in a blue coat"
    run_schedule(None, two(world), *either)
    first, _ = run_schedule(None, two(world), *swapped, ids=ids)
    run_schedule(None, two(world), *either)
    again, _ = run_schedule(None, two(world), *swapped, ids=ids)
    assert torch.equal(again, first)


@pytest.mark.parametrize("ids", ["", "12:"], ids=["same-ids", "other-ids"])
def test_prompts_that_are_remembered_are_those_of_their_node(world: Any, queue: Any, ids: str) -> None:
    """ComfyUI has not encoded them again, and another run's read the same."""
    texts = f"a woman in a park {ids}", f"a man in a park {ids}"  # which no other test has
    chains = {word: alice(world, word) for word in ("man", "woman")}
    firsts = {word: run_schedule(queue, chain, *texts, named=word) for word, chain in chains.items()}
    for word, (first, remembered) in firsts.items():
        again, _ = run_schedule(queue, chains[word], *texts, named=word, ids=ids, remembered=remembered)
        assert torch.equal(again, first)


def test_a_node_is_the_same_whatever_ids_there_are(world: Any) -> None:
    from nested_attention.hosts.comfy.identity import identities

    graph = {
        "1": {"class_type": "A", "inputs": {"seed": 1}},
        "2": {"class_type": "B", "inputs": {"first": ["1", 0], "second": ["1", 1]}},
        "3": {"class_type": "B", "inputs": {"first": ["1", 1], "second": ["1", 0]}},
        "4": {"class_type": "B", "inputs": {"first": ["3", 0], "second": ["9", 0]}, "_meta": {"title": "x"}},
        "5": {"class_type": "C", "inputs": {"itself": ["5", 0]}},
    }
    known = identities(graph)
    assert len(set(known.values())) == len(known) == 4, "a node that leads to itself does not run"
    other = dict(reversed(renamed(graph, "12:").items()))
    other["12:4"]["inputs"]["second"] = ["9", 0]  # no node of the graph
    other["12:4"]["_meta"] = {"title": "y"}
    assert identities(other) == {f"12:{node_id}": one for node_id, one in known.items()}
    graph = json.loads(json.dumps(graph))
    graph["1"]["inputs"]["seed"] = 2
    changed = {node_id for node_id, one in identities(graph).items() if one != known[node_id]}
    assert changed == {"1", "2", "3", "4"}
    deep = {str(i): {"class_type": "A", "inputs": {"before": [str(i - 1), 0]}} for i in range(3000)}
    assert len(set(identities(deep).values())) == len(deep)


def test_a_preview_is_shown_on_its_node_under_whatever_id(
    world: Any, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_attention.hosts.comfy import inspect
    from nested_attention.inspection.recording import Watch

    sent: list[str] = []
    monkeypatch.setattr(inspect, "send", lambda event, data: sent.append(data["node"]))
    graph = {
        "5": {"class_type": "NestedAttentionObserve", "inputs": {"preview": True}},
        "6": {"class_type": "KSampler", "inputs": {"model": ["5", 0]}},
    }
    model, clip = alice(world, "person")
    with running(queue, "a", graph, "5"):
        watched, _ = inspect.observe_subjects(model, Watch(), on=True, preview=True)
    for ids in ("", "12:"):
        with running(queue, f"b{ids}", renamed(graph, ids), f"{ids}6"):
            draw(watched, clip)
    assert sent == ["5", "12:5"]


def sampler(latent: str = "1", seed: int = 1, model: str = "10") -> dict[str, Any]:
    return {
        "class_type": "KSampler",
        "inputs": {"model": [model, 0], "latent_image": [latent, 0], "seed": seed},
    }


def maps_of(image: str, points: str = "") -> dict[str, Any]:
    return {
        "class_type": "NestedAttentionViewMaps",
        "inputs": {"maps": ["10", 1], "image": [image, 0], "points": points},
    }


class Observed:
    """Samplings that a recorder has seen, each under a name."""

    def __init__(self, queue: Any) -> None:
        from nested_attention.hosts.comfy.sampling.recorder import Recorder
        from nested_attention.inspection.recording import Watch

        self.recorder, self._queue = Recorder(Watch()), queue

    def sample(self, node: str, name: str, graph: Mapping[str, Any]) -> None:
        from nested_attention.inspection.maps import Observation

        seen = SimpleNamespace(finish=lambda: Observation((name,), ((0, 0),), 1, 1))
        with running(self._queue, uuid4().hex, graph, node):
            self.recorder.begin([], 1, 1)
            self.recorder.keep(seen)

    def shown(self, graph: Mapping[str, Any], node: str = "16") -> str:
        with running(self._queue, uuid4().hex, graph, node):
            return self.recorder.observation().subjects[0]


def test_maps_of_an_earlier_pass_are_not_shown_on_another_picture(queue: Any, world: Any) -> None:
    observed = Observed(queue)
    graph = {"9": {"class_type": "A"}, "10": {"class_type": "B", "inputs": {"model": ["9", 0]}}}
    graph |= {"14": sampler(), "15": sampler("14"), "16": maps_of("15")}
    observed.sample("14", "first pass", graph)
    observed.sample("15", "second pass", graph)
    assert observed.shown(graph) == "second pass"
    assert observed.shown({**graph, "15": sampler("14", seed=2, model="9")}) == "first pass"
    other = {**graph, "14": sampler(seed=2), "15": sampler("14", model="9")}
    with pytest.raises(ValueError, match="change the sampler's seed, so that it runs again"):
        observed.shown(other)


@pytest.mark.parametrize("ids", ["", "12:"], ids=["same-ids", "other-ids"])
def test_a_remembered_picture_is_shown_with_its_own_maps(queue: Any, world: Any, ids: str) -> None:
    observed = Observed(queue)
    same = {"1": {"class_type": "EmptyLatentImage"}, "10": {}, "16": maps_of("14")}
    graphs = {seed: {**same, "14": sampler(seed=seed)} for seed in (1, 2)}
    for seed, graph in graphs.items():
        observed.sample("14", f"seed {seed}", graph)
    for seed, graph in graphs.items():
        again = renamed({**graph, "16": maps_of("14", points="0.5, 0.5")}, ids)
        assert observed.shown(again, f"{ids}16") == f"seed {seed}"


def test_the_maps_of_the_graph_are_kept_before_others_and_there_are_few(queue: Any, world: Any) -> None:
    from nested_attention.hosts.comfy.sampling.recorder import KEPT

    observed = Observed(queue)
    for seed in range(6):
        graph = {"10": {}, **{str(n): sampler(seed=n) for n in range(20, 20 + KEPT - 1)}}
        graph |= {"14": sampler(seed=seed), "16": maps_of("14")}
        for node in ("20", "21", "22") if not seed else ():
            observed.sample(node, node, graph)
        observed.sample("14", f"seed {seed}", graph)
        assert observed.shown(graph) == f"seed {seed}"
    for node in ("20", "21", "22"):
        assert observed.shown({**graph, "16": maps_of(node)}) == node
    with pytest.raises(ValueError, match="nothing was observed"):
        observed.shown({**graph, "14": sampler(seed=0)})


def test_maps_of_a_sampler_that_another_node_was_expanded_into(queue: Any, world: Any) -> None:
    observed = Observed(queue)
    graph = {"10": {}, "14": {"class_type": "Loop", "inputs": {"model": ["10", 0]}}, "16": maps_of("14")}
    observed.sample("14.0.0.3", "in the loop", graph)
    assert observed.shown(graph) == "in the loop"


def draw(model: Any, clip: Any) -> Tensor:
    from tiny import encode, sample

    return sample(model, encode(clip, "a person"), encode(clip, "bad"), steps=1)
