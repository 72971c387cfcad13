"""The judges of the small world's figures, and how they score pictures.

Every picture counts: a failed one is a miss. Who is shown is judged twice, by a recogniser that has learned
it from drawings, and by the nearest drawing, which nothing has been learned for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...attention import BoundSubject
from ...checkpoint import load_subject_encoder
from ...encoder import SubjectEncoder
from ...evaluation.statistics import as_text, balanced, rate, top1
from ...paths import SMALL_WORLD
from ..drawing.identity import Half
from ..models.nearest import NearestDrawing
from ..models.scorers import (
    PROMPT_ATTRIBUTES,
    IdentityScorer,
    PromptScorer,
    Recogniser,
    load_prompt_scorer,
    load_recogniser,
    prompt_labels,
)
from ..models.world import Attached, Sampling, World, load_world
from .cases import Case
from .likeness import Subject, among_twins, identity_of, rates_and_hits

SUBJECTS = ("person", "pet")

RECOGNISER, NEAREST = "recogniser", "nearest drawing"
SCORERS = (RECOGNISER, NEAREST)
"""Who judges identity."""

AS_SHIPPED = Sampling()
"""How the figures' pictures are sampled."""

OF_PICTURE = ("scene", "style")
"""What a prompt decides once a picture; the rest is decided for each figure."""


@dataclass(frozen=True)
class Counts:
    """How many cases a run draws, and of which half of the held-out subjects."""

    subjects: int = 100
    pairs: int = 100
    twins: int = 20
    pose_and_style: int = 64
    steady: int = 16
    half: Half = "development"


@dataclass(frozen=True, eq=False)
class Judges:
    """The world, the encoders and the scorers a run needs."""

    world: World
    encoders: dict[str, SubjectEncoder]
    recognisers: dict[str, Recogniser]
    prompt: PromptScorer
    nearest: NearestDrawing = field(default_factory=NearestDrawing)

    @classmethod
    def load(cls, folder: Path = SMALL_WORLD) -> Judges:
        """Everything from the shipped files."""
        return cls(
            world=load_world(folder),
            encoders={
                word: load_subject_encoder(folder / f"{word}_encoder.safetensors") for word in SUBJECTS
            },
            recognisers={word: load_recogniser(word, folder) for word in SUBJECTS},
            prompt=load_prompt_scorer(folder),
        )

    def of(self, word: str) -> dict[str, IdentityScorer]:
        """The judges of people or pets, by name."""
        return {RECOGNISER: self.recognisers[word], NEAREST: self.nearest}


def attach(judges: Judges, cases: list[Case], word: str, attention_scale: float | None = None) -> Attached:
    """Each case's own subject on `word`, at the nodes' defaults unless λ is given."""
    crops = np.stack([case.reference(word) for case in cases])
    scale = BoundSubject.attention_scale if attention_scale is None else attention_scale
    return judges.world.attach(judges.encoders[word], crops, word, scale)


def generate(
    judges: Judges,
    cases: list[Case],
    attached: Sequence[Attached] = (),
    sampling: Sampling | None = None,
    *,
    described: bool = False,
) -> np.ndarray:
    """The cases' pictures, from their own noise, sampled as shipped by default. (n, 32, W, 3) uint8"""
    prompts = [case.described if described else case.prompt for case in cases]
    seeds = [case.seed for case in cases]
    width = cases[0].latent_width
    return judges.world.generate(prompts, seeds, attached, sampling or AS_SHIPPED, latent_width=width)


def subjects_of(cases: list[Case], word: str) -> list[Subject]:
    return [(case.picture, case.number(word)) for case in cases]


def identity_hits(
    judges: Judges, rgb: np.ndarray, cases: list[Case], word: str, scorer: str = RECOGNISER
) -> Tensor:
    """Top-1 retrieval of each case's subject among those of all cases. (n,) bool"""
    identities = [identity_of(subject) for subject in subjects_of(cases, word)]
    shown = [case.shown(word) for case in cases]
    similarity = judges.of(word)[scorer].similarity(rgb, shown, identities)
    return top1(similarity, torch.arange(len(cases)))


def score_identity(
    judges: Judges, rgb: np.ndarray, cases: list[Case], word: str, counts: Counts, *, marks: bool = False
) -> dict[str, Any]:
    """By each scorer: retrieval among all cases' identities, among near-twins, and (marks) among those that
    differ in marks alone."""
    result, subjects = {}, subjects_of(cases, word)
    for name, scorer in judges.of(word).items():
        hits = {
            "top1": identity_hits(judges, rgb, cases, word, name),
            "among_twins": among_twins(scorer, rgb, subjects, counts.twins),
        }
        if marks:
            hits["marks"] = among_twins(scorer, rgb, subjects, counts.twins, marks=True)
        result[name] = rates_and_hits(hits)
    return result


def prompt_hits(judges: Judges, rgb: np.ndarray, cases: list[Case], number: int) -> dict[str, Tensor]:
    """Whether the figure of a number shows each of the prompt's attributes. name → (n,) bool"""
    pictures = [case.picture for case in cases]
    labels = [prompt_labels(picture, number) for picture in pictures]
    return {
        name: answer == torch.tensor([label[name] for label in labels])
        for name, answer in judges.prompt.answers(rgb, pictures, number).items()
    }


def score_prompt(judges: Judges, rgb: np.ndarray, cases: list[Case]) -> dict[str, Any]:
    """Share of the prompt's attributes that the pictures show, and each attribute on its own.

    balanced: the mean over the six expressions (calm: none is named) of how often each is shown.
    """
    right: dict[str, list[Tensor]] = {name: [] for name in PROMPT_ATTRIBUTES}
    wanted: list[Tensor] = []
    for number in range(len(cases[0].picture.figures)):
        for name, hits in prompt_hits(judges, rgb, cases, number).items():
            if number == 0 or name not in OF_PICTURE:
                right[name].append(hits)
        labels = [prompt_labels(case.picture, number) for case in cases]
        wanted.append(torch.tensor([label["expression"] for label in labels]))
    correct = {name: torch.cat(each) for name, each in right.items()}
    return {
        "all": rate(torch.cat(list(correct.values()))),
        "balanced": balanced(correct["expression"], torch.cat(wanted)),
        "attributes": {name: rate(hits) for name, hits in correct.items()},
        "hits": {name: as_text(hits) for name, hits in correct.items()},
    }
