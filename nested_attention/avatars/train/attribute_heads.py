"""Attribute heads: classifiers that keep an encoder from leaving out what its denoising loss hardly asks for.

A denoising loss barely depends on a freckle or the shape of an ear, so that an encoder trained on it alone
keeps colours and drops shapes. Heads that exist only in training classify every attribute from the mean of
the tokens, as a face recogniser's embedding does where subjects are photographed people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..drawing.identity import KINDS, Person, Pet, attributes

ATTRIBUTES: dict[str, int] = {
    **attributes(Person),
    **{f"pet_{name}": number for name, number in attributes(Pet).items()},
}
"""The attributes of both kinds of subject, with the number of values: columns of `draw_crops` labels."""


def columns_of(word: str) -> slice:
    """Where the attributes of one kind of subject stand among `ATTRIBUTES`."""
    people = len(attributes(Person))
    return slice(0, people) if KINDS[word] is Person else slice(people, len(ATTRIBUTES))


def attribute_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The sum over attributes of the mean cross-entropy, in nats. → ()

    logits (B, values) an attribute; labels (B, attributes) int64, −1 where an attribute does not apply:
    such a row counts for nothing, and an attribute that applies to no row adds 0.
    """
    sums = [
        functional.cross_entropy(each, labels[:, i], ignore_index=-1, reduction="sum")
        for i, each in enumerate(logits)
    ]
    return (torch.stack(sums) / (labels >= 0).sum(dim=0).clamp(min=1)).sum()


class AttributeHeads(nn.Module):
    """One linear classifier an attribute; each reads the mean token.

    width: of the tokens. sizes: the number of values of each attribute.
    """

    def __init__(self, width: int, sizes: Iterable[int]) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(B, N, width) → logits (B, values) of each attribute"""
        mean = tokens.mean(dim=1)
        return [head(mean) for head in self.each]

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """`attribute_loss` of tokens (B, N, width) and labels (B, attributes)."""
        return attribute_loss(self(tokens), labels)
