"""Clothes and accessories: what the prompt decides about a figure, for people and pets alike."""

from __future__ import annotations

from .canvas import Canvas, Color, Part, centred
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
    x, top, part = pose.x, chin + 2, Part.BODY
    if name == "hoodie":
        canvas.spans(top - 1, centred(x, [14, 12, 8]), (24, 108, 60), part)
        for column in (x - 3, x + 2):
            canvas.box(column, top + 1, 1, 5, (232, 244, 232), part)
    elif name == "raincoat":
        canvas.spans(top, centred(x, [12, 6]), (214, 160, 10), part)
        canvas.box(x - 1, top + 1, 2, 16, (214, 160, 10), part)
        canvas.dots([(x + 3, top + 3), (x + 3, top + 6)], (120, 80, 0), part)
    elif name == "suit":
        canvas.spans(top, centred(x, [8, 8, 6, 6, 4, 4, 2, 2]), (246, 246, 250), part)
        canvas.box(x - 1, top + 1, 2, 8, (196, 20, 44), part)
    elif name == "sailor":
        worn = (canvas.part == part) & (canvas.subject == canvas.current)
        worn[: top + 1] = worn[top + 2 :: 2] = False
        canvas.rgb[worn] = (24, 44, 124)
    elif name == "dress":
        canvas.spans(top, centred(x, [12, 8, 4]), (252, 204, 250), part)
        points = [(-8, 3), (-4, 5), (0, 3), (4, 5), (7, 3), (-7, 7), (-1, 7), (6, 7)]
        canvas.dots([(x + px, top + py) for px, py in points], (252, 204, 250), part)
    elif name == "overalls":
        for left in (x - 9, x + 5):
            canvas.box(left, top + 1, 4, 5, (246, 236, 220), part)
        canvas.spans(top, centred(x, [8, 8]), (246, 236, 220), part)
        canvas.dots([(x - 5, top + 4), (x + 4, top + 4)], (252, 212, 64), part)
    elif name == "red":
        canvas.spans(top, centred(x, [10, 6]), (252, 240, 240), part)


def draw_accessory(canvas: Canvas, name: str, pose: Pose, chin: int) -> None:
    """An accessory on the head (above row `pose.y`) or at the neck (around row `chin`)."""
    x, y, part = pose.x, pose.y, Part.ACCESSORY
    if name == "crown":
        gold = (252, 208, 44)
        canvas.box(x - 7, y - 3, 14, 3, gold, part)
        for spike in (x - 7, x - 3, x + 1, x + 5):
            canvas.box(spike, y - 6, 2, 3, gold, part)
        canvas.box(x - 7, y - 1, 14, 1, (206, 150, 20), part)
        for column, color in ((x - 5, (230, 20, 60)), (x - 1, (40, 120, 250)), (x + 3, (230, 20, 60))):
            canvas.box(column, y - 3, 2, 2, color, part)
    elif name == "party":
        canvas.spans(y - 7, centred(x, [2, 4, 4, 6, 8, 8, 10, 12]), (240, 60, 170), part)
        canvas.box(x - 3, y - 4, 6, 1, (90, 230, 250), part)
        canvas.box(x - 5, y - 1, 10, 1, (90, 230, 250), part)
        canvas.box(x - 1, y - 8, 2, 2, (255, 240, 90), part)
    elif name == "headphones":
        canvas.spans(y - 5, centred(x, [14, 18]), (36, 36, 42), part)
        for side in (x - 10, x + 8):
            canvas.box(side, y - 4, 2, 9, (36, 36, 42), part)
            canvas.box(side - (1 if side < x else 0), y + 5, 3, 6, (250, 64, 64), part)
    elif name == "flower":
        left, top = x + 3, y - 3
        for px, py in ((2, 0), (0, 2), (4, 2), (2, 4)):
            canvas.box(left + px, top + py, 2, 2, (255, 250, 252), part)
        canvas.box(left + 2, top + 2, 2, 2, (255, 200, 24), part)
    elif name == "scarf":
        canvas.spans(chin, centred(x, [14, 16, 14]), (240, 112, 24), part)
        canvas.box(x + 3, chin + 3, 4, 7, (240, 112, 24), part)
        canvas.box(x - 7, chin + 1, 14, 1, (255, 222, 124), part)
        canvas.box(x + 3, chin + 8, 4, 1, (255, 222, 124), part)
    elif name == "bow":
        for row, width in enumerate((3, 4, 4, 3)):
            canvas.box(x - 1 - width, chin + row, width, 1, (20, 190, 200), part)
            canvas.box(x + 1, chin + row, width, 1, (20, 190, 200), part)
        canvas.box(x - 1, chin + 1, 2, 2, (6, 110, 120), part)
