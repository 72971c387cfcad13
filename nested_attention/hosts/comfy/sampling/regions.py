"""Regions of subjects while a batch of pictures is sampled: masks on each layer's grid, or found in the
words' attention.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....attention import onto
from ....errors import NestedAttentionError
from ....regions import RegionSearch, area_mean
from ..kept import Kept
from ..notices import warn_once
from .applied import AppliedSubject
from .copies import Shared
from .places import REGIONS, Pass, Purpose

Grid = tuple[int, int]

KEPT = 256
"""Regions that are kept for each subject: those of 64 tiles of a picture, on 4 grids."""


class RegionsOfRun(Shared):
    """The regions of one sampling's subjects, and what follows from them, for every pass and layer.

    subjects: those with a strength. pictures, steps: how many are sampled. search: who looks for the regions
    that are to be found.
    """

    def __init__(self, subjects: Sequence[AppliedSubject], pictures: int, steps: int) -> None:
        automatic = [s for s in subjects if s.settings.auto_region]
        self._numbers = {s.key: i for i, s in enumerate(automatic)}
        self.search = RegionSearch(
            pictures,
            list(self._numbers),
            [s.settings.called.name for s in automatic],
            steps,
            start="start_percent 0",
            tell=lambda told: warn_once(f"Apply Subject: {told}"),
        )
        limit = KEPT * max(1, len(subjects))
        self._regions: Kept[Tensor | None] = Kept(limit)  # by subject, pass, grid and device
        self._empty: Kept[Tensor] = Kept(limit)  # by subject and pass
        self._biases: tuple[Any, dict[Any, Tensor]] = (None, {})  # of the last pass, by grid
        self._lock = threading.Lock()  # newer versions of ComfyUI run a thread for each GPU

    def watches(self, subject: AppliedSubject) -> bool:
        """Whether the subject's region is still being found."""
        return self.search.watching and subject.key in self._numbers

    def region(self, subject: AppliedSubject, where: Pass, grid: Grid, device: torch.device) -> Tensor | None:
        """The subject's region in the rows of a pass, (1|B, L) in [0, 1]; None: everywhere, or not found
        yet."""
        maps = self._maps(subject)
        if maps is None:
            return None

        def make() -> Tensor | None:
            rows = [(picture % len(maps), part) for picture, part in where.rows]
            means = {row: area_mean(maps[row[0]], grid, row[1]).flatten() for row in dict.fromkeys(rows)}
            values = torch.stack([means[row] for row in (rows[:1] if len(means) == 1 else rows)]).clamp(0, 1)
            whole = subject.settings.region is not None and bool((values == 1).all())  # read on the CPU
            return None if whole else onto(values, device)

        return self._regions.get((subject.key, where, grid, device), make)

    def empty(self, subject: AppliedSubject, where: Pass) -> Tensor:
        """(B,) bool on the CPU: rows that the subject's mask leaves out entirely."""
        mask = subject.settings.region
        if mask is None:
            return torch.zeros(len(where.pictures), dtype=torch.bool)

        def make() -> Tensor:
            rows = [(picture % len(mask), part) for picture, part in where.rows]
            bare = {row: not bool(area_mean(mask[row[0]], (1, 1), row[1])) for row in dict.fromkeys(rows)}
            return torch.tensor([bare[row] for row in rows])

        return self._empty.get((subject.key, where), make)

    def _maps(self, subject: AppliedSubject) -> Tensor | None:
        """(pictures, h, w), on the CPU if it is a mask."""
        if self.search.found is not None and subject.settings.auto_region:
            return self.search.found[:, self._numbers[subject.key]]
        return subject.settings.region

    def bias(self, rows: Any, grid: Any, make: Callable[[], Tensor]) -> Tensor:
        """A bias for self-attention, made once for the layers of one grid. As they are large, only those of
        the last `rows` are kept: who stands where in a pass."""
        with self._lock:
            if self._biases[0] != rows:
                self._biases = rows, {}
            kept = self._biases[1]
            if grid not in kept:
                kept[grid] = make()
            return kept[grid]


@dataclass(frozen=True, eq=False)
class PassRegion:
    """A subject's region in one forward pass, at whichever layer asks."""

    of_run: RegionsOfRun
    subject: AppliedSubject
    where: Pass

    def at(self, grid: Grid, device: torch.device) -> Tensor | None:
        """(1|B, L) in [0, 1]; None: everywhere, or not found yet."""
        return self.of_run.region(self.subject, self.where, grid, device)


def grid_of(site: str, queries: int, options: Mapping[str, Any], purpose: Purpose = REGIONS) -> Grid:
    """Rows and columns of a layer's queries. Raises NestedAttentionError if another node changed them."""
    height, width = options["activations_shape"][-2:]
    if height * width != queries:
        raise NestedAttentionError(
            f"Nested Attention: {site} has {queries} queries for {height} × {width} cells, so "
            f"{purpose.lost}: another node merges or tiles its tokens. Take it out, or {purpose.way_out}"
        )
    return height, width
