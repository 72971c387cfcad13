"""What the demo draws: people and pets that no model has seen, in scenes and outfits kept from training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..avatars.identity import Identity
from ..avatars.picture import Picture
from ..avatars.prompts import prompt, sample_picture
from ..avatars.references import held_out


@dataclass(frozen=True)
class Case:
    """One row of the demo. The prompts name nothing that the identities fix.

    person, pet: seeds of the subjects. alone: the person in a scene; together: both in another one. noise:
    the seed that all pictures of the row start from.
    """

    person: int
    pet: int
    identities: tuple[Identity, Identity]
    alone: Picture
    alone_prompt: str
    together: Picture
    together_prompt: str
    noise: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a host drew of one case: pictures (32, 32, 3) uint8 in art pixels.

    base: the prompt without any subject. alone: the same prompt and noise, with the person. together: both
    subjects.
    """

    base: np.ndarray
    alone: np.ndarray
    together: np.ndarray


def make_cases(number: int, seed: int = 0) -> list[Case]:
    """`number` rows, the same for the same seed."""
    cases = []
    for row in range(number):
        number_of_row = 1000 * seed + row
        person, pet = held_out("person", number_of_row), held_out("pet", number_of_row)
        rng = np.random.default_rng(number_of_row)
        alone = sample_picture(rng, (person,), "heldout")
        together = sample_picture(rng, (person, pet), "heldout")
        cases.append(
            Case(
                person=number_of_row,
                pet=number_of_row,
                identities=(person, pet),
                alone=alone,
                alone_prompt=prompt(alone, rng),
                together=together,
                together_prompt=prompt(together, rng),
                noise=number_of_row,
            )
        )
    return cases
