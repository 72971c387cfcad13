"""A subject as Apply Subject put it on a MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....placeholders import name_key
from ....settings import SubjectSettings
from ....subject import Subject
from ..graph import APPLY_SUBJECT, Applier
from .copies import Shared


@dataclass(frozen=True, eq=False)
class AppliedSubject(Shared):
    """How a subject counts, and what it needs for that.

    values: a managed SubjectValues, None at strength 0. batch: values and token bias of each picture's
    subject instead, where they have different ones. factors: on its strength, at each site. node: the
    identity of the node that applied it, if one did; by: which node that is. subjects: who it is, or who it
    is in each picture; queries: how many tokens the encoder makes of a picture.
    """

    settings: SubjectSettings
    values: Any
    token_bias: Tensor | None
    factors: Mapping[str, float]
    batch: tuple[tuple[Any, Tensor], ...] = ()
    node: str = ""
    by: Applier = APPLY_SUBJECT
    subjects: tuple[Subject, ...] = ()
    queries: int = 1

    @property
    def key(self) -> str:
        return name_key(self.settings.called.name)

    @property
    def strength(self) -> float:
        """In the layers where it is highest."""
        return self.settings.strength * max(self.factors.values())

    def strength_at(self, site: str) -> float:
        return self.settings.strength * self.factors[site]
