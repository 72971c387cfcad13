"""One sampling of a batch: who observes it, and regions that are found in what words are attended to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from ...inspection.observed import Observer
from ...regions import RegionFinder, watched_steps
from .binding import SubjectBinding
from .processors import SubjectSlot

logger = logging.getLogger("nested_attention")


class AutomaticRegions:
    """One sampling of a batch: bindings whose `region_mode` is "auto", and that have no region, get one.

        regions = AutomaticRegions(slot, bindings, steps=len(timesteps))
        for step, t in enumerate(timesteps):
            with slot.bind(*regions.at(step)): …        # the pass for positive prompts

    In the first steps (`regions.WATCHED_SHARE`) the words' attention is watched, without regions; from then
    on the regions are held. observers: see the layers of all steps. pictures: number of the picture that each
    row is; the row's own if left out. negative: rows of negative prompts, in which nothing is watched, and
    the pictures' regions are held. One sampling, and one thread at a time.
    """

    def __init__(
        self,
        slot: SubjectSlot,
        bindings: Sequence[SubjectBinding],
        steps: int,
        observers: Sequence[Observer] = (),
        pictures: Sequence[int] | None = None,
        negative: Collection[int] = (),
    ) -> None:
        self._negative = negative
        self._slot, self._observers = slot, tuple(observers)
        rows = range(len(bindings[0].mask)) if bindings else range(0)
        self._pictures = tuple(rows if pictures is None else pictures)
        self._bindings = named(bindings)
        self._automatic = [
            i for i, b in enumerate(self._bindings) if b.settings.region_mode == "auto" and b.region is None
        ]
        self._watched = watched_steps(steps) if self._automatic else 0
        self._names = [self._bindings[i].name for i in self._automatic]
        self._finder = RegionFinder(1 + max(self._pictures), self._names) if self._names else None
        for told in RegionFinder.too_few_steps(self._names, steps):
            logger.warning(told)
        self._found: Tensor | None = None

    def moved(
        self, bindings: Sequence[SubjectBinding], pictures: Sequence[int], negative: Collection[int] = ()
    ) -> AutomaticRegions:
        """The same sampling of the same pictures gone on with other rows: a pipeline that stops guiding
        halves its batch. What was seen, and what was found, is kept."""
        other = AutomaticRegions(self._slot, bindings, 0, self._observers, pictures, negative)
        other._watched, other._finder = self._watched, self._finder
        other._hold(self._found)
        return other

    def _hold(self, found: Tensor | None) -> None:
        self._found = found
        if found is not None:
            rows = list(self._pictures)
            regions = {number: found[rows, i] for i, number in enumerate(self._automatic)}
            self._bindings = tuple(
                replace(binding, region=regions[i]) if i in regions else binding
                for i, binding in enumerate(self._bindings)
            )

    @property
    def watching(self) -> bool:
        return self._finder is not None

    def at(self, step: int, active: Sequence[int] | None = None) -> tuple[SubjectBinding, ...]:
        """The bindings of a step, counted from 0; the slot is told who observes it.

        active: numbers of the bindings in force at this step, in order; all if left out.
        """
        if self._finder is not None and step >= self._watched:
            for told in self._finder.without_region(self._names, "start=0"):
                logger.warning(told)
            found, self._finder = self._finder.settle(), None
            self._hold(found)
        self._slot.step, self._slot.pictures, self._slot.negative = step, self._pictures, self._negative
        self._slot.observers = self._observers if self._finder is None else (*self._observers, self._finder)
        numbers = range(len(self._bindings)) if active is None else active
        return tuple(self._bindings[i] for i in numbers)


def named(bindings: Sequence[SubjectBinding]) -> tuple[SubjectBinding, ...]:
    """Each with a name of its own: its subject's name or word, with a number where several have the same."""
    names = [b.name or b.settings.name or b.settings.word or "subject" for b in bindings]
    several = {name for name, count in Counter(names).items() if count > 1}
    seen: Counter[str] = Counter()
    found = []
    for binding, name in zip(bindings, names, strict=True):
        seen[name] += 1
        found.append(replace(binding, name=f"{name} {seen[name]}" if name in several else name))
    return tuple(found)
