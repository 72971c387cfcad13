"""Maps of what subjects did in one sampling: by layer and step, averaged, and token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from ..regions import area_mean
from ..subject import Reference, Subject

WORD, CHANGE, PLACE, COLOURS = slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 6)
"""Channels of a layer's maps."""

Grid = tuple[int, int]


def finest(grids: Iterable[Grid]) -> Grid:
    """Of grids of one picture. A layer's changes where a node shrinks what is sampled for some steps, runs a
    part of it, or lets it grow."""
    return max(grids, key=lambda grid: grid[0] * grid[1])


@dataclass(frozen=True)
class Selection:
    """Which maps are averaged. layers: a part of their names, or a grid such as 32x32; empty: all. steps:
    first and last, from 0; None: all."""

    layers: str = ""
    steps: tuple[int, int] | None = None

    def takes(self, site: str, grid: Grid) -> bool:
        wanted = self.layers.strip().lower().replace("×", "x")
        return wanted in site or wanted == f"{grid[0]}x{grid[1]}"


@dataclass(frozen=True, eq=False)
class SubjectMaps:
    """One subject in one picture.

    title, word: what it is called, and what carries it. picture: number of the picture in its batch.
    maps: site → (groups of steps, 6, h, w): P[s*], the size of the change, the subject's place, three colours
    of the value; NaN where a group has not seen the layer. indices, weights: (k, h, w), the strongest of the
    subject's tokens at each place, strongest first, and their share of the nested attention. drawn:
    (references, h, w), the share of each reference's tokens, which sum to 1. queries: how many tokens of a
    reference there are, mostly a learned query each. references: the pictures it is made of, None for one
    that is not known any more.
    """

    title: str
    word: str
    picture: int
    maps: Mapping[str, Tensor]
    indices: Tensor
    weights: Tensor
    drawn: Tensor
    queries: int
    references: tuple[Reference | None, ...]

    @classmethod
    def of(
        cls,
        title: str,
        word: str,
        picture: int,
        subject: Subject,
        maps: Mapping[str, Tensor],
        nested: Tensor,
        *,
        strongest: int,
        queries: int,
    ) -> SubjectMaps:
        """nested: (N, h, w), each token's share. strongest: k. queries: tokens that the encoder makes of one
        picture."""
        references = subject.references or (None,) * (len(subject.tokens) // queries)
        top = nested[: len(subject.tokens)].topk(min(strongest, len(subject.tokens)), dim=0)
        drawn = nested[: len(subject.tokens)].unflatten(0, (len(references), -1)).sum(dim=1)
        queries = len(subject.tokens) // len(references)
        return cls(
            title,
            word,
            picture,
            maps,
            top.indices.int(),
            top.values,
            drawn,
            queries,
            references,
        )

    @property
    def grids(self) -> dict[str, Grid]:
        return {site: (x.shape[-2], x.shape[-1]) for site, x in self.maps.items()}

    def mean(
        self,
        channels: slice,
        selection: Selection,
        spans: Sequence[tuple[int, int]],
        grid: Grid | None = None,
        *,
        off: float = 0.0,
    ) -> Tensor:
        """(channels, h, w): the mean over layers and steps, on the finest of the layers' grids, or on `grid`.

        spans: first and last step of each group. off: what stands where the subject was off in all of them.
        Raises NestedAttentionError if nothing is selected.
        """
        first, last = selection.steps or (0, spans[-1][1])
        groups = [n for n, span in enumerate(spans) if span[0] <= last and first <= span[1]]
        chosen = (
            [x[groups] for s, x in self.maps.items() if selection.takes(s, self.grids[s])] if groups else []
        )
        if not chosen:
            shapes = sorted({f"{h}x{w}" for h, w in self.grids.values()})
            raise NestedAttentionError(
                f"no map has layers {selection.layers!r} and steps {selection.steps}; there are layers "
                f"{', '.join(sorted(self.maps))}, grids {', '.join(shapes)} and steps {spans[0][0]} to "
                f"{spans[-1][1]}"
            )
        grid = grid or finest((x.shape[-2], x.shape[-1]) for x in chosen)
        parts = [x[:, channels].nanmean(dim=0) for x in chosen]  # each (channels, h, w)
        return torch.stack([area_mean(part, grid) for part in parts]).nanmean(dim=0).nan_to_num(nan=off)

    def coloured(self, selection: Selection, spans: Sequence[tuple[int, int]]) -> Tensor:
        """The value's place among the subject's tokens as red, green and blue in [0, 1], (3, h, w).

        The same axes and the same scale whatever is selected: the mean over all layers, steps and places is
        the middle grey, and 1.5 standard deviations either way are the ends. Grey, too, where the subject was
        off.
        """
        everything = torch.cat([x[:, COLOURS].movedim(1, 0).flatten(1) for x in self.maps.values()], dim=1)
        known = everything[:, ~everything.isnan().any(dim=0)]
        middle, spread = (x[:, None, None] for x in (known.mean(dim=1), known.std(dim=1).clamp_min(1e-6)))
        shown = (self.mean(COLOURS, selection, spans, off=torch.nan) - middle) / (3 * spread) + 0.5
        return shown.clamp(0, 1).nan_to_num(nan=0.5)

    def strongest(self, number: int, spans: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
        """Places (x, y) in [0, 1] that attend to the word most, apart from one another."""
        attention = self._word(spans).clone()
        rows, columns = attention.shape
        apart = max(rows, columns) / 6
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        found: list[tuple[float, float]] = []
        while len(found) < number and bool((attention > 0).any()):
            row, column = divmod(int(attention.argmax()), columns)
            found.append(((column + 0.5) / columns, (row + 0.5) / rows))
            attention[(y - row).square() + (x - column).square() < apart**2] = 0
        return found

    def _word(self, spans: Sequence[tuple[int, int]]) -> Tensor:
        """How much each of the tokens' places attends to the word, (h, w)."""
        return self.mean(WORD, Selection(), spans, (self.weights.shape[1], self.weights.shape[2]))[0]

    def at(self, point: tuple[float, float]) -> list[tuple[int, float]]:
        """The strongest tokens at a place (x, y) in [0, 1], with their shares."""
        rows, columns = self.weights.shape[1:]
        column, row = (min(int(p * n), n - 1) for p, n in zip(point, (columns, rows), strict=True))
        indices, weights = self.indices[:, row, column].tolist(), self.weights[:, row, column].tolist()
        return list(zip(indices, weights, strict=True))

    def looked_at(self, tokens: Iterable[tuple[int, float]]) -> list[Tensor | None]:
        """Where in each reference picture such tokens come from: (rows, columns), the tokens' maps by their
        shares; None where the picture is not known, or was read as a whole."""
        looks = [one.looks() if one is not None and one.looks else None for one in self.references]
        found = [None if maps is None else torch.zeros(maps.shape[1:]) for maps in looks]
        for token, share in tokens:
            image, query = divmod(token, self.queries)
            maps, heat = looks[image], found[image]
            if maps is not None and heat is not None:
                heat += share * maps[query]
        return found

    def most_used(self, number: int, spans: Sequence[tuple[int, int]]) -> list[int]:
        """The tokens that all places together attend to most, by how much the word is attended there."""
        use = torch.zeros(self.queries * len(self.drawn))
        use.index_add_(0, self.indices.flatten().long(), (self.weights * self._word(spans)).flatten())
        return use.topk(min(number, len(use))).indices.tolist()


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen of one sampling: every subject in every picture that carried it, pictures in order.

    spans: first and last step of each group of steps, from 0. steps: of the sampling. pictures: of its batch.
    """

    subjects: tuple[SubjectMaps, ...]
    spans: tuple[tuple[int, int], ...]
    steps: int
    pictures: int

    def of(self, picture: int) -> list[SubjectMaps]:
        return [one for one in self.subjects if one.picture == picture]
