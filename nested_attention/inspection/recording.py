"""An observer that keeps maps of what subjects do, within a bound on memory.

Sums are kept where the layers run, on the first of several GPUs, and nothing is read on the host before the
sampling ends. A quarter of the bound is for what a layer's maps are computed from, some rows of places after
others. The rest is for what is kept, one half of it for maps of layers and steps, which are averaged over
two, four, eight … steps, the other for what places take of the subject's tokens, on a coarser grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from ..regions import area_mean, cells_of, follows_layout, resampled, shares
from ..subject import Subject
from .maps import Observation, SubjectMaps, finest
from .measure import COLOURS, Measured, in_row, measure, token_colours
from .observed import Box, ObservedLayer, ObservedSubject

Layers = Literal["decoder", "all"]
CHANNELS = 3 + COLOURS
"""Of a layer's maps: the word, the change, the place, three colours."""

WORK = 0.25
"""The part of the bound that computing may take."""

BYTES_OF_A_WEIGHT = 16
"""While attention weights are computed: logits, their softmax, and what is summed of them."""

CACHED_WEIGHTS = 2**20
"""Weights at once on a CPU, whose caches hold no more."""

CHANNELS_AT_ONCE = 64
"""Of a map that is brought to another grid."""

FEWEST_CELLS = 8
"""A side of the coarsest grid on which tokens are kept."""


@dataclass(frozen=True)
class Watch:
    """What is to be kept.

    layers: "decoder" sees the first layer of each of its transformers, where attention follows the layout
    best, "all" every layer. start, end: part of the sampling's steps, 0 ≤ start < end ≤ 1. tokens: how many
    of the strongest are kept for each place. megabytes: bound on what is held while sampling, with what
    computing takes besides; that is a layer's keys and a row of places at least.
    """

    layers: Layers = "decoder"
    start: float = 0.0
    end: float = 1.0
    tokens: int = 8
    megabytes: float = 128

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise NestedAttentionError(
                f"start is {self.start} and end is {self.end}; expected 0 ≤ start < end ≤ 1"
            )

    def watches(self, site: str) -> bool:
        return self.layers == "all" or follows_layout(site)

    def steps(self, number: int) -> range:
        """Of a sampling of so many steps: at least one."""
        first = min(round(self.start * number), number - 1)
        return range(first, max(first + 1, round(self.end * number)))


@dataclass(frozen=True, eq=False)
class Recorded:
    """A subject of the sampling: what observers call it, what users call it, its word, who it is in each
    picture, from the first again where there are more, and how many tokens its encoder makes of a picture."""

    name: str
    title: str
    word: str
    subjects: Sequence[Subject]
    queries: int

    def of(self, picture: int) -> Subject:
        return self.subjects[picture % len(self.subjects)]


class Tally:
    """Sums of maps over a whole picture, (C, H, W), and how often each cell was added to."""

    def __init__(self, channels: int, grid: tuple[int, int], device: torch.device) -> None:
        self.sum = torch.zeros(channels, *grid, device=device)
        self.count = torch.zeros(grid, device=device)

    @property
    def grid(self) -> tuple[int, int]:
        return self.count.shape[0], self.count.shape[1]

    @staticmethod
    def bytes(channels: int, grid: tuple[int, int]) -> int:
        return 4 * (channels + 1) * grid[0] * grid[1]

    def add(self, maps: Tensor, part: Box, at: slice | None = None, rows_of_part: int = 0) -> None:
        """maps: (C, h, w), of a part of the picture; brought to this grid's cells. at: which of the part's
        rows they are, if not all."""
        at, height_of_part = at or slice(0, maps.shape[1]), rows_of_part or maps.shape[1]
        rows, columns = cells_of(part, self.grid)
        size = rows.stop - rows.start, columns.stop - columns.start
        if (height_of_part, maps.shape[2]) == size:
            here = slice(rows.start + at.start, rows.start + at.stop), columns
            self.sum[:, here[0], here[1]] += maps
            self.count[here] += 1
            return
        down, across = shares(height_of_part, size[0])[:, at], shares(maps.shape[2], size[1])
        touched = down.any(dim=1).nonzero().flatten().tolist()
        down = down[touched[0] : touched[-1] + 1]
        here = slice(rows.start + touched[0], rows.start + touched[-1] + 1), columns
        for channels in range(0, len(maps), CHANNELS_AT_ONCE):
            some = slice(channels, channels + CHANNELS_AT_ONCE)
            self.sum[some, here[0], here[1]] += resampled(maps[some], down, across)
        self.count[here] += down.sum(dim=1, keepdim=True).to(self.count)

    def merge(self, other: Tally) -> None:
        """Adds what another one of the same picture holds, on the finer of the two grids."""
        grid, device = finest([self.grid, other.grid]), self.sum.device
        if self.grid != grid:
            self.sum, self.count = area_mean(self.sum, grid), area_mean(self.count, grid)
        theirs = [other.sum, other.count]
        if other.grid != grid:
            theirs = [area_mean(x, grid) for x in theirs]
        self.sum += theirs[0].to(device)
        self.count += theirs[1].to(device)

    def mean(self) -> Tensor:
        """(C, H, W) on the CPU; 0 where nothing was added."""
        return (self.sum / self.count.clamp_min(1)).cpu()


@dataclass(eq=False)
class _Kept:
    """Of one subject in one picture. maps: by site and group of steps."""

    subject: Subject
    colours: Tensor  # (N, 3)
    tokens: Tally
    maps: dict[tuple[str, int], Tally] = field(default_factory=dict)


class Recording:
    """An observer of one sampling. pictures: how many are sampled, in `steps` steps. on_step: is called when
    a step has been seen: as the next one begins, or at the end."""

    def __init__(
        self,
        watch: Watch,
        subjects: Sequence[Recorded],
        *,
        pictures: int,
        steps: int,
        on_step: Callable[[Recording], None] | None = None,
    ) -> None:
        self.watch = watch
        self.subjects = {one.name: one for one in subjects}
        self.pictures = pictures
        self.steps = watch.steps(steps)
        self.number = steps
        self.group = 1  # steps that are averaged
        self.step = -1  # the last that was seen
        self._on_step = on_step
        self._kept: dict[tuple[int, str], _Kept] = {}
        self._bytes = {"maps": 0, "tokens": 0}

    @property
    def bytes(self) -> int:
        """What is held now, in bytes."""
        return sum(self._bytes.values())

    def watches(self, site: str) -> bool:
        return self.watch.watches(site)

    def see(self, layer: ObservedLayer) -> None:
        """Adds what each subject does in each row that carries it.

        Raises NestedAttentionError if what one step takes is beyond the bound.
        """
        if layer.step not in self.steps:
            return
        if self.step not in (-1, layer.step) and self._on_step is not None:
            self._on_step(self)
        self.step = layer.step
        # Made in inference mode, what is kept could not be added to by a thread that is not in it.
        with torch.inference_mode(False), torch.no_grad():
            bound = [(one, found) for one in layer.subjects if (found := one.bind()) is not None]
            for row in range(len(layer.query)):
                here = [
                    pair for pair in bound if pair[0].name in self.subjects and bool(pair[0].mask[row].any())
                ]
                for one, _ in here:
                    self._add(layer, row, one, measure_row(layer, row, here, one, self._weights(layer)))

    def _add(
        self, layer: ObservedLayer, row: int, one: ObservedSubject, found: Iterable[tuple[slice, Measured]]
    ) -> None:
        picture, part = layer.places[row]
        kept = self._of(picture, one.name, part, layer.query.device)
        device = kept.colours.device  # of the GPU that saw it first
        rows, columns = layer.grid
        parts = []
        for at, measured in found:
            nested = measured.nested[:, : len(kept.colours)]  # (l, N), without what fills up a shorter row
            nested = nested.to(device)
            of_tokens = nested.T.unflatten(1, (-1, columns))
            kept.tokens.add(of_tokens, part, slice(at.start // columns, at.stop // columns), rows)
            of_place = torch.stack([measured.word, measured.change, measured.place]).to(device)
            parts.append(torch.cat([of_place, (nested @ kept.colours).T]))  # (6, l)
        maps = torch.cat(parts, dim=1).unflatten(1, layer.grid)
        key = layer.site, layer.step // self.group
        if key not in kept.maps:
            size = tuple(
                -(-cells * part[4 + axis] // part[2 + axis]) for axis, cells in enumerate(layer.grid)
            )
            self._make_room(Tally.bytes(CHANNELS, (size[0], size[1])))
            key = layer.site, layer.step // self.group  # steps may have been averaged to make room
            if key not in kept.maps:
                kept.maps[key] = Tally(CHANNELS, (size[0], size[1]), maps.device)
                self._bytes["maps"] += Tally.bytes(CHANNELS, (size[0], size[1]))
        kept.maps[key].add(maps, part)

    def _of(self, picture: int, name: str, part: Box, device: torch.device) -> _Kept:
        if (picture, name) not in self._kept:
            subject = self.subjects[name].of(picture)
            tokens, grid = len(subject.tokens), self._token_grid((part[4], part[5]))
            self._bytes["tokens"] += Tally.bytes(tokens, grid)
            colours = self._colours(subject).to(device)
            self._kept[picture, name] = _Kept(subject, colours, Tally(tokens, grid, device))
        return self._kept[picture, name]

    def _colours(self, subject: Subject) -> Tensor:
        """As `token_colours`, once for all pictures of a subject: of thousands of tokens it takes seconds."""
        known = (one.colours for one in self._kept.values() if one.subject is subject)
        found = next(known, None)
        return token_colours(subject) if found is None else found

    def _token_grid(self, latent: tuple[int, int]) -> tuple[int, int]:
        """The finest halving of the latent's grid on which all tokens of all pictures fit into half the
        bound. Raises NestedAttentionError if none is."""
        who = [one.of(picture) for one in self.subjects.values() for picture in range(self.pictures)]
        grid = latent
        while (needed := sum(Tally.bytes(len(one.tokens), grid) for one in who)) > self._half:
            grid = -(-grid[0] // 2), -(-grid[1] // 2)
            if min(grid) < min(FEWEST_CELLS, *latent):
                self._refuse(needed)  # on the coarsest grid
        return grid

    @property
    def _half(self) -> float:
        """Of what may be kept, in bytes."""
        return self.watch.megabytes * 1e6 * (1 - WORK) / 2

    def _weights(self, layer: ObservedLayer) -> int:
        """How many attention weights of a layer are computed at once."""
        most = int(self.watch.megabytes * 1e6 * WORK / BYTES_OF_A_WEIGHT)
        return min(most, CACHED_WEIGHTS) if layer.query.device.type == "cpu" else most

    def _make_room(self, more: int) -> None:
        """Averages over twice as many steps until so many bytes fit. Raises NestedAttentionError if that does
        not help."""
        while self._bytes["maps"] + more > self._half:
            if self.group >= len(self.steps):
                self._refuse(self._bytes["maps"] + more)
            self.group *= 2
            for kept in self._kept.values():
                merged: dict[tuple[str, int], Tally] = {}
                for (site, number), tally in kept.maps.items():
                    key = site, number // 2
                    if key in merged:
                        merged[key].merge(tally)
                    else:
                        merged[key] = tally
                kept.maps = merged
            tallies = [tally for kept in self._kept.values() for tally in kept.maps.values()]
            self._bytes["maps"] = sum(Tally.bytes(CHANNELS, tally.grid) for tally in tallies)

    def _refuse(self, half: float) -> None:
        needed = 2 * half / (1 - WORK)
        raise NestedAttentionError(
            f"Observe Subjects: the maps of {self.pictures} pictures with {len(self.subjects)} subjects take "
            f"more than {needed / 1e6:.1f} MB, and megabytes allows {self.watch.megabytes:g}. Raise it, "
            "observe fewer layers, or draw fewer pictures at once"
        )

    def glimpse(self) -> list[tuple[str, Tensor]]:
        """Each subject, and its word's map in the first picture that it is seen in, (h, w): the mean of the
        last group of steps so far, on the CPU."""
        found: dict[str, Tensor] = {}
        for (_, name), kept in sorted(self._kept.items(), key=lambda item: item[0][0]):
            if name in found or not kept.maps:
                continue
            last = max(number for _, number in kept.maps)
            maps = [tally.mean()[:1] for (_, number), tally in kept.maps.items() if number == last]
            grid = finest((m.shape[1], m.shape[2]) for m in maps)
            found[name] = torch.stack([area_mean(m, grid) for m in maps]).mean(dim=0)[0]
        return [(self.subjects[name].title, attention) for name, attention in found.items()]

    def finish(self) -> Observation:
        """What was seen, on the CPU."""
        if self.step >= 0 and self._on_step is not None:
            self._on_step(self)
        groups = sorted({number for kept in self._kept.values() for _, number in kept.maps})
        spans = []
        for number in groups:
            last = min((number + 1) * self.group, self.steps.stop) - 1
            spans.append((max(number * self.group, self.steps.start), last))
        found = []
        for (picture, name), kept in sorted(
            self._kept.items(), key=lambda i: (i[0][0], self._order(i[0][1]))
        ):
            who = self.subjects[name]
            sites = list(dict.fromkeys(site for site, _ in kept.maps))
            maps = {}
            for site in sites:
                means = {n: tally.mean() for (s, n), tally in kept.maps.items() if s == site}
                grid = finest((x.shape[1], x.shape[2]) for x in means.values())
                maps[site] = torch.full((len(groups), CHANNELS, *grid), torch.nan)  # (groups, C, h, w)
                for at, n in enumerate(groups):
                    if n in means:
                        mean = means[n]
                        maps[site][at] = mean if mean.shape[1:] == grid else area_mean(mean, grid)
            strongest, queries = self.watch.tokens, who.queries
            tokens = kept.tokens.mean()
            found.append(
                SubjectMaps.of(
                    who.title,
                    who.word,
                    picture,
                    kept.subject,
                    maps,
                    tokens,
                    strongest=strongest,
                    queries=queries,
                )
            )
        return Observation(tuple(found), tuple(spans), self.number, self.pictures)

    def _order(self, name: str) -> int:
        return list(self.subjects).index(name)


def measure_row(
    layer: ObservedLayer,
    row: int,
    here: Sequence[tuple[ObservedSubject, object]],
    one: ObservedSubject,
    weights: int,
) -> Iterator[tuple[slice, Measured]]:
    """What a subject does in one row of the batch. here: all of its subjects, as they are bound."""
    at = slice(row, row + 1)
    subjects = [in_row(bound, row) for _, bound in here]  # type: ignore[arg-type]
    number = next(i for i, (other, _) in enumerate(here) if other is one)
    return measure(
        layer.query[at], layer.key[at], layer.value[at], subjects, number, heads=layer.heads,
        columns=layer.grid[1], weights=weights,
    )  # fmt: skip
