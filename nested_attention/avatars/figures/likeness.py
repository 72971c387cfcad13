"""Likeness beyond retrieval among strangers: each attribute, and retrieval among near-twins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...evaluation.statistics import rate, top1
from ..drawing.identity import Identity, near_twins
from ..models.scorers import IdentityScorer


def twins(identities: Sequence[Identity], number: int, seed: int) -> list[list[Identity]]:
    """For each identity itself, first, and `number` − 1 others that differ from it in one attribute."""
    rng = np.random.default_rng(seed)
    return [[identity, *near_twins(identity, rng, number - 1)] for identity in identities]  # type: ignore[type-var]


def twin_hits(
    scorer: IdentityScorer, seen: np.ndarray, identities: Sequence[Identity], number: int
) -> torch.Tensor:
    """Whether each subject is recognised among `number` near-twins. seen (n, 20, 20, 3) uint8 → (n,) bool"""
    return torch.cat(
        [
            top1(scorer.similarity(seen[row : row + 1], candidates), torch.tensor([0]))
            for row, candidates in enumerate(twins(identities, number, seed=7))
        ]
    )


def likeness(
    scorer: IdentityScorer, seen: np.ndarray, identities: Sequence[Identity], number: int
) -> dict[str, Any]:
    """Retrieval among `number` near-twins, and each attribute on its own.

    seen (n, 20, 20, 3) uint8: where each subject should be.
    """
    correct = scorer.correct(seen, list(identities))
    return {
        "among_twins": rate(twin_hits(scorer, seen, identities, number)),
        "attributes": {name: rate(ok) for name, ok in correct.items()},
    }
