"""What the small world's judges, who took part in no other training, say of the demo's pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..avatars.drawing.references import held_out
from ..avatars.figures.cases import Case, windows
from ..avatars.models.scorers import load_identity_scorer, load_prompt_scorer
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
    followed = {
        name: torch.cat(list(judge.correct(rgb, [case.picture for case in alone]).values())).float().mean()
        for name, rgb in (("base", base_rgb), ("alone", alone_rgb))
    }
    return [
        f"Identity, recognised among {CANDIDATES} whom no model has seen (and attributes right):",
        f"  the person                  {_identity('person', alone_rgb, alone)}",
        f"  the plain base model        {_identity('person', base_rgb, alone)}",
        f"  person with pet: the person {_identity('person', together_rgb, together)}",
        f"                   the pet    {_identity('pet', together_rgb, together)}",
        "What the prompt asked for (scene, style, clothes, accessory, place): with the subject "
        f"{followed['alone']:.0%}, plain base model {followed['base']:.0%}",
    ]


def _identity(word: str, rgb: np.ndarray, cases: list[Case]) -> str:
    """How many pictures (n, 32, 32, 3) show their subject rather than any other candidate, in words."""
    scorer = load_identity_scorer(word)
    shown = windows(rgb, cases, word)
    truth = [case.figure(word).identity for case in cases]
    others = [held_out(word, 10**6 + number) for number in range(CANDIDATES - 1)]
    hits = [
        top1(scorer.similarity(shown[n : n + 1], [own, *(o for o in others if o != own)]), torch.tensor([0]))
        for n, own in enumerate(truth)
    ]
    attributes = torch.stack(list(scorer.correct(shown, truth).values())).float().mean()
    return f"{int(torch.cat(hits).sum())} of {len(cases)} ({attributes:.0%})"
