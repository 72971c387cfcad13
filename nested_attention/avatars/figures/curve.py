"""The curve over λ as a picture: identity, prompt and background change together (the paper's Figure 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from xml.sax.saxutils import escape

from ...paths import SMALL_WORLD
from .judges import SCORERS, SUBJECTS

PICTURE = SMALL_WORLD / "lambda.svg"
"""Where the committed picture is."""

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 40, 26, 34
"""Size of a panel and room around its plot, in units of the drawing."""

Figures = Callable[[dict[str, Any]], float]

SHARES: dict[str, tuple[Figures, str]] = {
    f"identity, {SCORERS[0]}": (lambda p: p["identity"][SCORERS[0]]["top1"]["rate"], "#1f5fbf"),
    f"identity, {SCORERS[1]}": (lambda p: p["identity"][SCORERS[1]]["top1"]["rate"], "#5aa0ff"),
    "prompt": (lambda p: p["prompt"]["all"]["rate"], "#2a8a4a"),
}
"""Curves on the left axis, from 0 to 100 %: what is read of a point, and its colour."""

OUTSIDE = "background change, of 255"
OUTSIDE_COLOR = "#c05a1a"


def picture(curves: dict[str, list[dict[str, Any]]]) -> str:
    """One panel a kind of subject, as SVG. curves: a document's `curve`."""
    top = max(point["outside"] for points in curves.values() for point in points) or 1.0
    panels = [_panel(word, curves[word], number * WIDTH, top) for number, word in enumerate(SUBJECTS)]
    legend = {**{name: color for name, (_, color) in SHARES.items()}, OUTSIDE: OUTSIDE_COLOR}
    total = WIDTH * len(SUBJECTS)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + 24}" width="{total}" '
            'font-family="system-ui, sans-serif" font-size="10">',
            f'<rect width="{total}" height="{HEIGHT + 24}" fill="#ffffff"/>',
            *panels,
            *(
                f'<g transform="translate({16 + 165 * i},{HEIGHT + 12})"><line x2="16" stroke="{color}" '
                f'stroke-width="2"/><text x="20" y="3">{escape(name)}</text></g>'
                for i, (name, color) in enumerate(legend.items())
            ),
            "</svg>\n",
        ]
    )


def _panel(word: str, points: Sequence[dict[str, Any]], left: int, top: float) -> str:
    scales = [point["attention_scale"] for point in points]
    low, high = min(scales), max(scales)

    def x(scale: float) -> float:
        return round(LEFT + (scale - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(share: float) -> float:
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def curve(values: Sequence[float], color: str) -> str:
        line = " ".join(f"{x(scale)},{y(value)}" for scale, value in zip(scales, values, strict=True))
        return f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>'

    rows = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share)}" y2="{y(share)}" stroke="#dddddd"/>'
        f'<text x="{LEFT - 5}" y="{y(share) + 3}" text-anchor="end">{share:.0%}</text>'
        f'<text x="{WIDTH - RIGHT + 5}" y="{y(share) + 3}" fill="{OUTSIDE_COLOR}">{share * top:.2g}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    ticks = [
        f'<text x="{x(scale)}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{scale:g}</text>'
        for scale in scales
    ]
    curves = [curve([read(point) for point in points], color) for read, color in SHARES.values()]
    curves.append(curve([point["outside"] / top for point in points], OUTSIDE_COLOR))
    titles = [
        f'<text x="{WIDTH / 2}" y="14" text-anchor="middle" font-weight="bold">{escape(word)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">λ</text>',
    ]
    return f'<g transform="translate({left},0)">' + "".join([*rows, *ticks, *curves, *titles]) + "</g>"
