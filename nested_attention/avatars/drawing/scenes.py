"""The eight places a picture is set in: backgrounds as wide as the canvas, each with a little variation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import SIZE, Canvas, Color, Part, centred
from .colors import ramp, shade

Painter = Callable[[Canvas, np.random.Generator], None]


def _sky(canvas: Canvas, top: Color, bottom: Color, height: int = SIZE) -> None:
    for row in range(height):
        canvas.box(0, row, canvas.width, 1, ramp((top, bottom), (row // 2 * 2) / max(height - 1, 1)))


def _column(canvas: Canvas, rng: np.random.Generator, width: int) -> int:
    """Where something `width` wide stands that is seen beside a head: near the left or the right border."""
    if rng.random() < 0.5:
        return int(rng.integers(-1, 3))
    return canvas.width - width - int(rng.integers(-1, 3))


def _beach(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (96, 186, 250), (196, 236, 255), 15)
    canvas.box(0, 15, canvas.width, 7, (28, 120, 200))
    canvas.box(0, 22, canvas.width, 10, (244, 218, 150))
    canvas.box(0, 22, canvas.width, 1, (252, 240, 206))
    x = _column(canvas, rng, 6)
    canvas.spans(1, centred(x + 3, [4, 6, 6, 6, 6, 4]), (255, 226, 84), Part.BACKGROUND)
    for _ in range(canvas.width // 6):
        column, row = int(rng.integers(0, canvas.width)), int(rng.integers(16, 21))
        canvas.box(column, row, 4, 1, (132, 206, 245))
    for _ in range(canvas.width // 8):
        canvas.box(int(rng.integers(0, canvas.width)), int(rng.integers(24, 31)), 2, 1, (220, 186, 112))


def _forest(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (150, 200, 140), (92, 152, 84))
    offset = int(rng.integers(0, 9))
    for x in range(-offset, canvas.width, 9):
        canvas.box(x + 3, 10, 2, 17, (88, 56, 32))
        top = int(rng.integers(-3, 3))
        for tier in range(3):
            widths = [2, 4, 6, 8]
            canvas.spans(
                top + 4 * tier, centred(x + 4, widths), shade((22, 96, 48), 1 + 0.14 * tier), Part.BACKGROUND
            )
    canvas.box(0, 26, canvas.width, 6, (62, 122, 50))
    for _ in range(canvas.width // 4):
        canvas.box(int(rng.integers(0, canvas.width)), int(rng.integers(27, 32)), 1, 1, (128, 186, 84))


def _snow(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (140, 172, 214), (214, 228, 242), 20)
    for peak in range(int(rng.integers(-2, 10)), canvas.width + 8, 18):
        rows = [2 + 2 * (row // 2 * 2) for row in range(14)]
        for row, width in enumerate(rows):
            tone = (250, 252, 255) if row < 5 else (120, 140, 172)
            canvas.box(peak - width // 2, 7 + row, width, 1, tone)
    canvas.box(0, 20, canvas.width, 12, (242, 247, 255))
    for _ in range(canvas.width // 2):
        canvas.box(int(rng.integers(0, canvas.width)), int(rng.integers(0, 24)), 1, 1, (255, 255, 255))


def _city(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (16, 16, 48), (52, 40, 92))
    canvas.spans(1, centred(_column(canvas, rng, 5) + 2, [3, 5, 5, 5, 3]), (250, 244, 206), Part.BACKGROUND)
    for x in range(-int(rng.integers(0, 4)), canvas.width, 8):
        top = int(rng.integers(4, 14))
        canvas.box(x, top, 7, SIZE, shade((70, 64, 108), 0.8 + 0.05 * int(rng.integers(0, 6))))
        for row in range(top + 2, SIZE, 3):
            for column in (x + 1, x + 4):
                if rng.random() < 0.7:
                    canvas.box(column, row, 2, 1, (255, 216, 96))


def _desert(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (246, 168, 96), (255, 230, 168), 20)
    x = _column(canvas, rng, 6)
    canvas.box(0, 19, canvas.width, 13, (222, 152, 78))
    for row in range(6):
        middle = int(canvas.width * (0.25 if x > 8 else 0.75))
        canvas.box(middle - 4 - 2 * row, 14 + row, 8 + 4 * row, 1, (198, 122, 58))
    canvas.box(0, 25, canvas.width, 7, (196, 122, 56))
    green = (44, 136, 66)
    canvas.box(x + 2, 7, 2, 17, green)
    canvas.box(x, 10, 1, 5, green)
    canvas.box(x, 14, 3, 1, green)
    canvas.box(x + 5, 9, 1, 5, green)
    canvas.box(x + 4, 13, 2, 1, green)


def _space(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (10, 6, 26), (36, 14, 60))
    for _ in range(canvas.width // 2):
        x, y = int(rng.integers(0, canvas.width)), int(rng.integers(0, SIZE))
        canvas.box(x, y, 1, 1, ((250, 250, 255), (180, 200, 255), (255, 226, 180))[int(rng.integers(3))])
    x = _column(canvas, rng, 8)
    canvas.spans(2, centred(x + 4, [4, 6, 8, 8, 8, 8, 6, 4]), (224, 100, 166), Part.BACKGROUND)
    canvas.box(x - 2, 5, 12, 1, (252, 224, 160))


def _sea(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (40, 160, 206), (6, 40, 100))
    for _ in range(canvas.width // 5):
        x, y = int(rng.integers(0, canvas.width)), int(rng.integers(0, 24))
        canvas.box(x, y, 2, 2, (160, 226, 250))
        canvas.box(x, y, 1, 1, (236, 252, 255))
    for x in range(-int(rng.integers(0, 4)), canvas.width, 8):
        height = 5 + int(rng.integers(0, 6))
        canvas.box(x, SIZE - height, 2, height, (236, 96, 116))
        canvas.box(x - 1, SIZE - height, 1, 2, (236, 96, 116))
        canvas.box(x + 4, SIZE - height + 2, 1, height, (64, 170, 98))
        canvas.box(x + 5, SIZE - height + 4, 1, height, (40, 130, 80))
    x, y = _column(canvas, rng, 6), int(rng.integers(3, 20))
    canvas.spans(y, [(x, x + 4), (x - 1, x + 6), (x, x + 4)], (255, 170, 50), Part.BACKGROUND)
    canvas.dots([(x, y + 1)], (30, 22, 34), Part.BACKGROUND)


def _room(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.box(0, 0, canvas.width, SIZE, (214, 184, 196))
    for x in range(0, canvas.width, 4):
        canvas.box(x, 0, 1, 24, (198, 164, 180))
    x = _column(canvas, rng, 9)
    canvas.box(x, 2, 9, 10, (116, 74, 44))
    canvas.box(x + 1, 3, 7, 8, (156, 218, 250))
    canvas.box(x + 4, 3, 1, 8, (116, 74, 44))
    canvas.box(x + 1, 6, 7, 1, (116, 74, 44))
    canvas.box(0, 24, canvas.width, 1, (120, 80, 50))
    canvas.box(0, 25, canvas.width, 7, (164, 112, 70))


SCENES: dict[str, tuple[str, Painter]] = {
    "beach": ("at the beach", _beach),
    "forest": ("in a forest", _forest),
    "snow": ("in the snow", _snow),
    "city": ("in a city at night", _city),
    "desert": ("in the desert", _desert),
    "space": ("in space", _space),
    "sea": ("under the sea", _sea),
    "room": ("in a room", _room),
}
"""Name → the phrase in a prompt, and the painter."""
