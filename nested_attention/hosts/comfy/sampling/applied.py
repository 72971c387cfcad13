"""A subject as Apply Subject put it on a MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....settings import SubjectSettings
from ..prompts.marks import mark_of
from .copies import Shared


@dataclass(frozen=True, eq=False)
class AppliedSubject(Shared):
    """How a subject counts, and what it needs for that.

    values: a managed SubjectValues, None at strength 0. batch: values and token bias of each picture's
    subject instead, where they have different ones. factors: on its strength, at each site.
    """

    settings: SubjectSettings
    values: Any
    token_bias: Tensor | None
    factors: Mapping[str, float]
    batch: tuple[tuple[Any, Tensor], ...] = ()

    @property
    def mark(self) -> int:
        return mark_of(self.settings.called.name)

    @property
    def strength(self) -> float:
        """In the layers where it is highest."""
        return self.settings.strength * max(self.factors.values())

    def strength_at(self, site: str) -> float:
        return self.settings.strength * self.factors[site]
