"""How well subjects are told from others: from strangers, from near-twins, by marks alone.

A near-twin differs in one group of traits, and a caption describes it in the same words. Only those are asked
about whom the true drawing of a case would show: what an accessory covers tells nobody apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.statistics import as_text, rate, top1
from ..drawing.identity import Identity, Person, all_near_twins
from ..drawing.picture import Picture, render
from ..drawing.shown import Shown
from ..models.scorers import IdentityScorer

Subject = tuple[Picture, int]
"""A true drawing, and the number of the figure in question."""


def identity_of(subject: Subject) -> Identity:
    picture, number = subject
    return picture.figures[number].identity


@lru_cache(maxsize=4096)
def twins(subject: Subject, number: int, *, marks: bool = False) -> tuple[Identity, ...]:
    """The subject itself, first, and `number` − 1 near-twins whose picture would be another one.

    marks: they differ in marks alone, pets in their markings.
    """
    picture, own = subject[0], identity_of(subject)
    rng = np.random.default_rng([picture.seed, subject[1]])
    groups = (("marks",) if isinstance(own, Person) else ("markings",)) if marks else None
    drawn = render(picture).rgb
    seen = (
        twin
        for twin in all_near_twins(own, rng, groups)  # type: ignore[type-var]
        if not np.array_equal(render(_with(subject, twin)).rgb, drawn)
    )
    return (own, *islice(seen, number - 1))


def _with(subject: Subject, identity: Identity) -> Picture:
    picture, number = subject
    figures = list(picture.figures)
    figures[number] = replace(figures[number], identity=identity)
    return replace(picture, figures=tuple(figures))


def among_twins(
    scorer: IdentityScorer, rgb: np.ndarray, subjects: Sequence[Subject], number: int, *, marks: bool = False
) -> Tensor:
    """Whether each picture's subject is recognised among near-twins. (n,) bool"""
    hits = []
    for row, subject in enumerate(subjects):
        candidates = twins(subject, number, marks=marks)
        similarity = scorer.similarity(rgb[row : row + 1], [Shown.of(*subject)], candidates)
        hits.append(top1(similarity, torch.tensor([0])))
    return torch.cat(hits)


def rates_and_hits(hits: dict[str, Tensor]) -> dict[str, Any]:
    """Each measure's rate, and its hits case by case, so that figures can be compared in pairs."""
    found: dict[str, Any] = {name: rate(each) for name, each in hits.items()}
    return {**found, "hits": {name: as_text(each) for name, each in hits.items()}}
