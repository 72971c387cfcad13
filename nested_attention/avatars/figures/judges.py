"""The judges of the small world's figures, and how they score pictures.

Every picture counts: a failed one is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...attention import BoundSubject
from ...checkpoint import load_subject_encoder
from ...encoder import SubjectEncoder
from ...evaluation.statistics import rate, top1
from ...paths import SMALL_WORLD
from ..models.scorers import IdentityScorer, PromptScorer, load_identity_scorer, load_prompt_scorer
from ..models.world import Attached, World, load_world
from .cases import Case, windows
from .likeness import likeness

SUBJECTS = ("person", "pet")


@dataclass(frozen=True)
class Counts:
    """How many cases a run draws. `candidates` is the number of identities in a retrieval."""

    subjects: int = 100
    pairs: int = 100
    candidates: int = 100
    twins: int = 20
    pose_and_style: int = 64


@dataclass(frozen=True, eq=False)
class Judges:
    """The world, the encoders and the scorers a run needs."""

    world: World
    encoders: dict[str, SubjectEncoder]
    identity: dict[str, IdentityScorer]
    prompt: PromptScorer

    @classmethod
    def load(cls, folder: Path = SMALL_WORLD) -> Judges:
        """Everything from the shipped files."""
        return cls(
            world=load_world(folder),
            encoders={
                word: load_subject_encoder(folder / f"{word}_encoder.safetensors") for word in SUBJECTS
            },
            identity={word: load_identity_scorer(word, folder) for word in SUBJECTS},
            prompt=load_prompt_scorer(folder),
        )


def attach(judges: Judges, cases: list[Case], word: str, attention_scale: float | None = None) -> Attached:
    """Each case's own subject on `word`, at the nodes' defaults unless λ is given."""
    crops = np.stack([case.reference(word) for case in cases])
    scale = BoundSubject.attention_scale if attention_scale is None else attention_scale
    return judges.world.attach(judges.encoders[word], crops, word, scale)


def score_identity(
    judges: Judges, rgb: np.ndarray, cases: list[Case], word: str, counts: Counts
) -> dict[str, Any]:
    """Retrieval among all cases' identities, among near-twins, and each attribute on its own."""
    identities = [case.figure(word).identity for case in cases]
    return {
        "top1": rate(identity_hits(judges, rgb, cases, word, counts)),
        **likeness(judges.identity[word], windows(rgb, cases, word), identities, counts.twins),
    }


def identity_hits(
    judges: Judges, rgb: np.ndarray, cases: list[Case], word: str, counts: Counts
) -> torch.Tensor:
    """Top-1 retrieval of each case's subject among the first `candidates` identities and itself. (n,) bool"""
    scorer = judges.identity[word]
    identities = [case.figure(word).identity for case in cases]
    similarity = scorer.similarity(windows(rgb, cases, word), identities)
    if len(cases) > counts.candidates:
        raise ValueError(f"{len(cases)} cases for a retrieval among {counts.candidates}: draw as many")
    return top1(similarity, torch.arange(len(cases)))


def score_prompt(judges: Judges, rgb: np.ndarray, cases: list[Case]) -> dict[str, Any]:
    """Share of the prompt's attributes that the picture shows, and each attribute on its own."""
    correct = judges.prompt.correct(rgb, [case.picture for case in cases])
    everything = torch.cat(list(correct.values()))
    return {"all": rate(everything), "attributes": {name: rate(ok) for name, ok in correct.items()}}
