"""A style the small world was never trained on: ink and wash, drawn over a picture's own lines.

Paper instead of a scene, whose edges are all that is left of it, with hatching where it was dark; figures
outlined, their colours thinned to a wash. What the style LoRA is trained on.
"""

from __future__ import annotations

import numpy as np

from .picture import Rendered

PAPER = np.asarray((244, 236, 216), np.float32)
INK = np.asarray((26, 24, 48), np.float32)

WASH = 0.75
"""How much of a figure's own colour stays; the rest is paper."""

EDGE = 60.0
"""Difference of colour between neighbours, in levels of the strongest channel, from which a line is drawn."""

DARK = 80.0
"""Brightness below which the scene is hatched."""


def ink(drawn: Rendered) -> np.ndarray:
    """Draw a rendered picture in ink. → (32, W, 3) uint8"""
    rgb = drawn.rgb.astype(np.float32)
    figure = drawn.subject > 0
    picture = np.where(figure[..., None], WASH * rgb + (1 - WASH) * PAPER, PAPER)
    rows, columns = np.indices(figure.shape)
    hatched = ~figure & (rgb.mean(-1) < DARK) & ((rows + columns) % 4 == 0)
    outlines = ~figure & _beside(drawn.subject)
    lines = outlines | (~figure & _edges(rgb, figure)) | hatched
    return np.rint(np.where(lines[..., None], INK, picture)).astype(np.uint8)


def _beside(subject: np.ndarray) -> np.ndarray:
    """The art pixels that have a figure above, below, left or right of them. (32, W) → (32, W) bool"""
    inside = np.pad(subject > 0, 1)
    return inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]


def _edges(rgb: np.ndarray, figure: np.ndarray) -> np.ndarray:
    """Where the scene's colour differs from that of the art pixel above or to the left. (32, W) bool"""
    edges = np.zeros(figure.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(rgb, axis=axis)).max(-1) > EDGE
        scene = ~figure
        both = scene[1:] & scene[:-1] if axis == 0 else scene[:, 1:] & scene[:, :-1]
        edges[tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))] |= step & both
    return edges
