"""One sampling of a batch: who observes it, and regions that are found in what words are attended to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace

from ...inspection.observed import Observer
from ...regions import RegionSearch
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
        self._slot, self._observers = slot, tuple(observers)
        rows = range(len(bindings[0].mask)) if bindings else range(0)
        self._take(bindings, rows if pictures is None else pictures, negative)
        names = [self._bindings[i].name for i in self._unplaced]
        self._search = RegionSearch(
            1 + max(self._pictures, default=0), names, names, steps, start="start=0", tell=logger.warning
        )

    def moved(
        self, bindings: Sequence[SubjectBinding], pictures: Sequence[int], negative: Collection[int] = ()
    ) -> AutomaticRegions:
        """The same sampling of the same pictures gone on with other rows: a pipeline that stops guiding
        halves its batch. What was seen, and what was found, is kept."""
        other = copy(self)
        other._take(bindings, pictures, negative)
        return other

    def _take(
        self, bindings: Sequence[SubjectBinding], pictures: Sequence[int], negative: Collection[int]
    ) -> None:
        self._bindings, self._pictures, self._negative = named(bindings), tuple(pictures), negative
        self._unplaced = [  # those whose region is to be found
            i for i, b in enumerate(self._bindings) if b.settings.region_mode == "auto" and b.region is None
        ]

    @property
    def watching(self) -> bool:
        return self._search.watching

    def at(self, step: int, active: Sequence[int] | None = None) -> tuple[SubjectBinding, ...]:
        """The bindings of a step, counted from 0; the slot is told who observes it.

        active: numbers of the bindings in force at this step, in order; all if left out.
        """
        self._search.step(step)
        if self._search.found is not None:
            rows = list(self._pictures)
            for i, number in enumerate(self._unplaced):
                region = self._search.found[rows, i]
                self._bindings[number] = replace(self._bindings[number], region=region)
            self._unplaced = []
        self._slot.step, self._slot.pictures, self._slot.negative = step, self._pictures, self._negative
        self._slot.observers = self._search.observers(self._observers)
        numbers = range(len(self._bindings)) if active is None else active
        return tuple(self._bindings[i] for i in numbers)


def named(bindings: Sequence[SubjectBinding]) -> list[SubjectBinding]:
    """Each with a name of its own: its subject's name or word, with a number where several have the same."""
    names = [b.name or b.settings.name or b.settings.word or "subject" for b in bindings]
    several = {name for name, count in Counter(names).items() if count > 1}
    seen: Counter[str] = Counter()
    found = []
    for binding, name in zip(bindings, names, strict=True):
        seen[name] += 1
        found.append(replace(binding, name=f"{name} {seen[name]}" if name in several else name))
    return found
