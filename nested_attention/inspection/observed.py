"""What a cross-attention layer shows to those who watch it while pictures are sampled.

Both hosts call observers with the layer's queries, keys and values, before the layer runs. Observers compute
what they want from them with the functions of `attention.py`, beside whatever back end runs the layer, and
change nothing: pictures are the same, bit for bit, with and without them. Letters as in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..attention import BoundSubject

Box = tuple[int, int, int, int, int, int]
"""A part of a picture: top, left, height, width of the part, then height and width of the whole, in cells."""


@dataclass(frozen=True, eq=False)
class ObservedSubject:
    """A subject of a forward pass. mask, word: (B, T) bool on the CPU, the tokens whose value is replaced and
    all of the word's. The mask leaves out negative prompts, whose attention is to what the picture is steered
    away from. bind: the subject at this layer, in all rows; None where it does not count."""

    name: str
    mask: Tensor
    word: Tensor
    bind: Callable[[], BoundSubject | None]

    @property
    def rows(self) -> list[int]:
        """The rows of positive prompts that carry it."""
        return self.mask.any(dim=1).nonzero().flatten().tolist()


@dataclass(frozen=True, eq=False)
class ObservedLayer:
    """One cross-attention layer in one forward pass.

    site: the layer's name. step: number of the sampling's step, from 0. grid: rows and columns of its
    queries. places: number of the picture and part of it, of each row. query (B, L, H·d), key and value
    (B, T, H·d), projected.
    """

    site: str
    step: int
    grid: tuple[int, int]
    places: Sequence[tuple[int, Box]]
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    subjects: Sequence[ObservedSubject]


class Observer(Protocol):
    """Is called from one thread at a time, and lives as long as one sampling."""

    def watches(self, site: str) -> bool:
        """Whether it wants to see this layer at all."""

    def see(self, layer: ObservedLayer) -> None:
        """Takes what it wants; must not write to tensors, nor keep them."""
