"""Clothes and accessories: what the prompt decides about a figure, for people and pets alike."""

from __future__ import annotations

from .canvas import Canvas, Color, Part
from .pose import Pose

CLOTHES: dict[str, tuple[str, Color]] = {
    "plain": ("", (150, 150, 156)),
    "red": ("a red shirt", (214, 36, 44)),
    "hoodie": ("a green hoodie", (36, 150, 84)),
    "raincoat": ("a yellow raincoat", (250, 206, 30)),
    "suit": ("a black suit", (30, 30, 40)),
    "sailor": ("a striped shirt", (244, 244, 250)),
    "dress": ("a purple dress", (140, 62, 190)),
    "overalls": ("blue overalls", (40, 84, 190)),
}
"""Name → the phrase in a prompt (empty: not mentioned), and the main colour."""

ACCESSORIES: dict[str, str] = {
    "none": "",
    "crown": "a crown",
    "party": "a party hat",
    "headphones": "headphones",
    "flower": "a flower",
    "scarf": "a scarf",
    "bow": "a bow tie",
}
"""Name → the phrase in a prompt (empty: not mentioned)."""


def draw_clothes(canvas: Canvas, name: str, pose: Pose, chin: int) -> None:
    """The pattern of a garment below row `chin`, over the plain colour that the figure was drawn with."""
    x, top = pose.x, chin + 3
    if name == "hoodie":
        canvas.rows(x, top - 1, [12, 10], (24, 112, 60), Part.BODY)
        canvas.box(x - 2, top + 1, 1, 4, (230, 240, 230), Part.BODY)
        canvas.box(x + 1, top + 1, 1, 4, (230, 240, 230), Part.BODY)
    elif name == "raincoat":
        canvas.box(x - 1, top, 2, 16, (216, 160, 10), Part.BODY)
        canvas.dots([(x + 2, top + 2), (x + 2, top + 5)], (120, 80, 0), Part.BODY)
    elif name == "suit":
        canvas.rows(x, top - 1, [6, 6, 4, 4, 2, 2], (246, 246, 250), Part.BODY)
        canvas.box(x - 1, top, 2, 6, (190, 20, 40), Part.BODY)
    elif name == "sailor":
        for row in range(top, 32, 2):
            canvas.box(x - 7, row, 14, 1, (24, 44, 120), Part.BODY)
    elif name == "dress":
        canvas.rows(x, top - 1, [8, 4], (252, 200, 250), Part.BODY)
        for px, py in ((-5, 2), (-1, 4), (3, 2), (-4, 6), (2, 6)):
            canvas.dots([(x + px, top + py)], (252, 200, 250), Part.BODY)
    elif name == "overalls":
        canvas.box(x - 7, top - 1, 3, 4, (246, 236, 220), Part.BODY)
        canvas.box(x + 4, top - 1, 3, 4, (246, 236, 220), Part.BODY)
        canvas.box(x - 2, top - 1, 4, 2, (246, 236, 220), Part.BODY)
        canvas.dots([(x - 4, top + 1), (x + 3, top + 1)], (250, 210, 60), Part.BODY)
    elif name == "red":
        canvas.rows(x, top - 1, [6, 4], (250, 240, 240), Part.BODY)


def draw_accessory(canvas: Canvas, name: str, pose: Pose, chin: int) -> None:
    """An accessory on the head (above row `pose.y`) or at the neck (around row `chin`)."""
    x, y = pose.x, pose.y
    part = Part.ACCESSORY
    if name == "crown":
        canvas.box(x - 5, y - 3, 10, 3, (252, 208, 40), part)
        for spike in (x - 5, x - 1, x + 3):
            canvas.box(spike, y - 5, 2, 2, (252, 208, 40), part)
        canvas.dots([(x - 3, y - 2), (x + 2, y - 2)], (230, 20, 60), part)
    elif name == "party":
        canvas.rows(x, y - 7, [2, 2, 4, 4, 6, 6, 8], (240, 60, 170), part)
        canvas.box(x - 2, y - 4, 4, 1, (90, 230, 250), part)
        canvas.box(x - 4, y - 1, 8, 1, (90, 230, 250), part)
        canvas.box(x - 1, y - 8, 2, 1, (255, 240, 90), part)
    elif name == "headphones":
        canvas.box(x - 6, y - 3, 12, 1, (30, 30, 34), part)
        for side in (x - 8, x + 6):
            canvas.box(side, y - 2, 2, 6, (30, 30, 34), part)
            canvas.box(side, y + 3, 2, 4, (250, 60, 60), part)
    elif name == "flower":
        left, top = x + 4, y - 2
        canvas.box(left, top, 4, 4, (255, 250, 250), part)
        canvas.box(left + 1, top + 1, 2, 2, (255, 200, 20), part)
    elif name == "scarf":
        canvas.box(x - 6, chin, 12, 3, (240, 110, 20), part)
        canvas.box(x + 2, chin + 3, 3, 6, (240, 110, 20), part)
        canvas.box(x - 6, chin + 1, 12, 1, (255, 220, 120), part)
    elif name == "bow":
        canvas.box(x - 4, chin, 3, 4, (20, 190, 200), part)
        canvas.box(x + 1, chin, 3, 4, (20, 190, 200), part)
        canvas.box(x - 1, chin + 1, 2, 2, (6, 110, 120), part)
