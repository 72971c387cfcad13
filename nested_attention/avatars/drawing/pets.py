"""How a cat or a dog is drawn, around the same column `x` and face top `y` as a person."""

from __future__ import annotations

from .canvas import Canvas, Color, Part, shade
from .identity import Pet
from .people import INK, IRIS, WHITE, draw_mouth
from .pose import Pose

FUR: tuple[Color, ...] = (
    (40, 36, 44), (140, 142, 150), (238, 238, 240), (112, 70, 40), (234, 128, 36), (250, 226, 176), (92,
    120, 168),
    (226, 178, 66),
)  # fmt: skip
SECOND: tuple[Color, ...] = ((24, 20, 28), (252, 252, 252), (96, 54, 26), (236, 108, 20), (116, 116, 126))
NOSE: tuple[Color, ...] = ((16, 12, 16), (246, 120, 150), (130, 62, 30))

_FACES = {
    "round": [8, 10, 12, 14, 14, 14, 14, 14, 14, 12, 10, 8],
    "wide": [12, 14, 16, 16, 16, 16, 16, 16, 16, 14, 12, 10],
    "narrow": [8, 10, 10, 12, 12, 12, 12, 10, 10, 8, 8, 6],
}


def draw_pet(canvas: Canvas, pet: Pet, pose: Pose, clothes: Color | None) -> None:
    """Draw head and chest; without clothes the chest shows the fur."""
    x, y = pose.x, pose.y
    fur, second = FUR[pet.fur], SECOND[pet.second]
    rows = _FACES[pet.value("face")]
    _chest(canvas, x, y + len(rows), fur if clothes is None else clothes)
    if clothes is None and pet.value("pattern") in ("masked", "blazed"):
        canvas.rows(x, y + len(rows) + 2, [4, 6, 6, 4], second, Part.BODY)
    pointed = pet.value("ears") in ("pointed", "tufted")
    if pointed or pet.value("ears") == "round":
        _ears(canvas, pet, x, y, rows, fur)
    canvas.rows(x, y, rows, fur, Part.FACE)
    if pet.value("coat") == "fluffy":
        for row in (4, 6, 8, 10):
            half = rows[row] // 2
            canvas.box(x - half - 2, y + row, 2, 1, fur, Part.FACE)
            canvas.box(x + half, y + row, 2, 1, fur, Part.FACE)
    _pattern(canvas, pet, x, y, rows, second)
    if pet.value("ears") == "floppy":
        _ears(canvas, pet, x, y, rows, fur)
    _features(canvas, pet, pose, x, y, rows, fur)


def _chest(canvas: Canvas, x: int, top: int, color: Color) -> None:
    canvas.rows(x, top, [8, 10], shade(color, 0.86), Part.BODY)
    canvas.box(x - 6, top + 2, 12, 32, color, Part.BODY)


def _ears(canvas: Canvas, pet: Pet, x: int, y: int, rows: list[int], fur: Color) -> None:
    kind, outer = pet.value("ears"), rows[2] // 2
    dark, inner = shade(fur, 0.72), (232, 150, 150)
    for side in (-1, 1):
        left = x - outer if side < 0 else x + outer - 4
        if kind in ("pointed", "tufted"):
            edge = left if side < 0 else left + 3
            canvas.box(left, y - 2, 4, 4, fur, Part.EARS)
            canvas.box(left if side < 0 else left + 2, y - 4, 2, 2, fur, Part.EARS)
            canvas.box(left + 1, y - 2, 2, 3, inner, Part.EARS)
            if kind == "tufted":
                canvas.dots([(edge, y - 5), (edge, y - 6), (edge + side, y - 6)], INK, Part.EARS)
                canvas.box(left, y - 4, 4, 2, dark, Part.EARS)
        elif kind == "round":
            wide = left - 1 if side < 0 else left + 1
            canvas.rows(wide + 2, y - 2, [2, 4, 4, 4], dark, Part.EARS)
            canvas.box(wide + 1, y - 1, 2, 2, inner, Part.EARS)
        else:
            flap = x - outer - 2 if side < 0 else x + outer - 1
            canvas.box(flap, y + 1, 3, 8, dark, Part.EARS)
            canvas.box(flap if side > 0 else flap + 1, y, 2, 1, dark, Part.EARS)


def _pattern(canvas: Canvas, pet: Pet, x: int, y: int, rows: list[int], second: Color) -> None:
    kind = pet.value("pattern")
    if kind == "striped":
        for column in (x - 4, x - 1, x + 2):
            canvas.box(column, y, 2 if column != x - 1 else 2, 3, second, Part.FACE)
        half = rows[7] // 2
        for row in (6, 8):
            canvas.box(x - half, y + row, 2, 1, second, Part.FACE)
            canvas.box(x + half - 2, y + row, 2, 1, second, Part.FACE)
    elif kind == "spotted":
        half = rows[5] // 2
        for px, py in ((-4, 0), (2, 1), (-half, 6), (half - 2, 7), (-half + 1, 3), (3, 10), (-4, 9)):
            canvas.box(x + px, y + py, 2, 2, second, Part.FACE)
    elif kind == "patched":
        canvas.box(x + 1, y + 2, rows[5] // 2 - 2, 6, second, Part.FACE)
    elif kind == "masked":
        for row in range(3, 8):
            canvas.box(x - rows[row] // 2, y + row, rows[row], 1, second, Part.FACE)
    elif kind == "blazed":
        canvas.box(x - 1, y, 2, 6, second, Part.FACE)
        canvas.rows(x, y + 6, [6, 8, 8, 8, 6, 4], second, Part.FACE)


def _features(canvas: Canvas, pet: Pet, pose: Pose, x: int, y: int, rows: list[int], fur: Color) -> None:
    iris, nose = IRIS[pet.eyes], NOSE[pet.nose]
    dog = pet.value("species") == "dog"
    if dog:  # a light muzzle
        muzzle = shade(fur, 0.78) if sum(fur) > 560 else shade((fur[0] + 40, fur[1] + 40, fur[2] + 40), 1.25)
        canvas.rows(x, y + 6, [6, 8, 8, 8, 6], muzzle, Part.FACE)
    for side, eye in ((-1, x - 4), (1, x + 2)):
        canvas.box(eye, y + 4, 2, 2, iris, Part.EYES)
        if pose.gaze:
            canvas.box(eye + (0 if pose.gaze > 0 else 1), y + 4, 1, 2, WHITE, Part.EYES)
        canvas.box(eye, y + 3, 2, 1, INK, Part.EYES)
        if pose.expression == "angry":
            inner = eye + 1 if side < 0 else eye
            canvas.dots([(inner, y + 4), (inner - side, y + 2)], INK, Part.EYES)
    if dog:
        canvas.box(x - 2, y + 6, 4, 2, nose, Part.FACE)
    else:
        canvas.box(x - 1, y + 6, 2, 2, nose, Part.FACE)
        half = rows[7] // 2
        for side in (x - half - 2, x + half - 1):  # whiskers
            canvas.box(side, y + 7, 3, 1, (214, 210, 200), Part.FACE)
            canvas.box(side, y + 9, 3, 1, (214, 210, 200), Part.FACE)
    draw_mouth(canvas, x, y + 8, pose.expression, (170, 30, 50))
    if pose.expression == "smiling" and dog:
        canvas.box(x - 1, y + 10, 2, 1, (250, 110, 140), Part.MOUTH)
