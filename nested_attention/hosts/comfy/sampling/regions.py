"""Regions of subjects while a batch of pictures is sampled: masks on each layer's grid, or found in the
words' attention.

What is found belongs to one sampling: a `SamplingRun` is made when it starts, travels in its own copy of the
transformer options, and goes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....attention import onto
from ....errors import NestedAttentionError
from ....inspection.observed import ObservedLayer, Observer
from ....regions import RegionFinder, area_mean, watched_steps
from ..notices import warn_once
from ..prompts.encoded import Candidates
from ..prompts.marks import KEY
from .applied import AppliedSubject
from .copies import Shared
from .kept import Kept
from .places import MAPS, REGIONS, Pass, Places, Purpose, check_whole, on_tiles, places_of

Grid = tuple[int, int]


class SamplingRun(Shared):
    """What is kept from the start of one sampling to its end.

    batch, size: how many pictures are sampled, and their rows and columns of latent cells. sigmas: noise
    levels of its steps. rows_per_token: rows of a text context for each token that the layers see. coupled:
    prompts that another pack may bring in past the sampler, None if none can; `awaited` are the subjects that
    only they can carry, with what to say if they do not, `expected` those that the sampler's own carry,
    and `carried` those that some pass has carried. active: numbers of the subjects in force at the present
    step; stepped: at any step so far. observers: see the layers of every step; those that find regions come
    on top. number: of the present step.
    """

    def __init__(
        self,
        subjects: Sequence[AppliedSubject],
        batch: int,
        sigmas: Tensor,
        *,
        size: tuple[int, int] | None = None,
        rows_per_token: int = 1,
        coupled: Candidates | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.batch, self.size = batch, size
        self.rows_per_token = rows_per_token
        self.coupled = coupled
        self.awaited: dict[str, str] = {}
        self.carried: set[str] = set()
        self.active: set[int] = set()
        self.expected: set[str] = set()
        self.stepped: set[int] = set()
        self._latents: tuple[Tensor, list[int]] | None = None  # of this step, and which pictures they are
        active = [s for s in subjects if s.strength > 0]
        self._observers = tuple(observers)
        self.number = 0
        regions = any(s.settings.placed for s in active)
        self.purpose: Purpose = REGIONS if regions or not observers else MAPS
        self.needs_places = bool(observers) or any(s.settings.placed or s.batch for s in active)
        self._placed = bool(observers) or regions
        automatic = [s for s in active if s.settings.auto_region]
        self._names = [s.settings.called.name for s in automatic]
        self._numbers = {s.key: i for i, s in enumerate(automatic)}
        self._finder = RegionFinder(batch, list(self._numbers)) if self._numbers else None
        self._until = watched_steps(len(sigmas) - 1)
        for told in RegionFinder.too_few_steps(self._names, len(sigmas) - 1):
            warn_once(f"Apply Subject: {told}")
        self._sigmas = sigmas.tolist() if automatic or observers else []
        self._found: Tensor | None = None  # (pictures, automatic subjects, H, W) once it is settled
        self._cache: dict[Any, Tensor | None] = {}  # by subject, pass, grid and device
        self._empty: dict[Any, Tensor] = {}
        self._biases: tuple[Any, dict[Any, Tensor]] = (None, {})  # of the last pass, by grid
        self.codes: Kept[Any] = Kept(64)  # by a prompt's marks and the subjects in force
        self.passes: Kept[Any] = Kept(16)  # by the prompts of a forward pass, and where it is
        self._lock = threading.Lock()  # newer versions of ComfyUI run a thread for each GPU
        self._context = copy_context()  # which tells the node that samples; those threads have none

    @staticmethod
    def of(transformer_options: Mapping[str, Any]) -> SamplingRun | None:
        return transformer_options.get(KEY)

    def end(self) -> None:
        """Lets go of what was made for the layers."""
        self.codes.clear()
        self.passes.clear()

    @property
    def watching(self) -> bool:
        """Whether the words' attention is being watched to find regions."""
        return self._finder is not None

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who sees the layers of the present step."""
        return self._observers if self._finder is None else (*self._observers, self._finder)

    def watched(self, site: str) -> bool:
        """Whether anybody wants to see a layer at the present step."""
        return any(observer.watches(site) for observer in self.observers)

    def show(self, layer: ObservedLayer) -> None:
        with self._lock:
            for observer in self.observers:
                if observer.watches(layer.site):
                    self._context.copy().run(observer.see, layer)

    def step(self, timestep: Tensor) -> None:
        """At each step: settles the regions that are found once the first steps are over."""
        if not self.observers:
            return
        # Steps are told by their noise: samplers may evaluate the model several times a step.
        noise = float(timestep.flatten()[0])
        self.number = max(0, sum(noise <= sigma * (1 + 1e-4) for sigma in self._sigmas) - 1)
        if self._finder is not None and self.number >= self._until:
            for told in self._finder.without_region(self._names, "start_percent 0"):
                warn_once(f"Apply Subject: {told}")
            self._found, self._finder = self._finder.settle(), None

    def place(self, x: Tensor, transformer_options: Mapping[str, Any]) -> Places:
        """At each step: the places of its latents. Raises as `places_of` and `check_whole`."""
        if self._placed and self.size is not None:
            check_whole(x, self.size, self.purpose)
        places = places_of(x, self.batch, transformer_options, self.purpose)
        self._latents = x, places.cond[:, 0].tolist()
        return places

    def where(self, places: Tensor, x: Tensor) -> Pass:
        """The places of a forward pass on latents x, (B, C, h, w). Raises as `on_tiles`."""
        where = Pass.read(places)
        if not self._placed or self._latents is None:
            return where
        return on_tiles(where, x, *self._latents, self.purpose)

    def watches(self, subject: AppliedSubject) -> bool:
        return self.watching and subject.key in self._numbers

    def region(self, subject: AppliedSubject, where: Pass, grid: Grid, device: torch.device) -> Tensor | None:
        """The subject's region in the rows of a pass, (1|B, L) in [0, 1]; None: everywhere, or not found
        yet."""
        maps = self._maps(subject)
        if maps is None:
            return None
        key = (subject.key, where, grid, device)
        if key not in self._cache:
            rows = [(picture % len(maps), part) for picture, part in where.rows]
            means = {row: area_mean(maps[row[0]], grid, row[1]).flatten() for row in dict.fromkeys(rows)}
            values = torch.stack([means[row] for row in (rows[:1] if len(means) == 1 else rows)]).clamp(0, 1)
            whole = subject.settings.region is not None and bool((values == 1).all())  # read on the CPU
            self._cache[key] = None if whole else onto(values, device)
        return self._cache[key]

    def empty(self, subject: AppliedSubject, where: Pass) -> Tensor:
        """(B,) bool on the CPU: rows that the subject's mask leaves out entirely."""
        mask = subject.settings.region
        if mask is None:
            return torch.zeros(len(where.pictures), dtype=torch.bool)
        key = (subject.key, where)
        if key not in self._empty:
            rows = [(picture % len(mask), part) for picture, part in where.rows]
            bare = {row: not bool(area_mean(mask[row[0]], (1, 1), row[1])) for row in dict.fromkeys(rows)}
            self._empty[key] = torch.tensor([bare[row] for row in rows])
        return self._empty[key]

    def _maps(self, subject: AppliedSubject) -> Tensor | None:
        """(pictures, h, w), on the CPU if it is a mask."""
        if self._found is not None and subject.settings.auto_region:
            return self._found[:, self._numbers[subject.key]]
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

    run: SamplingRun
    subject: AppliedSubject
    where: Pass

    def at(self, grid: Grid, device: torch.device) -> Tensor | None:
        """(1|B, L) in [0, 1]; None: everywhere, or not found yet."""
        return self.run.region(self.subject, self.where, grid, device)


def grid_of(site: str, queries: int, options: Mapping[str, Any], purpose: Purpose = REGIONS) -> Grid:
    """Rows and columns of a layer's queries. Raises NestedAttentionError if another node changed them."""
    height, width = options["activations_shape"][-2:]
    if height * width != queries:
        raise NestedAttentionError(
            f"Nested Attention: {site} has {queries} queries for {height} × {width} cells, so "
            f"{purpose.lost}: another node merges or tiles its tokens. Take it out, or {purpose.way_out}"
        )
    return height, width
