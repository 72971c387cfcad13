"""Curves as SVG: the places of points, lines and bands, which a page's template draws; and whole drawings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

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

    x, y = _axis(x_range, LEFT, WIDTH - RIGHT), _axis(y_range, HEIGHT - BOTTOM, TOP)
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


def _axis(values: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    """Where a value stands in the drawing: the range of values runs from `start` to `end`."""
    low, high = values
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers in a range."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda value: abs(value - rough))
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#a21caf", "#854d0e", "#475569")
"""Of series, in order."""


def drawing(
    title: str, axes: tuple[str, str], series: Mapping[str, Sequence[Point]], *, shares: tuple[bool, bool]
) -> str:
    """Several series in one plot, as an SVG document of its own: each a line through its points, in their
    order, and a legend below. Labels of points stand where they meet no other and no point is nearer, those
    of a line's ends first; one for which there is no such place is left out.

    axes: what stands on x and y. shares: whether x and y are shares, and shown in percent. Raises ValueError
    without a point.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        raise ValueError("a plot needs at least one point")
    ys = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    x_range, y_range = _range([p.x for p in points]), _range(ys)
    width, height, left, top, right, bottom = 640, 440, 58, 34, 14, 46
    columns = 3
    legend = 20 * -(-len(series) // columns)

    x, y = _axis(x_range, left, width - right), _axis(y_range, height - bottom, top)

    def text(place: tuple[float, float], words: str, anchor: str = "middle", **attributes: Any) -> str:
        told = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        return f'<text x="{place[0]}" y="{place[1]}" text-anchor="{anchor}"{told}>{escape(words)}</text>'

    def shown(value: float, share: bool) -> str:
        return f"{100 * value:g} %" if share else f"{value:g}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + legend}" width="{width}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height + legend}" fill="#fff"/>',
        text((width / 2, 18), title, font_size=13, font_weight="bold"),
        text(((left + width - right) / 2, height - 8), axes[0]),
        text((14, height / 2 - 8), axes[1], transform=f"rotate(-90 14 {height / 2 - 8})"),
    ]
    for value in _ticks(*x_range):
        out.append(f'<path d="M{x(value)} {top}V{height - bottom}" stroke="#ddd"/>')
        out.append(text((x(value), height - bottom + 15), shown(value, shares[0])))
    for value in _ticks(*y_range):
        out.append(f'<path d="M{left} {y(value)}H{width - right}" stroke="#ddd"/>')
        out.append(text((left - 6, y(value) + 4), shown(value, shares[1]), "end"))
    above: list[str] = []  # the lines and the intervals of all series
    labels = _Labels([(x(point.x), y(point.y)) for point in points])
    labelled: list[tuple[Point, str]] = []
    ends: list[Point] = []
    for number, (name, each) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x(p.x)},{y(p.y)}" for p in each)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for p in each:
            if p.low is not None and p.high is not None:
                out.append(f'<path d="M{x(p.x)} {y(p.low)}V{y(p.high)}" stroke="{colour}" opacity=".25"/>')
            above.append(f'<circle cx="{x(p.x)}" cy="{y(p.y)}" r="3" fill="{colour}"/>')
        labelled += [(p, colour) for p in each if p.label]
        ends += [*each[:1], *each[-1:]]
        place = left + number % columns * 195, height + 10 + 20 * (number // columns)
        out.append(f'<rect x="{place[0]}" y="{place[1] - 9}" width="10" height="10" fill="{colour}"/>')
        out.append(text((place[0] + 16, place[1]), name, "start"))
    for p, colour in sorted(labelled, key=lambda found: found[0] not in ends):
        if free := labels.place((x(p.x), y(p.y)), p.label):
            above.append(text(free, p.label, fill=colour, font_size=_Labels.SIZE))
    return "\n".join([*out, *above, "</svg>"]) + "\n"


class _Labels:
    """Where the labels of points find room."""

    SIZE = 9
    """Of their letters, in units of the drawing."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._points = points
        self._taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]

    def place(self, point: tuple[float, float], words: str) -> tuple[float, float] | None:
        """The middle of the label's base line beside its point, where it meets nothing and no other point is
        nearer; None without such a place. It is taken then."""
        half, high = 0.3 * self.SIZE * len(words), 0.75 * self.SIZE
        x, y = point
        beside = half + 4
        for right, down in ((beside, -4), (-beside, -4), (beside, 10), (-beside, 10), (0, -6), (0, 13)):
            middle, line = round(x + right, 1), round(y + down, 1)
            box = (middle - half, line - high, middle + half, line)
            nearest = min(self._points, key=lambda other: _away(other, box))
            meets = any(a < box[2] and box[0] < c and b < box[3] and box[1] < d for a, b, c, d in self._taken)
            if not meets and _away(point, box) <= _away(nearest, box):
                self._taken.append(box)
                return middle, line
        return None


def _away(point: tuple[float, float], box: tuple[float, float, float, float]) -> float:
    """How far a point is from a box (left, top, right, bottom)."""
    x, y = point
    return math.hypot(max(box[0] - x, x - box[2], 0.0), max(box[1] - y, y - box[3], 0.0))
