"""Who judges an evaluation, as its settings name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import NestedAttentionError
from ..hosts.diffusers.vision import load_vision
from .models import AestheticScorer, ClipScorer, DinoScorer
from .recognisers import FaceFinder, OnnxRecogniser, PackagedRecogniser, Recogniser
from .samples import Sample
from .scorers import CountScorer, IdentityScorer, Scorer, everybody
from .settings import ScorerSettings


def load_judges(
    settings: ScorerSettings, samples: Sequence[Sample], find: FaceFinder, vision: Any = None
) -> list[Scorer]:
    """The judges, loaded. vision: the encoder's own vision model, where it is known.

    Raises NestedAttentionError for one that cannot be loaded, and if there is none.
    """
    found: list[Scorer] = []
    people = everybody(samples)
    if people:
        recognisers: list[Recogniser] = [PackagedRecogniser(find)] if settings.packaged else []
        for own in settings.recognisers:
            recognisers.append(
                OnnxRecogniser(own.file, find, name=own.name, pixels=own.pixels, threshold=own.threshold)
            )
        found += [IdentityScorer(recogniser, people) for recogniser in recognisers]
        if recognisers:
            found.append(CountScorer(find))
    if settings.clip is not None:
        if vision is None and settings.vision is not None:
            vision = load_vision(settings.vision)
        clip = ClipScorer(settings.clip, vision)
        found.append(clip)
        if settings.aesthetic is not None:
            found.append(AestheticScorer(settings.aesthetic, clip))
    if settings.dino is not None:
        found.append(DinoScorer(settings.dino))
    if not found:
        raise NestedAttentionError(
            "nobody judges the pictures: packaged is false or no subject has a face, and recognisers, clip "
            "and dino are empty; expected at least one of them under scorers"
        )
    return found
