"""Squares that lie in a picture at any angle, and the pictures that are cut out along them.

Places in a picture are complex numbers: x + iy in pixels from the upper left corner, y downwards, the
middle of the first pixel at 0.5 + 0.5i. Multiplying by i turns a vector by a quarter clockwise, as one sees
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

Padding = Literal["edge", "reflect"] | float
"""What lies beyond the border: its last pixels repeated, the picture mirrored, or one value."""

PADDINGS: dict[str, Padding] = {"edge": "edge", "reflect": "reflect", "white": 1.0}
"""By the names a user knows them by."""


@dataclass(frozen=True)
class Square:
    """A square by its middle and the vector from there to the middle of its right side."""

    centre: complex
    right: complex

    @classmethod
    def in_middle(cls, picture: Tensor) -> Square:
        """The largest around the middle of a picture (height, width, channels), as vision models read it."""
        height, width = picture.shape[:2]
        return cls(complex(width, height) / 2, complex(min(height, width) / 2))

    @property
    def side(self) -> float:
        """Pixels."""
        return 2 * abs(self.right)

    @property
    def corners(self) -> tuple[complex, complex, complex, complex]:
        """Upper left, upper right, lower right, lower left."""
        return tuple(self.place(u) for u in (-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j))  # type: ignore[return-value]

    def place(self, inside: complex) -> complex:
        """From −1 … 1 in both directions inside the square → the place in the picture."""
        return self.centre + self.right * inside

    def inside(self, place: complex) -> complex:
        """The reverse of `place`."""
        return (place - self.centre) / self.right


def cut(picture: Tensor, square: Square, size: int, padding: Padding = "edge") -> Tensor:
    """(height, width, channels) → (size, size, channels): what the square shows, upright.

    Resampled with respect to area: each pixel of the result is the mean of what it covers. Enlarging is
    bicubic, kept within the picture's own range of values.
    """
    picture, square = _around(picture, square, padding)
    pixels = picture.movedim(-1, 0)[None].float()
    if not isinstance(padding, str):  # zeros lie beyond the border of what is moved by the value
        pixels = pixels - padding
    step = square.side / size  # pixels of the picture per pixel of the result
    halved = 1
    while step / halved >= 2 and min(pixels.shape[-2:]) > 1:
        pixels = functional.avg_pool2d(pixels, 2, ceil_mode=True, count_include_pad=False)
        halved *= 2
    shrinks = step > halved
    samples = 2 if shrinks else 1  # a side, in each pixel of the result; never further apart than a pixel
    grid = _grid(square, size * samples, pixels.shape[-1] * halved, pixels.shape[-2] * halved)
    beyond = {"reflect": "reflection", "edge": "border"}[padding] if isinstance(padding, str) else "zeros"
    found = functional.grid_sample(
        pixels, grid.to(pixels), "bilinear" if shrinks else "bicubic", beyond, align_corners=False
    )
    low, high = torch.aminmax(pixels)
    if not isinstance(padding, str):
        found, low, high = found + padding, low.clamp(max=0) + padding, high.clamp(min=0) + padding
    return functional.avg_pool2d(found, samples).clamp(low, high)[0].movedim(0, -1)


def _around(picture: Tensor, square: Square, padding: Padding) -> tuple[Tensor, Square]:
    """The part of a picture that a square needs, and the square in it: the rest would only cost time."""
    margin = 2 + 2 * square.side / 128
    places = square.corners
    bounds = []
    for length, ends in (
        (picture.shape[1], [place.real for place in places]),
        (picture.shape[0], [place.imag for place in places]),
    ):
        low, high = math.floor(min(ends) - margin), math.ceil(max(ends) + margin)
        # A mirror may show any part of the picture; and of a square beside the picture nothing would be left.
        if (padding == "reflect" and (low < 0 or high > length)) or low >= length or high <= 0:
            return picture, square
        bounds.append((max(low, 0), min(high, length)))
    (left, right), (top, bottom) = bounds
    return picture[top:bottom, left:right], Square(square.centre - complex(left, top), square.right)


def _grid(square: Square, count: int, width: int, height: int) -> Tensor:
    """(1, count, count, 2): where the square's points lie, in −1 … 1 over the picture."""
    along = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1
    v, u = torch.meshgrid(along, along, indexing="ij")
    x = square.centre.real + square.right.real * u - square.right.imag * v
    y = square.centre.imag + square.right.imag * u + square.right.real * v
    return torch.stack([x / width * 2 - 1, y / height * 2 - 1], dim=-1)[None]
