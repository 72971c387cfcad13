"""What an encoder's tokens hold: close-ups of held-out subjects, redrawn from the tokens alone.

A head that is thrown away learns to redraw close-ups from frozen tokens, as a Q-Former learns to read
(`train/reading.py`). What it cannot redraw, no layer of a denoiser can be expected to. The same head beside
it reads the image features that the encoder is offered: what they hold and the tokens do not, the encoder's
training has left out, or lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ...encoder import SubjectEncoder
from ...evaluation.statistics import Rate, rate, top1
from ..drawing.canvas import Part
from ..drawing.identity import KINDS, Identity, all_near_twins, sample
from ..drawing.references import close_up, sample_crop
from ..models.world import World
from ..train.data import draw_close_ups, loss_weight_of
from ..train.encoders import image_features
from ..train.reading import Redraw, told_without

IMAGE, TOKENS = "image features", "subject tokens"
"""What is read."""

PARTS = (Part.HAIR, Part.FACE, Part.EYES, Part.MOUTH, Part.EARS)
"""Parts of a close-up that a subject's identity decides, if it has them."""

BATCH, RATE = 64, 1e-3

TWINS = 20
"""The subject itself among them."""


@dataclass(frozen=True)
class Legible:
    """What is redrawn of close-ups. told: the share of their variance that is, weighted as the denoising loss
    is. parts: of each part that is there; below 0 where the mean close-up is nearer. top1: how often the
    subject's own close-up, of all that are asked for, is the nearest to what is redrawn; twins: of its
    near-twins'."""

    told: float
    parts: dict[Part, float]
    top1: Rate
    twins: Rate


@dataclass(frozen=True)
class _Asked:
    """Held-out subjects: features of a crop (n, patches, vision width), their close-ups (n, 28, 28, 3) in
    [0, 1] with weights (n, 28, 28, 1) and parts (n, 28, 28), and near-twins' close-ups (n, TWINS − 1, …)."""

    features: Tensor
    close_ups: Tensor
    weight: Tensor
    part: np.ndarray
    twins: Tensor


def probe(
    world: World,
    encoder: SubjectEncoder,
    *,
    trained: int = 8_000,
    held: int = 100,
    steps: int = 1_000,
    seed: int = 7000,
) -> dict[str, Legible]:
    """How much is redrawn from image features, and from subject tokens.

    The heads learn from `trained` people or pets of the training split, for `steps`, and are asked about
    `held` others, of the development half.
    """
    word = encoder.config.word
    drawn = draw_close_ups(word, trained, seed, workers=1)
    asked = _asked(world, word, held, seed + 1)
    offered = image_features(world, drawn.reference)
    close_ups = torch.from_numpy(drawn.rgb)
    weight = torch.from_numpy(drawn.loss_weight)[..., None]
    mean, _ = told_without(close_ups, weight)
    read = {
        IMAGE: (offered, asked.features),
        TOKENS: (_tokens(encoder, offered), _tokens(encoder, asked.features)),
    }
    found = {}
    for name, (learned, shown) in read.items():
        head = _taught(learned, close_ups, weight, mean, steps)
        with torch.no_grad():
            found[name] = _judged(head(shown.float()), mean, asked)
    return found


def _tokens(encoder: SubjectEncoder, features: Tensor) -> Tensor:
    """(n, patches, vision width) → (n, queries, token width) float16"""
    with torch.no_grad():
        return torch.cat([encoder(part.float()).half() for part in features.split(256)])


def _asked(world: World, word: str, number: int, seed: int) -> _Asked:
    rng = np.random.default_rng(seed)
    people: list[Identity] = [sample(KINDS[word], rng, "development") for _ in range(number)]  # type: ignore[type-var]
    features = image_features(world, np.stack([sample_crop(rng, each) for each in people]))
    own = [close_up(each) for each in people]
    part = np.stack([part for _, part in own])
    twins = [_twins(each, rgb, rng) for each, (rgb, _) in zip(people, own, strict=True)]
    return _Asked(
        features=features,
        close_ups=_in_unit(np.stack([rgb for rgb, _ in own])),
        weight=torch.from_numpy(np.stack([loss_weight_of(each) for each in part]))[..., None],
        part=part,
        twins=_in_unit(np.asarray(twins)),
    )


def _twins(identity: Identity, own: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Close-ups (28, 28, 3) of near-twins; one whose close-up is the subject's `own` tells nothing."""
    drawn = (close_up(twin)[0] for twin in all_near_twins(identity, rng))  # type: ignore[type-var]
    return list(islice((rgb for rgb in drawn if not np.array_equal(rgb, own)), TWINS - 1))


def _in_unit(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(rgb).float() / 255


def _taught(seen: Tensor, close_ups: Tensor, weight: Tensor, mean: Tensor, steps: int) -> Redraw:
    """A head that has learned from `seen`, (n, tokens, width), to redraw."""
    torch.manual_seed(0)
    head = Redraw(seen.shape[-1], mean)
    optimizer = torch.optim.Adam(head.parameters(), lr=RATE)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 3 * (1 - step / steps)))
    for _ in range(steps):
        rows = torch.randint(len(seen), (BATCH,))
        error = head(seen[rows].float()) - close_ups[rows].float() / 255
        optimizer.zero_grad()
        (error.square() * weight[rows].float()).mean().backward()
        optimizer.step()
        decay.step()
    return head


def _judged(redrawn: Tensor, mean: Tensor, asked: _Asked) -> Legible:
    """redrawn (n, 28, 28, 3); mean: the close-up that tells nothing, (28, 28, 3)"""
    error, without = (redrawn - asked.close_ups).square(), (mean - asked.close_ups).square()

    def told(weight: Tensor) -> float:
        return 1 - float((error * weight).sum() / (without * weight).sum())

    where = {part: torch.from_numpy(asked.part == part)[..., None] for part in PARTS}
    parts = {part: told(there) for part, there in where.items() if there.any()}
    number = len(redrawn)
    others = asked.close_ups.expand(number, *asked.close_ups.shape)
    family = torch.cat([asked.close_ups[:, None], asked.twins], dim=1)
    return Legible(
        told=told(asked.weight),
        parts=parts,
        top1=rate(_nearest(redrawn, others, asked.weight, torch.arange(number))),
        twins=rate(_nearest(redrawn, family, asked.weight, torch.zeros(number, dtype=torch.int64))),
    )


def _nearest(redrawn: Tensor, candidates: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    """(n, 28, 28, 3), (n, m, 28, 28, 3), (n, 28, 28, 1), (n,) → whether the own candidate is nearer than any
    other, (n,) bool"""
    each = zip(redrawn, candidates, weight, strict=True)
    errors = torch.stack([((one - some).square() * w).sum((1, 2, 3)) for one, some, w in each])
    return top1(-errors, own)
