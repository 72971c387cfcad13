"""The words' attention in the first steps of a sampling, from which regions are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....regions import watched_maps
from .carried import CarriedSubject
from .regions import grid_of


@dataclass(frozen=True, eq=False)
class WatchedLayer:
    """A layer's slot in the first steps of a sampling: the same, and what it attends to is noted."""

    layer: Any
    site: str
    carried: Sequence[CarriedSubject]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        grid = grid_of(self.site, q.shape[1], extra_options)
        for one in self.carried:
            region = one.region
            if region is None:
                continue
            word, parts, heads = one.word_in(k.shape[1]), region.where.parts, extra_options["n_heads"]
            seen = watched_maps(self.site, grid, parts, one.mask, word, q, k, heads=heads)
            region.run.watch(one.subject, seen, region.where)
        return self.layer(q, k, v, extra_options)
