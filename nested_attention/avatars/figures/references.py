"""What the reference decides: any picture, a calm close-up, and several that each hide a part (Figure 13).

The other figures' reference is a crop of any picture of the subject, in which a crown may cover its hair or
its eyes may be closed. An encoder cannot pass on what its reference hides. Several references that each hide
another third of the head hide nothing together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.statistics import from_text, mcnemar
from ..drawing.covers import COVERS, cover
from ..drawing.identity import Identity
from ..drawing.references import close_up, reference_crop
from ..models.world import Attached
from .cases import Case, draw_cases
from .judges import SCORERS, Counts, Judges, generate, score_identity, score_prompt

CLOSE_UP, TOGETHER = "a calm close-up", "the three together"

HIDING = dict(zip(COVERS, ("snow", "room", "beach"), strict=True))
"""References that each hide a part of the head: what covers it, and the scene of the picture."""


def references(judges: Judges, counts: Counts, say: Callable[[str], None], *, word: str) -> dict[str, Any]:
    """The subjects, prompts and seeds of `acceptance.one_subject` with other references.

    against: for each that hides a part, in how many pictures the three together are recognised and it is not,
    and the other way round, by each scorer.
    """
    cases = draw_cases((word,), counts.subjects, seed=1000 + len(word), split=counts.half)
    result: dict[str, Any] = {"kinds": {}, "against": {}}
    hits: dict[str, dict[str, Tensor]] = {}
    for name, attached in _attached(judges, cases, word).items():
        rgb = generate(judges, cases, [attached])
        identity = score_identity(judges, rgb, cases, word, counts)
        result["kinds"][name] = {"identity": identity, "prompt": score_prompt(judges, rgb, cases)}
        hits[name] = {scorer: from_text(identity[scorer]["hits"]["top1"]) for scorer in SCORERS}
        told = "  ".join(f"{scorer} {identity[scorer]['top1']['rate']:.2f}" for scorer in SCORERS)
        say(f"{word:6} {name:20} {told}")
    for name in HIDING:
        result["against"][name] = {
            scorer: mcnemar(hits[TOGETHER][scorer], hits[name][scorer]) for scorer in SCORERS
        }
    return result


def hiding_crop(identity: Identity, name: str) -> np.ndarray:
    """A reference of a subject that hides a part of it. (28, 28, 3) uint8"""
    rgb, _ = close_up(identity, HIDING[name])
    return cover(rgb, name)


def _attached(judges: Judges, cases: list[Case], word: str) -> dict[str, Attached]:
    """Each kind of reference."""
    identities = [case.figure(word).identity for case in cases]

    def attach(crops: Sequence[np.ndarray]) -> Attached:
        return judges.world.attach(judges.encoders[word], np.stack(crops), word)

    alone = {name: attach([hiding_crop(identity, name) for identity in identities]) for name in HIDING}
    first, *_ = alone.values()
    tokens = torch.cat([one.tokens for one in alone.values()], dim=1)
    return {
        CLOSE_UP: attach([reference_crop(identity) for identity in identities]),
        **alone,
        TOGETHER: replace(first, tokens=tokens),  # of equal weight, so that no token has a bias
    }
