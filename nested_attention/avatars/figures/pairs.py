"""Two people in one picture, on one word and one encoder: who stands where, with and without each measure.

The paper leaves subjects of one domain open; the measures here are the regions of `regions.py`. Each person
is looked for where the prompt puts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.statistics import rate, top1
from ..drawing.shown import Shown
from ..models.pixels import encode_pictures
from ..models.scorers import IdentityScorer
from ..models.world import Attached, Sampling
from .cases import Case, draw_cases, true_drawings
from .judges import RECOGNISER, Counts, Judges, generate, score_prompt
from .likeness import among_twins, identity_of, rates_and_hits

WORD = "person"


@dataclass(frozen=True)
class Separation:
    """What keeps two people apart: SubjectSettings' fields. masks: the picture's halves."""

    masks: bool = False
    auto_region: bool = False
    bounded: bool = False
    bound_self_attention: bool = False


SEPARATIONS = {
    "nothing": Separation(),
    "masks": Separation(masks=True),
    "masks, bounded": Separation(masks=True, bounded=True),
    "masks, self-attention": Separation(masks=True, bound_self_attention=True),
    "masks, bounded, self-attention": Separation(masks=True, bounded=True, bound_self_attention=True),
    "auto": Separation(auto_region=True),
    "auto, bounded": Separation(auto_region=True, bounded=True),
    "auto, self-attention": Separation(auto_region=True, bound_self_attention=True),
    "auto, bounded, self-attention": Separation(auto_region=True, bounded=True, bound_self_attention=True),
}


def people(
    judges: Judges, counts: Counts, say: Callable[[str], None], sampling: Sampling | None = None
) -> dict[str, Any]:
    """The figures under each measure, beside those of the base model without and with a description of both
    people, and of the true drawing: `score_slots` by each scorer, and `score_prompt`."""
    cases = draw_cases((WORD, WORD), counts.pairs, seed=5000, split=counts.half)
    crops = [np.stack([case.references[slot] for case in cases]) for slot in range(2)]
    subjects = [judges.world.attach(judges.encoders[WORD], crop, WORD) for crop in crops]
    drawn: dict[str, Callable[[], np.ndarray]] = {
        **{
            name: lambda measure=measure: generate(  # type: ignore[misc]
                judges, cases, place(subjects, cases, measure), sampling
            )
            for name, measure in SEPARATIONS.items()
        },
        "floor": lambda: generate(judges, cases, [], sampling),
        "described": lambda: generate(judges, cases, [], sampling, described=True),
        "ceiling": lambda: judges.world.decode(encode_pictures(true_drawings(cases))),
    }
    result: dict[str, Any] = {}
    for name, draw in drawn.items():
        rgb = draw()
        identity = {
            scorer: score_slots(judges, rgb, cases, counts.twins, scorer) for scorer in judges.of(WORD)
        }
        result[name] = {"identity": identity, "prompt": score_prompt(judges, rgb, cases)}
        told = "  ".join(f"{scorer}: both {each['both']['rate']:.2f}" for scorer, each in identity.items())
        say(f"people {name:30} {told}")
    return result


def place(subjects: Sequence[Attached], cases: list[Case], measure: Separation) -> list[Attached]:
    """The subjects on the word's first and second occurrence, under a measure."""
    return [
        replace(
            subject,
            occurrence=slot,
            region=halves(cases, slot) if measure.masks else None,
            settings=replace(
                subject.settings,
                region_mode="auto" if measure.auto_region else "mask",
                bounded=measure.bounded,
                bound_self_attention=measure.bound_self_attention,
            ),
        )
        for slot, subject in enumerate(subjects)
    ]


def halves(cases: list[Case], slot: int) -> Tensor:
    """The half of each picture in which the person stands, as a user would paint it. (n, 2, 2)"""
    left = torch.tensor([[1.0, 0.0]]).expand(2, -1)
    sides = [case.picture.figures[slot].placement for case in cases]
    return torch.stack([left if side == "left" else 1 - left for side in sides])


def score_slots(
    judges: Judges, rgb: np.ndarray, cases: list[Case], twins: int, scorer: str = RECOGNISER
) -> dict[str, Any]:
    """Pictures of two people (n, 32, 48, 3) uint8 → rates, and hits case by case.

    first, second: the person that the prompt names first or second is recognised in its place, among all of
    them and the other of the pair. both: both are. swapped: the other one is recognised there instead (of all
    places). own: the right one of the two is the more likely (of all places); own_both: in both places of a
    picture. among_twins: of all places, those of the first person first.
    """
    judge: IdentityScorer = judges.of(WORD)[scorer]
    rows = torch.arange(len(cases))
    right, swapped, own, near = [], [], [], []
    for slot in range(2):
        subjects = [(case.picture, slot) for case in cases]
        shown = [Shown.of(*subject) for subject in subjects]
        similarity = judge.similarity(rgb, shown, [identity_of(subject) for subject in subjects])
        mine, other = similarity[rows, rows], _of_others(judge, rgb, cases, shown, slot)
        among = torch.cat([similarity, other[:, None]], dim=1)
        right.append(top1(among, rows))
        swapped.append(top1(among, torch.full_like(rows, len(cases))))
        own.append(mine > other)
        near.append(among_twins(judge, rgb, subjects, twins))
    hits = {
        "first": right[0],
        "second": right[1],
        "both": right[0] & right[1],
        "own_both": own[0] & own[1],
        "among_twins": torch.cat(near),
    }
    return {**rates_and_hits(hits), "swapped": rate(torch.cat(swapped)), "own": rate(torch.cat(own))}


def _of_others(
    judge: IdentityScorer, rgb: np.ndarray, cases: list[Case], shown: Sequence[Shown], slot: int
) -> Tensor:
    """How much each picture's place looks like the other of the pair. (n,)"""
    found = [
        judge.similarity(rgb[row : row + 1], [shown[row]], [identity_of((case.picture, 1 - slot))])
        for row, case in enumerate(cases)
    ]
    return torch.cat(found)[:, 0]
