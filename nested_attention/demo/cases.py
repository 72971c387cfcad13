"""What the demo draws: people and pets that no model has seen, in scenes and outfits kept from training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..avatars.drawing.identity import Identity
from ..avatars.drawing.prompts import prompt, sample_picture
from ..avatars.drawing.references import held_out, reference_crop
from ..avatars.figures.cases import Case


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the demo. The prompts name nothing that the identities fix.

    person, pet: seeds of the subjects, as Demo World takes them. alone: the person in a scene; together: both
    in another one. Both start from the same noise.
    """

    person: int
    pet: int
    alone: Case
    together: Case


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a host drew of one row: pictures (32, 32, 3) uint8 in art pixels, of both subjects (32, 48, 3).

    base: the prompt without any subject. alone: the same prompt and noise, with the person. together: both
    subjects.
    """

    base: np.ndarray
    alone: np.ndarray
    together: np.ndarray


def make_rows(number: int, seed: int = 0) -> list[Row]:
    """`number` rows, the same for the same seed."""
    rows = []
    for own in range(1000 * seed, 1000 * seed + number):
        person, pet = held_out("person", own), held_out("pet", own)
        rng = np.random.default_rng(own)
        alone = _case(rng, (person,), own)
        rows.append(Row(person=own, pet=own, alone=alone, together=_case(rng, (person, pet), own)))
    return rows


def _case(rng: np.random.Generator, identities: tuple[Identity, ...], seed: int) -> Case:
    picture = sample_picture(rng, identities, "heldout")
    references = tuple(reference_crop(figure.identity) for figure in picture.figures)
    return Case(picture, prompt(picture, rng), "", references, seed)
