"""The eight places a picture is set in: backgrounds of 32×32 art pixels, each with a little variation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import SIZE, Canvas, Color, shade

Painter = Callable[[Canvas, np.random.Generator], None]


def _sky(canvas: Canvas, top: Color, bottom: Color, height: int = SIZE) -> None:
    for row in range(height):
        t = (row // 4 * 4) / max(height - 1, 1)
        color = tuple(int(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
        canvas.box(0, row, SIZE, 1, color)  # type: ignore[arg-type]


def _beach(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (120, 200, 250), (190, 232, 255), 14)
    canvas.box(0, 14, SIZE, 8, (30, 120, 200))
    canvas.box(0, 22, SIZE, 10, (244, 218, 150))
    x = int(rng.choice((2, 14, 24)))
    canvas.box(x, 2, 6, 6, (255, 224, 70))
    for wave in (16, 18):
        canvas.box(int(rng.integers(0, 12)) * 2, wave, 6, 1, (140, 210, 245))


def _forest(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.box(0, 0, SIZE, SIZE, (96, 156, 84))
    offset = int(rng.integers(0, 3)) * 2
    for x in range(-offset, SIZE, 8):
        canvas.box(x + 2, 8, 2, 18, (92, 58, 30))
        canvas.box(x, 0, 6, 10, (22, 92, 44))
        canvas.box(x + 1, 10, 4, 4, (34, 112, 54))
    canvas.box(0, 26, SIZE, 6, (58, 118, 46))


def _snow(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (150, 176, 206), (206, 220, 236), 20)
    peak = int(rng.choice((4, 10, 20)))
    for row in range(12):
        canvas.box(
            peak - row // 2 * 2, 8 + row, 4 + row // 2 * 4, 1, (118, 134, 160) if row > 3 else (246, 250, 255)
        )
    canvas.box(0, 20, SIZE, 12, (240, 246, 255))
    for _ in range(10):
        canvas.box(int(rng.integers(0, 16)) * 2, int(rng.integers(0, 9)) * 2, 1, 1, (255, 255, 255))


def _city(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.box(0, 0, SIZE, SIZE, (24, 22, 56))
    canvas.box(24 if rng.random() < 0.5 else 4, 2, 4, 4, (246, 240, 200))
    for x in range(0, SIZE, 8):
        top = int(rng.integers(2, 7)) * 2
        canvas.box(x, top, 6, SIZE, (66, 60, 98))
        for row in range(top + 2, SIZE, 4):
            canvas.box(x + 1, row, 1, 2, (252, 214, 90))
            canvas.box(x + 4, row, 1, 2, (252, 214, 90))


def _desert(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (250, 186, 110), (255, 226, 160), 20)
    canvas.box(0, 18, SIZE, 14, (214, 142, 66))
    canvas.box(0, 24, SIZE, 8, (190, 116, 50))
    x = int(rng.choice((0, 12, 26)))
    green = (40, 130, 60)
    canvas.box(x + 2, 8, 2, 14, green)
    canvas.box(x, 10, 1, 5, green)
    canvas.box(x, 14, 2, 1, green)
    canvas.box(x + 5, 10, 1, 4, green)
    canvas.box(x + 4, 13, 2, 1, green)


def _space(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.box(0, 0, SIZE, SIZE, (12, 6, 24))
    for _ in range(14):
        canvas.box(int(rng.integers(0, 16)) * 2, int(rng.integers(0, 16)) * 2, 1, 1, (250, 250, 255))
    x = int(rng.choice((2, 12, 22)))
    canvas.rows(x + 4, 2, [4, 8, 8, 8, 8, 4], (220, 96, 160), 0)  # type: ignore[arg-type]
    canvas.box(x - 2, 4, 12, 1, (250, 220, 150))


def _sea(canvas: Canvas, rng: np.random.Generator) -> None:
    _sky(canvas, (30, 140, 190), (6, 44, 104))
    for _ in range(5):
        x, y = int(rng.integers(0, 15)) * 2, int(rng.integers(0, 13)) * 2
        canvas.box(x, y, 2, 2, (170, 230, 250))
    for x in range(int(rng.integers(0, 2)) * 2, SIZE, 8):
        canvas.box(x, 24, 2, 8, (230, 90, 110))
        canvas.box(x + 2, 26, 2, 6, (60, 160, 90))


def _room(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.box(0, 0, SIZE, SIZE, (204, 172, 190))
    for x in range(0, SIZE, 8):
        canvas.box(x, 0, 2, 24, (190, 152, 174))
    x = int(rng.choice((2, 12, 22)))
    canvas.box(x, 2, 8, 8, (110, 70, 40))
    canvas.box(x + 1, 3, 6, 6, (150, 214, 250))
    canvas.box(x + 3, 3, 2, 6, (110, 70, 40))
    canvas.box(0, 24, SIZE, 8, shade((150, 100, 60), 1.0))


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
