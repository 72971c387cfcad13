"""How the identity figures depend on the reference: any picture, a calm close-up, or several pictures.

The other figures' reference is a crop of any picture of the subject, in which a crown may cover its hair or
its eyes may be closed. An encoder cannot pass on what its reference hides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...paths import SMALL_WORLD
from ..drawing.references import reference_crop, sample_crop
from ..models.world import Attached, Sampling
from .cases import Case, draw_cases
from .judges import Counts, Judges, score_identity, score_prompt
from .records import circumstances

RESULTS = SMALL_WORLD / "references.json"
"""Where the committed figures are."""

CLOSE_UP = "a calm close-up"
SEVERAL = {"two pictures": 2, "four pictures": 4}


def measure(judges: Judges, counts: Counts, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The subjects, prompts and seeds of `acceptance.one_subject` with other references, by word and kind."""
    started = time.monotonic()
    result: dict[str, Any] = {}
    for word in judges.encoders:
        cases = draw_cases((word,), counts.subjects, seed=1000 + len(word))
        prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
        result[word] = {}
        for name, attached in _attached(judges, cases, word).items():
            rgb = judges.world.generate(prompts, seeds, [attached], Sampling())
            result[word][name] = {
                "identity": score_identity(judges, rgb, cases, word, counts),
                "prompt": score_prompt(judges, rgb, cases),
            }
            found = result[word][name]
            identity, prompt = found["identity"]["top1"]["rate"], found["prompt"]["all"]["rate"]
            say(f"{word:6} {name:16} identity {identity:.2f}  prompt {prompt:.3f}")
    result["run"] = circumstances(started)
    return result


def _attached(judges: Judges, cases: list[Case], word: str) -> dict[str, Attached]:
    """Each kind of reference, with the first of several pictures the case's own."""
    rng = np.random.default_rng(6000 + len(word))
    identities = [case.figure(word).identity for case in cases]
    encoder = judges.encoders[word]

    def attach(crops: list[np.ndarray]) -> Attached:
        return judges.world.attach(encoder, np.stack(crops), word)

    pictures = [attach([case.reference(word) for case in cases])]
    while len(pictures) < max(SEVERAL.values()):
        pictures.append(attach([sample_crop(rng, identity) for identity in identities]))
    together = {
        name: replace(pictures[0], tokens=torch.cat([one.tokens for one in pictures[:number]], dim=1))
        for name, number in SEVERAL.items()  # of equal weight, so that no token has a bias
    }
    return {CLOSE_UP: attach([reference_crop(identity) for identity in identities]), **together}
