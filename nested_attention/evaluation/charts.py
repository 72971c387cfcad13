"""Curves as inline SVG: the places of points, lines and bands, which the template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
"""Room around the plot, in units of the drawing."""


@dataclass(frozen=True)
class Point:
    """A figure over something. low, high: its interval, if it has one. label: what is written beside it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """One plot, in units of the drawing. ticks: (place, text)."""

    title: str
    x_title: str
    points: tuple[tuple[float, float, str], ...]  # x, y, label
    line: str  # "x,y x,y …"
    band: str  # the same, around the interval; empty without one
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    bottom: int = HEIGHT - BOTTOM
    right: int = WIDTH - RIGHT
    top: int = TOP


def chart(title: str, x_title: str, points: Sequence[Point], *, share: bool = False) -> Chart:
    """A curve through points, in their order. share: its figures are shares, and shown in percent. Raises
    ValueError without any."""
    if not points:
        raise ValueError("a chart needs at least one point")
    ys = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    x_range, y_range = _range([p.x for p in points]), (0.0, 1.0) if share else _range(ys)

    def x(value: float) -> float:
        return round(LEFT + (value - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        span = HEIGHT - TOP - BOTTOM
        return round(HEIGHT - BOTTOM - (value - y_range[0]) / (y_range[1] - y_range[0]) * span, 1)

    banded = [p for p in points if p.low is not None and p.high is not None]
    around = [(p.x, p.high) for p in banded] + [(p.x, p.low) for p in reversed(banded)]
    return Chart(
        title=title,
        x_title=x_title,
        points=tuple((x(p.x), y(p.y), p.label) for p in points),
        line=" ".join(f"{x(p.x)},{y(p.y)}" for p in points),
        band=" ".join(f"{x(a)},{y(b)}" for a, b in around if b is not None) if len(banded) > 1 else "",
        x_ticks=tuple((x(value), f"{value:g}") for value in _ticks(*x_range)),
        y_ticks=tuple(
            (y(value), f"{100 * value:g} %" if share else f"{value:g}") for value in _ticks(*y_range)
        ),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value, and some room; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high), 1e-3) * 0.1
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers in a range."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda value: abs(value - rough))
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
