"""Random graphs of our nodes and others, built and run twice: the same latents bit for bit, and no node of
ours changes an object it received."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from skimage import data
from snapshot import snapshot
from test_nodes import encoder_file, folder, nodes, pack  # noqa: F401  fixtures
from test_subjects import Vision, folders, in_pack  # noqa: F401

from nested_attention.pictures.square import PADDINGS

GRAPHS, OPERATIONS = 16, 7
NAMES = ("alice", "bob", "carol", "rex")

_counts: dict[str, int] = {}


@dataclass(frozen=True)
class Graph:
    """Everything on the wires of a graph so far; an operation gives another one."""

    model: Any
    clip: Any
    subject: Any
    prompts: tuple[str, ...] = ()
    conditions: tuple[Callable[[Any, Any], Any], ...] = field(default=())


def watched(node: Any, *inputs: Any, **settings: Any) -> Any:
    """A node's outputs, after checking that nothing it received has changed."""
    before = [snapshot(thing) for thing in (*inputs, settings)]
    output = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(*inputs, **settings).args
    name = node.GET_SCHEMA().node_id
    for position, (thing, was) in enumerate(zip((*inputs, settings), before, strict=True)):
        assert snapshot(thing) == was, f"{name} changed its input {position}"
    _counts[name] = _counts.get(name, 0) + 1
    return output


class Operations:
    """One method an operation, each a node of ours or somebody else's with settings drawn from `rng`."""

    def __init__(self, ours: dict[str, Any], world: Any) -> None:
        self.ours = {name.removeprefix("NestedAttention"): node for name, node in ours.items()}
        self.world = world
        self.encoder = self.ours["LoadEncoder"].execute("mine.safetensors").args[0]

    def apply(self, graph: Graph, rng: random.Random) -> Graph:
        name = NAMES[len(graph.prompts) % len(NAMES)]
        model, clip = watched(
            self.ours["ApplySubject"],
            graph.model,
            graph.clip,
            self.encoder,
            graph.subject,
            word=rng.choice(["person", "woman", ""]),
            attention_scale=rng.choice([0.5, 1.0, 3.0]),
            alpha=rng.choice([0.0, 2.0, 6.0]),
            strength=rng.choice([0.0, 0.5, 1.0]),
            start_percent=rng.choice([0.0, 0.3]),
            end_percent=rng.choice([0.7, 1.0]),
            when_missing="error",
            name=f"{name}{len(graph.prompts)}",
            apply_to_negative=rng.random() < 0.3,
            region=rng.choice([None, region(rng)]),
            region_mode=rng.choice(["mask", "mask", "auto", "none"]),
            bounded=rng.random() < 0.5,
            bound_self_attention=rng.random() < 0.5,
            blocks=rng.choice(["all", "all", "all:0, up:1", "mid:0.5"]),
        )
        return replace(graph, model=model, clip=clip, prompts=(*graph.prompts, f"{name}{len(graph.prompts)}"))

    def encode(self, graph: Graph, rng: random.Random) -> Graph:
        count = rng.randint(1, 3)
        image = torch.rand(count, 20, 24, 3, generator=torch.Generator().manual_seed(rng.randrange(99)))
        weights = rng.choice(["", ", ".join(str(rng.randint(1, 3)) for _ in range(count))])
        encode = self.ours["EncodeSubject"]
        if rng.random() < 0.3:  # another subject in each picture
            return replace(graph, subject=watched(encode, self.encoder, Vision(), image, batch=EACH)[0])
        return replace(graph, subject=watched(encode, self.encoder, Vision(), image, weights=weights)[0])

    def isolate(self, graph: Graph, rng: random.Random) -> Graph:
        """A picture cut out by a mask, and then encoded."""
        image = torch.rand(1, 20, 24, 3, generator=torch.Generator().manual_seed(rng.randrange(99)))
        settings = {
            "background": rng.choice(["white", "black"]),
            "padding": 0.1,
            "grow": rng.choice([-1, 0, 2]),
        }
        settings |= {"feather": rng.choice([0.0, 2.0]), "invert": rng.random() < 0.5, "size": 64}
        isolated, _ = watched(self.ours["IsolateSubject"], image, mask=region(rng)[:1], **settings)
        return replace(
            graph, subject=watched(self.ours["EncodeSubject"], self.encoder, Vision(), isolated)[0]
        )

    def align(self, graph: Graph, rng: random.Random) -> Graph:
        """The face of a photograph, and then encoded."""
        image = torch.from_numpy(data.astronaut()).float()[None] / 255
        settings = {"which": rng.choice(["largest", "all"]), "index": 0, "size": 64}
        faces, _, count, *_ = watched(
            self.ours["AlignFace"], image, padding=rng.choice(sorted(PADDINGS)), **settings
        )
        assert count == len(faces) == 1
        encode = self.ours["EncodeSubject"]
        return replace(graph, subject=watched(encode, self.encoder, Vision(), faces)[0])

    def drawing(self, graph: Graph, rng: random.Random) -> Graph:
        """Somebody of the small world, on the picture of a pose, and then encoded."""
        person, pet = watched(self.ours["DemoWorld"], rng.randrange(99), rng.randrange(99))[4:6]
        behind = rng.choice([None, watched(self.ours["DemoPose"], 8, 8, "left")[0]])
        (pose,) = watched(self.ours["DemoPose"], rng.choice([16, 24]), 8, "ahead", behind)
        image = rng.choice([person, pet, pose])
        encode = self.ours["EncodeSubject"]
        return replace(graph, subject=watched(encode, self.encoder, Vision(), image)[0])

    def mix(self, graph: Graph, rng: random.Random) -> Graph:
        other = in_pack(rng.choice([self.world.alice, self.world.bob]))
        mix = self.ours["MixSubjects"]
        return replace(graph, subject=watched(mix, graph.subject, other, weight=rng.choice([0, 0.3, 0.5]))[0])

    def keep(self, graph: Graph, rng: random.Random) -> Graph:
        """Saved, and loaded again by the newest name. One subject; a batch of them has no file."""
        if hasattr(graph.subject, "subjects"):
            return graph
        (subject,) = watched(self.ours["SaveSubject"], graph.subject, filename_prefix="kept/one")
        name = self.ours["LoadSubject"].define_schema().inputs[0].options[-1]
        return replace(graph, subject=watched(self.ours["LoadSubject"], subject_name=name)[0] or subject)

    def mark(self, graph: Graph, rng: random.Random) -> Graph:
        """Mark Prompt on a conditioning that the first CLIP encoded, beside the ordinary one."""

        def add(positive: Any, clip: Any) -> Any:
            text = "a photo of " + " and ".join(f"<{name}:person>" for name in graph.prompts) + " at sea"
            plain = self.world.clip.encode_from_tokens_scheduled(
                self.world.clip.tokenize(
                    "a photo of " + " and ".join(["person"] * len(graph.prompts)) + " at sea"
                )
            )
            return positive + watched(self.ours["MarkPrompt"], plain, clip, text)[0]

        return replace(graph, conditions=(*graph.conditions, add)) if graph.prompts else graph

    def lora(self, graph: Graph, rng: random.Random) -> Graph:
        model = graph.model.clone()
        weights = model.model.state_dict()
        key = rng.choice(sorted(name for name in weights if name.endswith("attn2.to_k.weight")))
        weight = weights[key]
        patch = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(rng.randrange(99)))
        model.add_patches({key: (patch,)}, rng.choice([0.5, 1.0]))
        return replace(graph, model=model)

    def guidance(self, graph: Graph, rng: random.Random) -> Graph:
        from comfy_extras.nodes_pag import PerturbedAttentionGuidance

        return replace(graph, model=PerturbedAttentionGuidance.execute(graph.model, 3.0).args[0])

    def skip(self, graph: Graph, rng: random.Random) -> Graph:
        from nodes import CLIPSetLastLayer

        return replace(graph, clip=CLIPSetLastLayer().set_last_layer(graph.clip, -2)[0])

    def replaced(self, graph: Graph, rng: random.Random) -> Graph:
        from test_composition import put_foreign

        return replace(graph, model=put_foreign(graph.model, 0.3, depth=rng.choice([2, 3])))

    def area(self, graph: Graph, rng: random.Random) -> Graph:
        from nodes import ConditioningSetArea

        def add(positive: Any, clip: Any) -> Any:
            return positive + ConditioningSetArea().append(positive, 32, 64, 0, 0, 0.7)[0]

        return replace(graph, conditions=(*graph.conditions, add))

    def joined(self, graph: Graph, rng: random.Random) -> Graph:
        from nodes import ConditioningConcat

        def add(positive: Any, clip: Any) -> Any:
            more = clip.encode_from_tokens_scheduled(clip.tokenize("in the rain"))
            return ConditioningConcat().concat(positive, more)[0]

        return replace(graph, conditions=(*graph.conditions, add))


def region(rng: random.Random) -> torch.Tensor:
    """One mask or one for each of two pictures, hard or soft, of some size."""
    shape = rng.choice([1, 1, 2]), *rng.choice([(8, 8), (20, 24), (64, 32)])
    mask = torch.zeros(shape)
    mask[:, :, : shape[2] // 2] = rng.choice([0.5, 1.0])
    return mask if rng.random() < 0.5 else mask.flip(2)


EACH = "one subject a picture"
STEPS = (
    "apply", "apply", "apply", "encode", "isolate", "align", "drawing", "mix", "keep", "mark",
    "lora", "guidance", "skip", "replaced", "area", "joined",
)  # fmt: skip


def build(operations: Operations, seed: int, length: int) -> Graph:
    """The first `length` operations of a seed's graph."""
    rng = random.Random(seed)
    world = operations.world
    graph = Graph(world.model, world.clip, in_pack(world.alice))
    for _ in range(length):
        graph = getattr(operations, rng.choice(STEPS))(graph, rng)
    return graph


def run(graph: Graph, batch: int) -> torch.Tensor:
    from tiny import encode, sample

    text = "a photo of " + (" and ".join(f"<{name}>" for name in graph.prompts) or "a person") + " at sea"
    positive = encode(graph.clip, text)
    for condition in graph.conditions:
        positive = condition(positive, graph.clip)
    things = (graph.model, graph.clip, graph.subject, positive)
    before = [snapshot(thing) for thing in things]
    latents = sample(graph.model, positive, encode(graph.clip, "an ugly person"), steps=2, batch=batch)
    assert [snapshot(thing) for thing in things] == before, "sampling changed what is on the wires"
    return latents


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_a_random_graph_twice_is_the_same_and_changes_nothing_upstream(
    nodes: dict[str, Any],  # noqa: F811
    pack: ModuleType,  # noqa: F811
    folders: dict[str, Path],  # noqa: F811
    encoder_file: Path,  # noqa: F811
    world: Any,
    seed: int,
) -> None:
    from tiny import same

    operations = Operations(nodes, world)
    base = (world.model, world.clip, operations.encoder.encoder, world.alice, world.bob)
    before = [snapshot(thing) for thing in base]
    shorter = build(operations, seed, OPERATIONS // 2)
    early = run(shorter, batch=1)
    graph = build(operations, seed, OPERATIONS)
    latents = run(graph, batch=2)
    assert latents.isfinite().all()
    assert same(run(build(operations, seed, OPERATIONS), batch=2), latents)
    assert same(run(graph, batch=2), latents)  # queued again
    assert same(run(shorter, batch=1), early)  # a branch from further up never sees what came after
    assert [snapshot(thing) for thing in base] == before


def test_every_node_of_ours_was_in_a_graph() -> None:
    if not _counts:
        pytest.skip("the graphs were not asked for")
    assert set(_counts) >= {
        f"NestedAttention{name}"
        for name in (
            "ApplySubject",
            "EncodeSubject",
            "AlignFace",
            "DemoWorld",
            "DemoPose",
            "IsolateSubject",
            "MixSubjects",
            "SaveSubject",
            "LoadSubject",
            "MarkPrompt",
        )
    }, _counts


def test_a_snapshot_sees_what_a_careless_node_would_do(world: Any) -> None:
    """The check itself: each of these is a change that must not go unnoticed."""
    from tiny import encode

    model, clip = world.apply(world.model, world.clip)
    conditioning = encode(clip, "a person")
    before = [snapshot(thing) for thing in (model, clip, conditioning)]
    assert [snapshot(thing) for thing in (model, clip, conditioning)] == before
    model.model_options["transformer_options"].setdefault("patches_replace", {})["attn2"] = {}
    clip.layer_idx = -3
    conditioning[0][0].view(-1)[0] += 1e-3
    after = [snapshot(thing) for thing in (model, clip, conditioning)]
    assert all(one != other for one, other in zip(before, after, strict=True))
    marks = next(value for key, value in conditioning[0][1].items() if key == "nested_attention")
    was = snapshot(conditioning)
    marks.codes[0, 0] = 7
    assert snapshot(conditioning) != was
