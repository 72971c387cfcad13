"""What covers a part of a head on a reference picture: no prompt says it, and no picture is asked to show it.

An encoder cannot pass on what a cover hides. Each hides another third of the head, so that several references
with different ones hide nothing together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .canvas import Color

COVERS = ("a hat pulled low", "a sleeping mask", "a scarf over the nose")

NAVY, RED, WHITE = (40, 60, 140), (210, 60, 70), (236, 236, 240)
PLUM, DARK, LILAC = (96, 64, 150), (60, 40, 90), (230, 220, 250)
GREEN, CREAM = (60, 140, 90), (220, 220, 200)


CENTRE, TOP = 14, 8
"""Column border of the face's centre and row of its top, as `picture.crop_window` cuts them."""


def cover(crop: np.ndarray, name: str, *, moved: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A crop with one of COVERS on it. (28, 28, 3) uint8

    moved: how much further right and down than `picture.crop_window` it is cut.
    """
    rgb = crop.copy()
    x, y = CENTRE - moved[0], TOP - moved[1]

    def rows(top: int, widths: Sequence[int], color: Color) -> None:
        for row, width in enumerate(widths, start=y + top):
            if 0 <= row < len(rgb):
                rgb[row, max(x - width // 2, 0) : x + width // 2] = color

    if name == "a hat pulled low":
        rows(-8, [4, 6], WHITE)
        rows(-6, [12, 16, 20, 20, 22, 22, 22], NAVY)
        rows(1, [24, 24, 24], RED)
    elif name == "a sleeping mask":
        rows(5, [26, 26], DARK)
        rows(3, [18, 20, 20, 20, 20, 20, 18], PLUM)
        for left in (x - 6, x + 2):
            rgb[y + 7, left : left + 4] = LILAC
            rgb[y + 6, [left - 1, left + 4]] = LILAC
    elif name == "a scarf over the nose":
        rows(9, [20, 22, 22, 22, 22, 22, 20, 18], GREEN)
        for row in (10, 12, 14, 16):
            rows(row, [20], CREAM)
    else:
        raise ValueError(f"no cover is called {name!r}; there are {', '.join(COVERS)}")
    return rgb
