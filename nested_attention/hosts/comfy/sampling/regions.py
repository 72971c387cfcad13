"""Regions of subjects while a batch of pictures is sampled: masks on each layer's grid, or found in the
words' attention.

What is found belongs to one sampling: a `SamplingRun` is made when it starts, travels in its own copy of the
transformer options, and goes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ....regions import RegionFinder, area_mean, watched, watched_steps, word_attention
from ..prompts.marks import KEY, warn_once
from .copies import Shared
from .places import Pass

if TYPE_CHECKING:
    from .layer import AppliedSubject, CarriedSubject

RegionMode = Literal["mask", "auto", "none"]
REGION_MODES: tuple[RegionMode, ...] = ("mask", "auto", "none")
Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SubjectRegion:
    """Where one subject counts.

    mask: (pictures, height, width) in [0, 1], fp32 on the CPU; None: everywhere, or where it is found.
    automatic: whether it is found in the word's attention. bounded: BoundSubject's. bounds_self_attention:
    whether self-attention is kept apart between this region and those of other subjects.
    """

    mask: Tensor | None = None
    automatic: bool = False
    bounded: bool = False
    bounds_self_attention: bool = False

    @property
    def anywhere(self) -> bool:
        """Whether it is the whole picture, always."""
        return self.mask is None and not self.automatic


def subject_region(
    mask: Tensor | None, mode: RegionMode, bounded: bool, bounds_self_attention: bool
) -> SubjectRegion:
    """The region Apply Subject was told. A mask that is connected goes before one that would be found.

    Raises NestedAttentionError, to be prefixed with who asks, for what is no MASK and an unknown mode.
    """
    if mode not in REGION_MODES:
        raise NestedAttentionError(
            f"region_mode is {mode!r}; expected one of {', '.join(map(repr, REGION_MODES))}"
        )
    checked = None if mask is None else _check_mask(mask)
    if mode == "none":
        return SubjectRegion()
    return SubjectRegion(checked, mode == "auto" and checked is None, bounded, bounds_self_attention)


def _check_mask(mask: Any) -> Tensor:
    """(height, width), (pictures, height, width) or (pictures, 1, height, width) → (pictures, height,
    width)"""
    found = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3) or 0 in mask.shape:
        raise NestedAttentionError(
            f"the region has {found}; expected a MASK (pictures, height, width). Connect the MASK output of "
            "Load Image (as Mask), of a mask editor or of a segmentation node"
        )
    mask = mask.detach().to("cpu", torch.float32, copy=True)
    if not bool(((mask >= -1e-3) & (mask <= 1 + 1e-3)).all()):  # false for NaN too
        low, high = mask.aminmax()
        raise NestedAttentionError(
            f"the region's values go from {float(low):.3g} to {float(high):.3g}; expected 0 (not here) to 1 "
            "(here). Check the node that made the mask"
        )
    return mask.clamp(0, 1) if mask.dim() == 3 else mask.clamp(0, 1)[None]


class SamplingRun(Shared):
    """What is kept from the start of one sampling to its end.

    batch: how many pictures are sampled. sigmas: noise levels of its steps.
    """

    def __init__(self, subjects: Sequence[AppliedSubject], batch: int, sigmas: Tensor) -> None:
        self.batch = batch
        active = [s for s in subjects if s.strength > 0]
        self.needs_places = any(not s.region.anywhere or s.batch for s in active)
        automatic = [s for s in active if s.region.automatic]
        self._names = [s.called.name for s in automatic]
        self._numbers = {s.mark: i for i, s in enumerate(automatic)}
        self._finder = RegionFinder(batch, len(self._numbers)) if self._numbers else None
        # Steps are told by their noise: samplers may evaluate the model several times a step.
        steps = len(sigmas) - 1
        self._until = float(sigmas[min(watched_steps(steps), steps)]) if self._numbers else 0.0
        self._found: Tensor | None = None  # (pictures, automatic subjects, H, W) once it is settled
        self._cache: dict[Any, Tensor | None] = {}  # by subject, pass, grid and device
        self._empty: dict[Any, Tensor] = {}
        self._biases: tuple[Any, dict[Any, Tensor]] = (None, {})  # of the last pass, by grid
        self._lock = threading.Lock()  # newer versions of ComfyUI run a thread for each GPU

    @staticmethod
    def of(transformer_options: Mapping[str, Any]) -> SamplingRun | None:
        return transformer_options.get(KEY)

    @property
    def watching(self) -> bool:
        """Whether the words' attention is being watched to find regions."""
        return self._finder is not None

    def step(self, timestep: Tensor) -> None:
        """At each step: settles the regions that are found once the first steps are over."""
        if self._finder is not None and float(timestep.flatten()[0]) <= self._until * (1 + 1e-4):
            self._warn_of_unseen(self._finder)
            self._found, self._finder = self._finder.settle(), None

    def _warn_of_unseen(self, finder: RegionFinder) -> None:
        if len(self._names) < 2:  # one alone has the whole picture anyway
            return
        for number in sorted(finder.unseen):
            warn_once(
                f"Apply Subject: no region was found for {self._names[number]!r}, whose word nothing "
                "attended in the first third of the steps, so it counts in the whole picture. Start it with "
                "the sampling (start_percent 0), or give it a mask"
            )

    def watch(self, subject: AppliedSubject, rows: Sequence[int], attention: Tensor, where: Pass) -> None:
        """attention (rows, h, w): what a layer attends to the subject's word in some rows of a pass."""
        number = self._numbers.get(subject.mark)
        with self._lock:
            for row, seen in zip(rows, attention, strict=True):
                if self._finder is not None and number is not None:
                    self._finder.add(number, where.pictures[row], seen, where.parts[row])

    def watches(self, subject: AppliedSubject) -> bool:
        return self.watching and subject.mark in self._numbers

    def region(self, subject: AppliedSubject, where: Pass, grid: Grid, device: torch.device) -> Tensor | None:
        """The subject's region in the rows of a pass, (1|B, L) in [0, 1]; None: everywhere, or not found
        yet."""
        maps = self._maps(subject)
        if maps is None:
            return None
        key = (subject.mark, where, grid, device)
        if key not in self._cache:
            rows = [(picture % len(maps), part) for picture, part in where.rows]
            means = {row: area_mean(maps[row[0]], grid, row[1]).flatten() for row in dict.fromkeys(rows)}
            values = torch.stack([means[row] for row in (rows[:1] if len(means) == 1 else rows)]).clamp(0, 1)
            whole = subject.region.mask is not None and bool((values == 1).all())  # read on the CPU
            self._cache[key] = None if whole else values.to(device, non_blocking=True)
        return self._cache[key]

    def empty(self, subject: AppliedSubject, where: Pass) -> Tensor:
        """(B,) bool on the CPU: rows that the subject's mask leaves out entirely."""
        mask = subject.region.mask
        if mask is None:
            return torch.zeros(len(where.pictures), dtype=torch.bool)
        key = (subject.mark, where)
        if key not in self._empty:
            rows = [(picture % len(mask), part) for picture, part in where.rows]
            bare = {row: not bool(area_mean(mask[row[0]], (1, 1), row[1])) for row in dict.fromkeys(rows)}
            self._empty[key] = torch.tensor([bare[row] for row in rows])
        return self._empty[key]

    def _maps(self, subject: AppliedSubject) -> Tensor | None:
        """(pictures, h, w), on the CPU if it is a mask."""
        if self._found is not None and subject.region.automatic:
            return self._found[:, self._numbers[subject.mark]]
        return subject.region.mask

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

    run: SamplingRun
    subject: AppliedSubject
    where: Pass

    def at(self, grid: Grid, device: torch.device) -> Tensor | None:
        """(1|B, L) in [0, 1]; None: everywhere, or not found yet."""
        return self.run.region(self.subject, self.where, grid, device)


def grid_of(site: str, queries: int, options: Mapping[str, Any]) -> Grid:
    """Rows and columns of a layer's queries. Raises NestedAttentionError if another node changed them."""
    height, width = options["activations_shape"][-2:]
    if height * width != queries:
        raise NestedAttentionError(
            f"Nested Attention: {site} has {queries} queries for {height} × {width} cells, so a region "
            "cannot "
            "be placed there: another node merges or tiles its tokens. Take it out, or set region_mode of "
            "Apply Subject to 'none'"
        )
    return height, width


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
