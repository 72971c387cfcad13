"""What an encoder's tokens hold: traits read by linear probes, beside what the vision encoder offers.

Levels of a colour lie on a ramp, where the next one is nearly right: of traits with many levels it also says
by how many levels an answer is off. Whoever always answers the same has some of them right too, and stands
beside the others.

An encoder can only hand over what its tokens hold, whatever is drawn from them. Where a probe reads a trait
from the image features and not from the tokens, the encoder's training left it out. Nothing else learns from
the levels of traits, and no probe takes part in a training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...encoder import SubjectEncoder
from ...evaluation.statistics import Rate, rate
from ..drawing.identity import KINDS, Person, Pet, levels, sample
from ..drawing.references import sample_crop
from ..models.world import World
from ..train.encoders import image_features

LEVELS = 64
"""Levels of the traits that are asked for; more are those of seeds, which no line of features can follow."""


RAMP = 16
"""From so many levels on, how far an answer is off says more than whether it is right."""

IMAGE, TOKENS, NOBODY = "image features", "subject tokens", "one answer"
"""What is read, and what reads nothing: the level that most have, or, in distance, the one in the middle."""


class Answers(NamedTuple):
    """How often a trait's level is right, and the mean distance in levels, of traits with `RAMP` or more."""

    right: Rate
    off: float | None


def traits(kind: type[Person] | type[Pet]) -> dict[str, int]:
    """The traits that are asked for, and their levels."""
    return {name: number for name, number in levels(kind).items() if number <= LEVELS and name != "places"}


def probe(
    world: World, encoder: SubjectEncoder, *, trained: int = 8_000, held: int = 2_000, seed: int = 7000
) -> dict[str, dict[str, Answers]]:
    """How well each trait is read from the mean image token, from the mean subject token, and without either.

    The probes learn from crops of `trained` people or pets of the training split, and are asked about `held`
    crops of held-out ones.
    """
    word = encoder.config.word
    offered, labels = _crops(world, word, trained, seed, "train")
    asked, answers = _crops(world, word, held, seed + 1, "development")
    with torch.no_grad():
        read = {
            IMAGE: (offered[:, 1:].mean(1), asked[:, 1:].mean(1)),
            TOKENS: (_mean_tokens(encoder, offered), _mean_tokens(encoder, asked)),
        }
    sizes = traits(KINDS[word])
    found = {name: _read(*pair, labels, sizes) for name, pair in read.items()}
    return {
        **{name: _judged(said, said, answers, sizes) for name, said in found.items()},
        NOBODY: _judged(labels.mode(0).values[None], labels.median(0).values[None], answers, sizes),
    }


def _mean_tokens(encoder: SubjectEncoder, features: Tensor) -> Tensor:
    """(n, patches, vision width) → (n, token width)"""
    return torch.cat([encoder(part.float()).mean(1) for part in features.split(256)])


def _crops(world: World, word: str, number: int, seed: int, split: Any) -> tuple[Tensor, Tensor]:
    """Image features of crops, one a subject, and the levels of the subjects' traits."""
    rng = np.random.default_rng(seed)
    identities = [sample(KINDS[word], rng, split) for _ in range(number)]  # type: ignore[type-var]
    crops = np.stack([sample_crop(rng, identity) for identity in identities])
    values = [[getattr(identity, name) for name in traits(KINDS[word])] for identity in identities]
    return image_features(world, crops), torch.tensor(values)


def _judged(said: Tensor, near: Tensor, answers: Tensor, sizes: dict[str, int]) -> dict[str, Answers]:
    """said: levels that are to be right, near: those that are to be near, (m or 1, traits); answers (m,
    traits)"""
    right, off = said == answers, (near - answers).abs().double().mean(0)
    return {
        name: Answers(rate(right[:, i]), float(off[i]) if number >= RAMP else None)
        for i, (name, number) in enumerate(sizes.items())
    }


def _read(seen: Tensor, asked: Tensor, labels: Tensor, sizes: dict[str, int], epochs: int = 15) -> Tensor:
    """seen (n, width), asked (m, width), labels (n, traits) → levels (m, traits)"""
    torch.manual_seed(0)
    mean, deviation = seen.float().mean(0), seen.float().std(0) + 1e-5
    seen, asked = ((x.float() - mean) / deviation for x in (seen, asked))
    heads = nn.Linear(seen.shape[1], sum(sizes.values()))
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(seen)).split(250):
            optimizer.zero_grad()
            each = heads(seen[rows]).split(list(sizes.values()), dim=1)
            losses = [functional.cross_entropy(said, labels[rows, i]) for i, said in enumerate(each)]
            torch.stack(losses).sum().backward()
            optimizer.step()
    with torch.no_grad():
        found = heads(asked).split(list(sizes.values()), dim=1)
    return torch.stack([each.argmax(1) for each in found], dim=1)
