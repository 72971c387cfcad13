"""Eyes and mouths, for people and pets alike: the parts that an expression and a gaze move."""

from __future__ import annotations

from .canvas import Canvas, Color, Part, centred
from .colors import INK, WHITE, shade
from .pose import Pose

_THROAT: Color = (96, 14, 30)
_TONGUE: Color = (236, 96, 112)


def draw_eyes(
    canvas: Canvas, eyes: tuple[int, int], y: int, height: int, iris: Color, pose: Pose, *, lashes: bool
) -> None:
    """Two eyes, four art pixels wide, from their left columns; `y` is the row below the lid."""
    for outer, left in ((-1, eyes[0]), (4, eyes[1])):
        if pose.expression == "laughing":  # shut, as an arch
            arch = [(left, y + 1), (left + 1, y), (left + 2, y), (left + 3, y + 1)]
            canvas.dots(arch, INK, Part.EYES)
            continue
        top = y - 1 if pose.expression == "surprised" else y
        canvas.box(left, top, 4, y + height - top, WHITE, Part.EYES)
        pupil = left + 1 + pose.gaze
        canvas.box(pupil, top, 2, y + height - top, iris, Part.EYES)
        canvas.box(pupil, top, 2, 1, shade(iris, 0.5), Part.EYES)
        canvas.box(left, top - 1, 4, 1, INK, Part.EYES)
        if pose.expression == "smiling":  # the cheek lifts the lower lid
            canvas.dots([(left, y + height - 1), (left + 3, y + height - 1)], INK, Part.EYES)
        elif pose.expression == "sad":  # the lid hangs over the outer corner
            corner = left if outer < 0 else left + 3
            canvas.dots([(corner, top)], INK, Part.EYES)
        elif pose.expression == "angry":  # and over the inner one
            corner = left + 3 if outer < 0 else left
            canvas.dots([(corner, top)], INK, Part.EYES)
        if lashes:
            canvas.dots([(left + outer, top - 1)], INK, Part.EYES)


def draw_mouth(canvas: Canvas, x: int, y: int, width: int, expression: str, lips: Color) -> None:
    """A mouth of three rows around column border `x`, `width` (even) art pixels wide when it is calm."""
    half = width // 2
    dark = shade(lips, 0.62)
    if expression == "smiling":
        canvas.dots([(x - half - 1, y), (x + half, y)], dark, Part.MOUTH)
        canvas.box(x - half, y + 1, width, 1, WHITE, Part.MOUTH)
        canvas.dots([(x - half - 1, y + 1), (x + half, y + 1)], dark, Part.MOUTH)
        canvas.box(x - half, y + 2, width, 1, dark, Part.MOUTH)
    elif expression == "laughing":
        canvas.box(x - half - 1, y, width + 2, 1, WHITE, Part.MOUTH)
        canvas.dots([(x - half - 1, y), (x + half, y)], dark, Part.MOUTH)
        canvas.box(x - half, y + 1, width, 1, _THROAT, Part.MOUTH)
        canvas.box(x - half + 1, y + 2, width - 2, 1, _TONGUE, Part.MOUTH)
    elif expression == "sad":
        canvas.box(x - half + 1, y + 1, width - 2, 1, dark, Part.MOUTH)
        canvas.dots([(x - half, y + 2), (x + half - 1, y + 2)], dark, Part.MOUTH)
    elif expression == "surprised":
        canvas.spans(y, centred(x, [2, 4, 2]), _THROAT, Part.MOUTH)
        canvas.dots([(x - 2, y), (x + 1, y), (x - 2, y + 2), (x + 1, y + 2)], lips, Part.MOUTH)
    elif expression == "angry":
        canvas.box(x - half, y, width, 1, dark, Part.MOUTH)
        for column in range(x - half, x + half):
            canvas.box(column, y + 1, 1, 1, WHITE if (column - x) % 2 else INK, Part.MOUTH)
        canvas.box(x - half, y + 2, width, 1, dark, Part.MOUTH)
    else:
        canvas.box(x - half, y + 1, width, 1, dark, Part.MOUTH)
        canvas.box(x - half + 1, y + 2, width - 2, 1, lips, Part.MOUTH)
