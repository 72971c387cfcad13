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
from ..drawing.identity import Identity
from ..drawing.picture import crop
from ..drawing.pose import window
from ..models.world import Attached, Sampling
from .cases import Case, draw_cases, true_drawings
from .judges import Counts, Judges
from .likeness import likeness

WORD = "person"


@dataclass(frozen=True)
class Measure:
    """What keeps two people apart: fields are SubjectBinding's, masks are the picture's halves."""

    masks: bool = False
    auto_region: bool = False
    bounded: bool = False
    bound_self_attention: bool = False


MEASURES = {
    "nothing": Measure(),
    "masks": Measure(masks=True),
    "masks, bounded": Measure(masks=True, bounded=True),
    "masks, self-attention": Measure(masks=True, bound_self_attention=True),
    "masks, bounded, self-attention": Measure(masks=True, bounded=True, bound_self_attention=True),
    "auto": Measure(auto_region=True),
    "auto, bounded": Measure(auto_region=True, bounded=True),
    "auto, self-attention": Measure(auto_region=True, bound_self_attention=True),
    "auto, bounded, self-attention": Measure(auto_region=True, bounded=True, bound_self_attention=True),
}


def people(
    judges: Judges, counts: Counts, say: Callable[[str], None], sampling: Sampling | None = None
) -> dict[str, Any]:
    """The figures under each measure, beside those of the base model without and with a description of both
    people, and of the true drawing.

    first, second: the person that the prompt names first or second is recognised in its place, among all of
    them and the other of the pair. both: both are. swapped: the other one is recognised there instead (of all
    places). own: the right one of the two is the more likely (of all places); own_both: in both places of a
    picture. among_twins, attributes: of all places.
    """
    cases = draw_cases((WORD, WORD), counts.pairs, seed=5000)
    crops = [np.stack([case.references[slot] for case in cases]) for slot in range(2)]
    subjects = [judges.world.attach(judges.encoders[WORD], crop, WORD) for crop in crops]
    world, prompts = judges.world, [case.prompt for case in cases]
    seeds, sampling = [case.seed for case in cases], sampling or Sampling()
    result = {}
    for name, measure in MEASURES.items():
        rgb = world.generate(prompts, seeds, place(subjects, cases, measure), sampling)
        result[name] = score_slots(judges, rgb, cases, counts.twins)
    result["floor"] = score_slots(judges, world.generate(prompts, seeds, [], sampling), cases, counts.twins)
    described = [case.described for case in cases]
    rgb = world.generate(described, seeds, [], sampling)
    result["described"] = score_slots(judges, rgb, cases, counts.twins)
    rgb = world.decode(world.encode(true_drawings(cases)))
    result["ceiling"] = score_slots(judges, rgb, cases, counts.twins)
    for name, figures in result.items():
        shown = {key: value["rate"] for key, value in figures.items() if key != "attributes"}
        say(f"people {name:30} " + "  ".join(f"{key} {value:.2f}" for key, value in shown.items()))
    return result


def place(subjects: Sequence[Attached], cases: list[Case], measure: Measure) -> list[Attached]:
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


def score_slots(judges: Judges, rgb: np.ndarray, cases: list[Case], twins: int) -> dict[str, Any]:
    """rgb (n, 32, 32, 3) uint8 → rates."""
    scorer = judges.identity[WORD]
    rows = torch.arange(len(cases))
    right, swapped, own = [], [], []
    places: list[np.ndarray] = []
    standing: list[Identity] = []
    for slot in range(2):
        figures = [case.picture.figures[slot] for case in cases]
        seen = np.stack([crop(x, window(f.placement)) for x, f in zip(rgb, figures, strict=True)])
        everyone = scorer.similarity(seen, [figure.identity for figure in figures])  # (n, n), own: diagonal
        places.append(seen)
        standing.extend(figure.identity for figure in figures)
        others = [case.picture.figures[1 - slot].identity for case in cases]
        other = scorer.similarity(seen, others)[rows, rows]
        among = torch.cat([everyone, other[:, None]], dim=1)
        right.append(top1(among, rows))
        swapped.append(top1(among, torch.full_like(rows, len(cases))))
        own.append(everyone[rows, rows] > other)
    return {
        "first": rate(right[0]),
        "second": rate(right[1]),
        "both": rate(right[0] & right[1]),
        "swapped": rate(torch.cat(swapped)),
        "own": rate(torch.cat(own)),
        "own_both": rate(own[0] & own[1]),
        **likeness(scorer, np.concatenate(places), standing, twins),
    }
