"""Malformed masks, blocks and prompts at Apply Subject, Isolate Subject and the text nodes behind them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from malformed import CHARACTERS, NASTY, text
from test_malformed_pictures import CASES, picture
from test_nodes import nodes, pack  # noqa: F401  fixtures
from test_subjects import folders  # noqa: F401

PIECES = [
    "person", "a person", "persons", "(person:1.2)", "(person", "person)", "((person))", "\\(person\\)",
    "<alice>", "<alice:woman>", "<Alice>", "<alcie>", "<alice", "alice>", "<>", "<:>", "at sea", ",",
    "embedding:none", "BREAK", "AND", "(x:1e999)", "(x:nan)", "person " * 80, "word " * 90 + "person",
]  # fmt: skip


def prompt(rng: random.Random) -> str:
    """Some text that a user, or a node, might hand over."""
    kinds = (
        lambda: rng.choice(PIECES),
        lambda: rng.choice(PIECES),
        lambda: rng.choice(NASTY).replace("\ud800", "?"),  # half a surrogate is no text to any tokenizer
        lambda: "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(1, 9))),
    )
    return rng.choice([" ", " ", ""]).join(rng.choice(kinds)() for _ in range(rng.randint(1, 5)))


def mask(rng: random.Random) -> Any:
    """A MASK, mostly with something wrong."""
    image = picture(rng)
    if not isinstance(image, torch.Tensor):
        return image
    kind = rng.randrange(5)
    if kind == 0:
        return image
    return image[..., 0] if image.dim() and image.shape[-1] and kind < 4 else image.flatten()


def test_malformed_masks_and_blocks(world: Any) -> None:
    from tiny import encode, sample

    from nested_attention.errors import NestedAttentionError

    negative, refused = encode(world.clip, ""), 0
    for number in range(CASES):
        rng = random.Random(f"mask {number}")
        blocks = rng.choice(["", "all:1", "up:0.5", "mid", "down:nan", "up:-1", "all:1e999", text(rng, 5)])
        settings = {
            "region": mask(rng),
            "region_mode": rng.choice(["mask", "auto", "none"]),
            "bounded": rng.random() < 0.5,
            "blocks": blocks if rng.random() < 0.3 else "",
        }
        try:
            model, clip = world.apply(world.model, world.clip, **settings)
        except NestedAttentionError as error:
            assert str(error).startswith(("the region", "Apply Subject: blocks: ")), error
            refused += 1
            continue
        if number % 10 == 0:  # what is accepted is drawn with
            drawn = sample(model, encode(clip, "a person"), negative, steps=1)
            assert drawn.isfinite().all()
    assert 0.1 * CASES < refused < 0.9 * CASES
    print(f"{CASES} malformed masks and blocks: {refused} refused")


def test_malformed_masks_of_what_is_isolated(
    nodes: dict[str, Any],  # noqa: F811
    folders: dict[str, Path],  # noqa: F811
) -> None:
    isolate, refused = nodes["NestedAttentionIsolateSubject"], 0
    for number in range(CASES):
        rng = random.Random(f"isolate {number}")
        settings = {
            "padding": rng.choice([0.0, 0.1, 2.0]),
            "grow": rng.choice([0, 3, -40, 400]),
            "feather": rng.choice([0, 4, 400]),
            "invert": rng.random() < 0.5,
            "background": rng.choice(["white", "black", "pink"]),
            "size": 64,
        }
        try:
            subject, *_ = isolate.execute(image=picture(rng), mask=mask(rng), **settings).args
        except ValueError as error:
            assert type(error).__name__ == "NestedAttentionError", error
            assert str(error).startswith("Isolate Subject: "), error
            refused += 1
            continue
        assert subject.shape[1:] == (64, 64, 3) and subject.isfinite().all()
    assert 0.1 * CASES < refused < CASES
    print(f"{CASES} malformed masks of what is isolated: {refused} refused")


@pytest.mark.once
@pytest.mark.parametrize("when_missing", ["error", "warn"])
def test_malformed_prompts(world: Any, when_missing: str) -> None:
    """A prompt without placeholders means to a CLIP with a subject what it means to one without."""
    from tiny import encode, tokens_marked

    from nested_attention.errors import NestedAttentionError

    _, clip = world.apply(world.model, world.clip, name="alice", when_missing=when_missing)
    refused = marked = 0
    for number in range(CASES):
        written = prompt(random.Random(f"prompt {number}"))
        try:
            (context, entries), *_ = encode(clip, written)
        except NestedAttentionError as error:
            assert str(error).startswith("Apply Subject: "), error
            assert "<" in written
            refused += 1
            continue
        marked += bool(tokens_marked([(context, entries)]))
        assert context.isfinite().all() or "1e999" in written or "nan" in written
        if "<" not in written and number % 5 == 0:
            plain = encode(world.clip, written)[0][0]
            assert torch.allclose(context, plain, rtol=0, atol=0, equal_nan=True), written
    assert refused and marked > CASES // 10
    print(f"{CASES} malformed prompts: {refused} refused, {marked} carry the subject")
