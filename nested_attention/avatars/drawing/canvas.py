"""A canvas of art pixels: the colour of every one, how light falls on it, and what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

SIZE = 32
"""Art pixels a side of a picture of one subject, and rows of every picture."""

WIDE = 48
"""Art pixels across a picture of two subjects."""

Color = tuple[int, int, int]
Point = tuple[int, int]


class Part(IntEnum):
    """What an art pixel shows."""

    BACKGROUND = 0
    BODY = 1
    HAIR = 2
    FACE = 3
    EYES = 4
    MOUTH = 5
    EARS = 6
    ACCESSORY = 7


@dataclass
class Canvas:
    """Colours and light, with two label planes: the part shown, and the number of its subject (0: none)."""

    width: int = SIZE
    rgb: np.ndarray = field(init=False)  # (32, width, 3) uint8
    light: np.ndarray = field(init=False)  # (32, width) float32: what colours are multiplied by, 1 is neutral
    part: np.ndarray = field(init=False)  # (32, width) uint8
    subject: np.ndarray = field(init=False)  # (32, width) uint8
    current: int = field(default=0, init=False)
    """The subject that is being drawn."""

    def __post_init__(self) -> None:
        shape = (SIZE, self.width)
        self.rgb = np.zeros((*shape, 3), np.uint8)
        self.light = np.ones(shape, np.float32)
        self.part = np.zeros(shape, np.uint8)
        self.subject = np.zeros(shape, np.uint8)

    def box(
        self,
        x: int,
        y: int,
        width: int,
        height: int,
        color: Color,
        part: Part = Part.BACKGROUND,
    ) -> None:
        """Fill a rectangle; what lies outside the canvas is clipped."""
        rows, columns = slice(max(y, 0), max(y + height, 0)), slice(max(x, 0), max(x + width, 0))
        self.rgb[rows, columns] = color
        self.light[rows, columns] = 1.0
        self.part[rows, columns] = part
        self.subject[rows, columns] = self.current

    def dots(self, points: Iterable[Point], color: Color, part: Part) -> None:
        """Set single art pixels, given as (x, y)."""
        for x, y in points:
            if 0 <= x < self.width and 0 <= y < SIZE:
                self.box(x, y, 1, 1, color, part)

    def spans(self, y: int, spans: Sequence[tuple[int, int]], color: Color, part: Part) -> None:
        """Rows from `y` down, each from its first column up to, not including, its last: any silhouette.

        Light falls from the left: the left edge of a silhouette is a little lighter, its right third darker.
        """
        for row, (left, right) in enumerate(spans, start=y):
            if right <= left:
                continue
            self.box(left, row, right - left, 1, color, part)
            shadow = max(1, (right - left) // 4)
            self.shade(left, row, 1, 1, 1.08)
            self.shade(right - shadow, row, shadow, 1, 0.86)

    def shade(self, x: int, y: int, width: int, height: int, factor: float) -> None:
        """Multiply the light on a rectangle."""
        rows, columns = slice(max(y, 0), max(y + height, 0)), slice(max(x, 0), max(x + width, 0))
        self.light[rows, columns] *= factor


def centred(x: int, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Spans of the given widths around the column border `x`."""
    return [(x - width // 2, x - width // 2 + width) for width in widths]
