"""What the small world's judges, who took part in no other training, say of the demo's pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..avatars.drawing.references import held_out
from ..avatars.figures.cases import Case
from ..avatars.models.nearest import NearestDrawing
from ..avatars.models.scorers import load_prompt_scorer, load_recogniser, prompt_labels
from ..evaluation.statistics import top1
from .cases import Drawn, Row

CANDIDATES = 100
"""Among how many held-out subjects, the right one included, each is to be recognised."""


def report(rows: Sequence[Row], drawn: Sequence[Drawn]) -> list[str]:
    """Lines to print. Raises FileNotFoundError, naming the file, if a scorer is missing."""
    alone, together = [row.alone for row in rows], [row.together for row in rows]
    base_rgb, alone_rgb, together_rgb = (
        np.stack([getattr(pictures, name) for pictures in drawn]) for name in ("base", "alone", "together")
    )
    judge = load_prompt_scorer()
    pictures = [case.picture for case in alone]
    wanted = [prompt_labels(picture) for picture in pictures]
    followed = {}
    for name, rgb in (("base", base_rgb), ("alone", alone_rgb)):
        answers = judge.answers(rgb, pictures)
        right = [answers[key] == torch.tensor([labels[key] for labels in wanted]) for key in answers]
        followed[name] = torch.cat(right).float().mean()
    return [
        f"Identity, recognised among {CANDIDATES} whom no model has seen (by the nearest drawing):",
        f"  the person                  {_identity('person', alone_rgb, alone)}",
        f"  the plain base model        {_identity('person', base_rgb, alone)}",
        f"  person with pet: the person {_identity('person', together_rgb, together)}",
        f"                   the pet    {_identity('pet', together_rgb, together)}",
        "What the prompt asked for (scene, style, clothes, accessory, place, mood): with the subject "
        f"{followed['alone']:.0%}, plain base model {followed['base']:.0%}",
    ]


def _identity(word: str, rgb: np.ndarray, cases: list[Case]) -> str:
    """How many pictures (n, 32, W, 3) show their subject rather than any other candidate, in words: by the
    recogniser, and by the nearest drawing."""
    shown = [case.shown(word) for case in cases]
    others = [held_out(word, 10**6 + number) for number in range(CANDIDATES - 1)]
    counted = []
    for scorer in (load_recogniser(word), NearestDrawing()):
        hits = []
        for n, case in enumerate(cases):
            own = case.figure(word).identity
            similarity = scorer.similarity(rgb[n : n + 1], shown[n : n + 1], [own, *others])
            hits.append(top1(similarity, torch.tensor([0])))
        counted.append(int(torch.cat(hits).sum()))
    return f"{counted[0]} of {len(cases)} ({counted[1]})"
