"""What can be said of a figure and of a picture in words: what the text encoders learn to read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..drawing.identity import Person, Pet
from ..drawing.picture import STYLES, Figure, Picture
from ..drawing.pose import EXPRESSIONS, PLACEMENTS
from ..drawing.scenes import SCENES
from ..drawing.wardrobe import ACCESSORIES, CLOTHES

NAMED: dict[str, int] = {
    **{f"person_{name}": len(values) for name, values in Person.NAMED.items()},
    **{f"pet_{name}": len(values) for name, values in Pet.NAMED.items()},
}
"""What words can say of who somebody is, with the number of values: of a person, then of a pet."""

_SHOWN: dict[str, tuple[str, ...]] = {
    "clothes": tuple(CLOTHES),
    "accessory": tuple(ACCESSORIES),
    "expression": EXPRESSIONS,
    "placement": PLACEMENTS,
}

FIGURE_LABELS: dict[str, int] = {**NAMED, **{name: len(values) for name, values in _SHOWN.items()}}
"""What can be said of a figure: who it is, then what it wears, feels and where it stands."""

SETTING_LABELS: dict[str, int] = {"scene": len(SCENES), "style": len(STYLES)}
"""What can be said of a whole picture."""


def figure_labels(figure: Figure) -> list[int]:
    """The values of FIGURE_LABELS for one figure; −1 for what is said of the other kind only."""
    identity = figure.identity
    of_person = identity.named() if isinstance(identity, Person) else (-1,) * len(Person.NAMED)
    of_pet = identity.named() if isinstance(identity, Pet) else (-1,) * len(Pet.NAMED)
    shown = (figure.clothes, figure.accessory, figure.pose.expression, figure.placement)
    places = [names.index(value) for names, value in zip(_SHOWN.values(), shown, strict=True)]
    return [*of_person, *of_pet, *places]


def setting_labels(picture: Picture) -> list[int]:
    """The values of SETTING_LABELS."""
    return [list(SCENES).index(picture.scene), STYLES.index(picture.style)]


def label_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The sum over labels of the mean cross-entropy, in nats. → ()

    logits (B, values) a label; labels (B, number) int64, −1 where one does not apply: such a row counts for
    nothing, and a label that applies to no row adds 0.
    """
    sums = [
        functional.cross_entropy(each, labels[:, i], ignore_index=-1, reduction="sum")
        for i, each in enumerate(logits)
    ]
    return (torch.stack(sums) / (labels >= 0).sum(dim=0).clamp(min=1)).sum()
