"""Subjects in one forward pass, to be bound at each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....attention import BoundSubject, onto
from ....errors import NestedAttentionError
from ..prompts.marks import fit
from .applied import AppliedSubject
from .batches import row_values
from .places import Pass
from .regions import PassRegion, grid_of
from .run import SamplingRun


@dataclass(frozen=True, eq=False)
class CarriedSubject:
    """A subject in one forward pass: rows and tokens that carry it, (B, T) bool on the CPU.

    region: where it counts, None for everywhere. seen: the mask without negative prompts, None if there are
    none.
    """

    subject: AppliedSubject
    values: Any
    mask: Tensor
    word: Tensor
    token_bias: Tensor | None
    region: PassRegion | None = None
    seen: Tensor | None = None

    @property
    def strength(self) -> float:
        return self.subject.strength

    def word_in(self, tokens: int) -> Tensor:
        """(B, tokens) bool on the CPU: all tokens of the word, in a context of that length."""
        return fit(self.word, tokens)

    def seen_in(self, tokens: int) -> Tensor:
        """(B, tokens) bool on the CPU: what observers are told of the mask, in a context of that length."""
        return fit(self.mask if self.seen is None else self.seen, tokens)

    def bind(
        self, site: str, query: Tensor, tokens: int, options: Mapping[str, Any] | None = None
    ) -> BoundSubject:
        """options: of the layer, needed with a region only."""
        key, value = self.values(site, query.device)
        region = None
        if self.region is not None and options is not None and self.subject.strength_at(site):
            region = self.region.at(grid_of(site, query.shape[1], options), query.device)
        return self.subject.settings.bind(
            key,
            value,
            fit(self.mask, tokens),
            word=self.word_in(tokens),
            factor=self.subject.factors[site],
            token_bias=self.token_bias,
            region=region,
        )


def carried_in(
    subjects: Sequence[AppliedSubject],
    codes: Tensor,
    device: torch.device,
    values: Mapping[Any, Any],
    run: SamplingRun | None = None,
    where: Pass | None = None,
) -> list[CarriedSubject]:
    """Which of the subjects the rows of a forward pass carry. codes: (B, T) on the CPU, negated in negative
    prompts.

    Raises NestedAttentionError where pictures or places matter, and nobody tells them.
    """
    found = []
    for number, subject in enumerate(subjects, 1):
        mask = codes.abs() == 2 * number
        if not bool(mask.any()):
            continue
        word, region = (codes.abs() >> 1) == number, None
        own, bias = values.get(subject.values), subject.token_bias
        if subject.batch or subject.settings.placed:
            if run is None or where is None:
                raise NestedAttentionError(
                    f"Apply Subject: {subject.settings.called.name!r} differs from picture to picture "
                    "or place to place, and another node runs the model without telling which pictures "
                    "it runs. Take it out, or give Apply Subject one subject and no region"
                )
            if subject.batch:
                own, bias = row_values(
                    [values[one] for one, _ in subject.batch],
                    [bias for _, bias in subject.batch],
                    where.pictures,
                )
            if subject.settings.placed:
                region = PassRegion(run.regions, subject, where)
                if not subject.settings.bounded:  # rows it leaves out are the base model's, exactly
                    mask = mask & ~run.regions.empty(subject, where)[:, None]
                    if not bool(mask.any()):
                        continue
        bias = None if bias is None else onto(bias, device)
        found.append(CarriedSubject(subject, own, mask, word, bias, region, mask & (codes > 0)))
        if run is not None:
            run.carrying.carried.add(subject.key)
    return found
