"""The words' attention in the first steps of a sampling, from which regions are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....regions import watched, word_attention
from .layer import CarriedSubject
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
            rows = one.mask.any(dim=1).nonzero().flatten().tolist()
            if region is None or not rows or not watched(self.site, grid, region.where.parts[rows[0]]):
                continue
            word = one.word_in(k.shape[1])[rows].to(q.device, non_blocking=True)
            seen = word_attention(q[rows], k[rows], word, heads=extra_options["n_heads"])
            region.run.watch(one.subject, rows, seen.unflatten(1, grid), region.where)
        return self.layer(q, k, v, extra_options)
