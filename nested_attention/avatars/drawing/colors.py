"""Colours as identities have them: continuous, with the few words that a caption has for them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from .canvas import Color

INK: Color = (30, 22, 34)
WHITE: Color = (250, 250, 250)


def mix(one: Color, other: Color, share: float) -> Color:
    """From `one` (share 0) to `other` (share 1)."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def shade(color: Color, factor: float) -> Color:
    """Darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue


def ramp(stops: Sequence[Color], place: float) -> Color:
    """A colour on a line through `stops`, from the first (place 0) to the last (place 1)."""
    at = min(max(place, 0.0), 1.0) * (len(stops) - 1)
    first = min(int(at), len(stops) - 2)
    return mix(stops[first], stops[first + 1], at - first)


def tint(hue: float, lightness: float, saturation: float) -> Color:
    """Hue (0–1, red is 0), lightness and saturation (0–1) → RGB."""
    red, green, blue = colorsys.hls_to_rgb(hue % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def luma(color: Color) -> float:
    """Brightness as one sees it, 0–255."""
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


SKINS: tuple[Color, ...] = (
    (255, 226, 206), (244, 190, 154), (216, 150, 104), (160, 102, 62), (96, 60, 42), (60, 38, 32),
)  # fmt: skip
"""From the palest skin to the darkest."""

HAIRS: tuple[Color, ...] = ((30, 26, 32), (70, 42, 26), (134, 82, 40), (206, 156, 80), (250, 222, 140))
"""Natural hair, from black to blond."""

FURS: tuple[Color, ...] = (
    (40, 36, 42), (96, 60, 38), (176, 112, 58), (232, 150, 66), (246, 214, 160), (244, 240, 234),
)  # fmt: skip
"""Warm fur, from black over brown and ginger to white."""

GREYS: tuple[Color, ...] = ((48, 50, 60), (104, 110, 124), (150, 156, 168), (206, 210, 216))
"""Grey fur and grey hair, from dark to light."""
