"""One subject in one forward pass, to be bound at each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....attention import BoundSubject
from ..prompts.marks import fit
from .applied import AppliedSubject
from .regions import PassRegion, grid_of


@dataclass(frozen=True, eq=False)
class CarriedSubject:
    """A subject in one forward pass: rows and tokens that carry it, (B, T) bool on the CPU.

    region: where it counts, None for everywhere.
    """

    subject: AppliedSubject
    values: Any
    mask: Tensor
    word: Tensor
    token_bias: Tensor | None
    region: PassRegion | None = None

    @property
    def strength(self) -> float:
        return self.subject.strength

    def word_in(self, tokens: int) -> Tensor:
        """(B, tokens) bool on the CPU: all tokens of the word, in a context of that length."""
        return fit(self.word, tokens)

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
