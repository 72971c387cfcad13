"""Regions of subjects that are found while pictures are sampled, in what their words are attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ...regions import RegionFinder, watched_maps, watched_steps
from .processors import SubjectBinding, SubjectSlot


class AutomaticRegions:
    """One sampling of a batch: bindings whose `region_mode` is "auto", and that have no region, get one.

        regions = AutomaticRegions(slot, bindings, steps=len(timesteps))
        for step, t in enumerate(timesteps):
            with slot.bind(*regions.at(step)): …        # the pass for positive prompts

    In the first steps (`regions.WATCHED_SHARE`) the words' attention is watched, without regions; from then
    on the regions are held. One sampling, and one thread at a time.
    """

    def __init__(self, slot: SubjectSlot, bindings: Sequence[SubjectBinding], steps: int) -> None:
        self._slot, self._bindings = slot, tuple(bindings)
        self._numbers = [
            i for i, b in enumerate(self._bindings) if b.settings.region_mode == "auto" and b.region is None
        ]
        self._watched = watched_steps(steps) if self._numbers else 0
        rows = len(self._bindings[0].mask) if self._bindings else 0
        self._finder: RegionFinder | None = RegionFinder(rows, len(self._numbers)) if self._numbers else None
        self._found: Tensor | None = None
        self._active: Sequence[int] = range(len(self._bindings))

    def moved(self, bindings: Sequence[SubjectBinding], rows: Sequence[int]) -> AutomaticRegions:
        """The same sampling gone on with another batch, whose row i is this one's row `rows[i]`: a pipeline
        that stops guiding halves its batch. What was seen, and what was found, is kept."""
        other = AutomaticRegions(self._slot, bindings, 0)
        other._watched = self._watched
        if self._finder is None:
            other._finder = None
            other._hold(None if self._found is None else self._found[list(rows)])
        else:
            other._finder = self._finder.of(rows)
        return other

    def _hold(self, found: Tensor | None) -> None:
        self._found = found
        if found is not None:
            regions = {number: found[:, i] for i, number in enumerate(self._numbers)}
            self._bindings = tuple(
                replace(binding, region=regions[i]) if i in regions else binding
                for i, binding in enumerate(self._bindings)
            )

    @property
    def watching(self) -> bool:
        return self._finder is not None

    def at(self, step: int, active: Sequence[int] | None = None) -> tuple[SubjectBinding, ...]:
        """The bindings of a step, counted from 0; the slot is set to watch, or no longer.

        active: numbers of the bindings in force at this step, in order; all if left out.
        """
        self._active = range(len(self._bindings)) if active is None else active
        if self._finder is not None and step >= self._watched:
            found, self._finder = self._finder.settle(), None
            self._hold(found)
        self._slot.watch = None if self._finder is None else self._watch
        return tuple(self._bindings[i] for i in self._active)

    def _watch(self, site: str, query: Tensor, key: Tensor, heads: int) -> None:
        height, width = self._slot.latent_size
        part = (0, 0, height, width, height, width)
        grid = self._slot.grid(site, query.shape[1])
        if self._finder is None:
            return
        for number, index in enumerate(self._numbers):
            binding = self._bindings[index]
            if not binding.strength or index not in self._active:
                continue
            word, mask = binding.mask if binding.word is None else binding.word, binding.mask
            parts = [part] * len(mask)
            for row, seen in watched_maps(site, grid, parts, mask, word, query, key, heads=heads):
                self._finder.add(number, row, seen, part)
