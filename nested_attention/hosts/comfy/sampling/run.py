"""What is kept from the start of one sampling to its end.

A `SamplingRun` is made when a sampling starts, travels in its own copy of the transformer options, and goes
with it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....inspection.observed import ObservedLayer, Observer
from ..kept import Kept
from ..prompts.encoded import Candidates
from ..prompts.marks import KEY
from .applied import AppliedSubject
from .copies import Shared
from .places import MAPS, REGIONS, Pass, Places, Purpose, check_whole, on_tiles, places_of
from .regions import RegionsOfRun


@dataclass(eq=False)
class Carrying:
    """Which subjects one sampling carries, as far as it has come; the chain writes it.

    expected: keys of those that the sampler's own prompts carry. awaited: keys of those that only prompts
    which come past no sampler can carry, with what to say if they do not. carried: keys of those that some
    pass has carried. active: numbers of the subjects in force at the present step; stepped: at any so far.
    """

    expected: set[str] = field(default_factory=set)
    awaited: dict[str, str] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    active: set[int] = field(default_factory=set)
    stepped: set[int] = field(default_factory=set)

    def step(self, active: set[int]) -> None:
        self.active = active
        self.stepped |= active

    def not_come(self, key: str) -> str | None:
        """What to say of a subject that was awaited and has not come; it is awaited no longer."""
        reason = self.awaited.pop(key, None)
        return None if key in self.carried else reason


class SamplingRun(Shared):
    """One sampling of a batch of pictures.

    batch, size: how many pictures are sampled, and their rows and columns of latent cells. sigmas: noise
    levels of its steps. rows_per_token: rows of a text context for each token that the layers see. coupled:
    prompts that another pack may bring in past the sampler, None if none can. observers: see the layers of
    every step; those that find regions come on top. number: of the present step.
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
        active = [s for s in subjects if s.strength > 0]
        placed = any(s.settings.placed for s in active)
        self.batch, self.size = batch, size
        self.rows_per_token = rows_per_token
        self.coupled = coupled
        self.carrying = Carrying()
        self.regions = RegionsOfRun(active, batch, len(sigmas) - 1)
        self.purpose: Purpose = REGIONS if placed or not observers else MAPS
        self.needs_places = bool(observers) or any(s.settings.placed or s.batch for s in active)
        self._placed = bool(observers) or placed
        self._observers = tuple(observers)
        self._sigmas = sigmas.tolist() if self.observers else []
        self.number = 0
        self._latents: tuple[Tensor, list[int]] | None = None  # of this step, and which pictures they are
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
    def observers(self) -> tuple[Observer, ...]:
        """Who sees the layers of the present step."""
        return self.regions.search.observers(self._observers)

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
        self.regions.search.step(self.number)

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
