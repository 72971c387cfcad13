"""What an encoder's tokens hold: traits read by linear probes, beside what the vision encoder offers.

An encoder can only hand over what its tokens hold, whatever is drawn from them. Where a probe reads a trait
from the image features and not from the tokens, the encoder's training left it out. Nothing else learns from
the levels of traits, and no probe takes part in a training.
"""

from __future__ import annotations

from typing import Any

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


def traits(kind: type[Person] | type[Pet]) -> dict[str, int]:
    """The traits that are asked for, and their levels."""
    return {name: number for name, number in levels(kind).items() if number <= LEVELS and name != "places"}


def probe(
    world: World, encoder: SubjectEncoder, *, trained: int = 8_000, held: int = 2_000, seed: int = 7000
) -> dict[str, dict[str, Rate]]:
    """Rates at which each trait is read from the mean image token and from the mean subject token.

    The probes learn from crops of `trained` people or pets of the training split, and are asked about `held`
    crops of held-out ones.
    """
    word = encoder.config.word
    offered, labels = _crops(world, word, trained, seed, "train")
    asked, answers = _crops(world, word, held, seed + 1, "development")
    with torch.no_grad():
        read = {
            "image features": (offered[:, 1:].mean(1), asked[:, 1:].mean(1)),
            "subject tokens": (_mean_tokens(encoder, offered), _mean_tokens(encoder, asked)),
        }
    return {name: _accuracy(*pair, labels, answers, word) for name, pair in read.items()}


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


def _accuracy(
    seen: Tensor, asked: Tensor, labels: Tensor, answers: Tensor, word: str, epochs: int = 15
) -> dict[str, Rate]:
    """seen (n, width), asked (m, width); labels (n, traits), answers (m, traits)"""
    torch.manual_seed(0)
    mean, deviation = seen.float().mean(0), seen.float().std(0) + 1e-5
    seen, asked = ((x.float() - mean) / deviation for x in (seen, asked))
    sizes = traits(KINDS[word])
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
    return {name: rate(found[i].argmax(1) == answers[:, i]) for i, name in enumerate(sizes)}
