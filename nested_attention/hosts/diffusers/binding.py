"""A subject, as a UNet's layers read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ...attention import BoundSubject
from ...settings import SubjectSettings

PAPER = SubjectSettings(alpha=BoundSubject.alpha, norm=BoundSubject.norm, injection="nested")
"""As the paper trains its encoders."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SubjectBinding:
    """A subject in one forward pass of a UNet: `BoundSubject` for all of its cross-attention layers at once.

    `projections`, `mask` and `word` say where it is; `settings` say how it counts, but that the passes a
    subject counts in, and its prompt, are the caller's: `word`, `name`, `start`, `end`, `region`,
    `when_missing` and `apply_to_negative` of the settings are not read.
    """

    projections: Mapping[
        str, tuple[Tensor, Tensor]
    ]  # site → K̆, V̆ (1|B, N, inner), as SubjectEncoder.project gives
    mask: Tensor  # (B, T) bool, best on the CPU: no row is looked for on the device then
    word: Tensor | None = None  # (B, T) bool: all tokens of the word, for `bounded`; None: the mask
    settings: SubjectSettings = PAPER
    token_bias: Tensor | None = None  # (N,) or (1|B, N)
    region: Tensor | None = None  # (1|B, h, w) in [0, 1], at any resolution: averaged over each layer's grid
    name: str = ""  # what observers call it

    @cached_property
    def factors(self) -> Mapping[str, float]:
        """On the strength, at each site."""
        return self.settings.factors(self.projections)

    @property
    def strength(self) -> float:
        return self.settings.strength

    def strength_at(self, site: str) -> float:
        return self.settings.strength * self.factors[site]

    def at(self, site: str, region: Tensor | None = None) -> BoundSubject:
        """The subject at one layer. region: on the layer's grid, (1|B, L); None: everywhere."""
        key, value = self.projections[site]
        return self.settings.bind(
            key,
            value,
            self.mask,
            word=self.word,
            factor=self.factors[site],
            token_bias=self.token_bias,
            region=region,
        )
