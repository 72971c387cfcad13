"""Whether pose and background stay when the subject changes (the paper's Figure 7).

Each prompt is drawn from one noise with several subjects, and from several noises with one subject. Of any
two pictures of a prompt it is asked whether their subjects stand at the same place, whether they look the
same way, and how much the background differs. Subjects are looked for wherever a figure can stand: at the
places that their prompt allows, most pictures of it would agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from ...evaluation.statistics import Mean, clustered_mean
from ..drawing.identity import Person, sample
from ..drawing.references import sample_crop
from .cases import Case, background, change, draw_cases
from .judges import Counts, Judges, attach, generate
from .pose_and_style import PLACES

WORD = Person.WORD
PICTURES = 4
"""Of a prompt: with as many subjects, and from as many noises."""


def steady(judges: Judges, counts: Counts, say: Callable[[str], None]) -> dict[str, Any]:
    """By `"subjects"` (one noise, several subjects) and `"noises"` (one subject, several noises).

    place, gaze: shares of pairs of pictures that agree, in place to the art pixel. Laughing eyes are shut, so
    that gaze leaves out prompts that ask for them. background: the mean difference outside the figures, of
    255.
    """
    cases = draw_cases((WORD,), counts.steady, seed=6500, split=counts.half)
    others = [_others(case, counts, number) for number, case in enumerate(cases)]
    noises = [
        [replace(case, seed=(case.seed + 7919 * step) % 2**31) for step in range(PICTURES)] for case in cases
    ]
    result = {}
    for name, groups in (("subjects", others), ("noises", noises)):
        flat = [case for group in groups for case in group]
        rgb = generate(judges, flat, [attach(judges, flat, WORD)])
        result[name] = _agreement(judges, rgb, flat)
        told = "  ".join(
            f"{k} {v if isinstance(v, float) else v['mean']:.2f}" for k, v in result[name].items()
        )
        say(f"steady {name:12} {told}")
    return result


def _others(case: Case, counts: Counts, number: int) -> list[Case]:
    """The same words and noise with other subjects, the case's own first."""
    rng, cases = np.random.default_rng([6500, number]), [case]
    while len(cases) < PICTURES:
        identity = sample(Person, rng, counts.half)
        figures = (replace(case.picture.figures[0], identity=identity),)
        picture = replace(case.picture, figures=figures)
        cases.append(replace(case, picture=picture, references=(sample_crop(rng, identity),)))
    return cases


def _agreement(judges: Judges, rgb: np.ndarray, cases: list[Case]) -> dict[str, Any]:
    """Over all pairs of pictures of one prompt; `PICTURES` pictures of a prompt follow each other."""
    shown = [case.shown(WORD) for case in cases]
    poses = judges.nearest.poses(rgb, shown, [case.figure(WORD).identity for case in cases], PLACES)
    outside = background(cases)
    groups = [range(start, start + PICTURES) for start in range(0, len(cases), PICTURES)]
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    place = {(a, b): (poses[a].x, poses[a].y) == (poses[b].x, poses[b].y) for a, b in pairs}
    awake = [(a, b) for a, b in pairs if shown[a].expression != "laughing"]
    gaze = {(a, b): poses[a].gaze == poses[b].gaze for a, b in awake}
    difference = [change(rgb[a][None], rgb[b][None], (outside[a] & outside[b])[None]) for a, b in pairs]
    return {
        "place": _share(place),
        "gaze": _share(gaze),
        "background": round(float(np.mean(difference)), 2),
    }


def _share(agree: Mapping[tuple[int, int], bool]) -> Mean:
    """With an interval over prompts: the pairs of a prompt share their pictures."""
    values = [float(each) for each in agree.values()]
    return clustered_mean(values, [str(first // PICTURES) for first, _ in agree])
