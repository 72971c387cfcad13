"""A 32×32 canvas: the colour of every art pixel, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

SIZE = 32
"""Art pixels a side."""

Color = tuple[int, int, int]


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
    """Colours with two label planes: the part shown, and the number of its subject (0: none)."""

    rgb: np.ndarray = field(default_factory=lambda: np.zeros((SIZE, SIZE, 3), np.uint8))
    part: np.ndarray = field(default_factory=lambda: np.zeros((SIZE, SIZE), np.uint8))
    subject: np.ndarray = field(default_factory=lambda: np.zeros((SIZE, SIZE), np.uint8))
    current: int = 0
    """The subject that is being drawn."""

    def box(
        self, x: int, y: int, width: int, height: int, color: Color, part: Part = Part.BACKGROUND
    ) -> None:
        """Fill a rectangle; what lies outside the canvas is clipped."""
        rows, columns = slice(max(y, 0), max(y + height, 0)), slice(max(x, 0), max(x + width, 0))
        self.rgb[rows, columns] = color
        self.part[rows, columns] = part
        self.subject[rows, columns] = self.current

    def dots(self, points: list[tuple[int, int]], color: Color, part: Part = Part.BACKGROUND) -> None:
        """Set single art pixels, given as (x, y)."""
        for x, y in points:
            if 0 <= x < SIZE and 0 <= y < SIZE:
                self.rgb[y, x] = color
                self.part[y, x] = part
                self.subject[y, x] = self.current

    def rows(self, x: int, y: int, widths: list[int], color: Color, part: Part) -> None:
        """Stack of centred rows, top to bottom, around the column border `x`: any symmetric silhouette."""
        for index, width in enumerate(widths):
            self.box(x - width // 2, y + index, width, 1, color, part)


def shade(color: Color, factor: float) -> Color:
    """The colour made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (int(min(255, round(channel * factor))) for channel in color)
    return red, green, blue
