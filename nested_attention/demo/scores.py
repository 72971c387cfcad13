"""What the small world's judges, who took part in no other training, say of the demo's pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..avatars.identity import Identity
from ..avatars.picture import Picture, crop
from ..avatars.pose import window
from ..avatars.references import held_out
from .cases import Case, Drawn

CANDIDATES = 100
"""Among how many held-out subjects, the right one included, each is to be recognised."""


def report(cases: Sequence[Case], drawn: Sequence[Drawn]) -> list[str]:
    """Lines to print. Raises FileNotFoundError, naming the file, if a scorer is missing."""
    from ..avatars.scorers import load_prompt_scorer

    people, pets = zip(*(case.identities for case in cases), strict=True)
    alone, together = [case.alone for case in cases], [case.together for case in cases]
    base_rgb, alone_rgb, together_rgb = (
        np.stack([getattr(pictures, name) for pictures in drawn]) for name in ("base", "alone", "together")
    )
    found = {
        "base": _recognised("person", base_rgb, alone, people),
        "alone": _recognised("person", alone_rgb, alone, people),
        "person": _recognised("person", together_rgb, together, people),
        "pet": _recognised("pet", together_rgb, together, pets),
    }
    judge, rows = load_prompt_scorer(), len(cases)
    followed = [
        float(np.mean([answers.float().mean() for answers in judge.correct(rgb, alone).values()]))
        for rgb in (base_rgb, alone_rgb)
    ]
    return [
        f"The person, recognised among {CANDIDATES} whom no model has seen: with the subject "
        f"{found['alone']} of {rows}, plain base model {found['base']} of {rows}",
        f"Person and pet in one picture: person {found['person']} of {rows}, pet {found['pet']} of {rows}",
        "What the prompt asked for (scene, style, clothes, accessory, place): with the subject "
        f"{followed[1]:.0%}, plain base model {followed[0]:.0%}",
    ]


def _recognised(kind: str, rgb: np.ndarray, pictures: Sequence[Picture], truth: Sequence[Identity]) -> int:
    """How many pictures (n, 32, 32, 3) show their subject rather than any of the other candidates."""
    from ..avatars.scorers import load_identity_scorer

    scorer = load_identity_scorer(kind)
    others = [held_out(kind, 10**6 + number) for number in range(CANDIDATES - 1)]
    right = 0
    for picture, pixels, identity in zip(pictures, rgb, truth, strict=True):
        figure = next(figure for figure in picture.figures if type(figure.identity) is type(identity))
        shown = crop(pixels, window(figure.placement))[None]  # (1, 20, 20, 3)
        candidates = [identity, *(other for other in others if other != identity)]
        right += int(scorer.similarity(shown, candidates)[0].argmax() == 0)
    return right
