"""How a person is drawn: a bust, 16 art pixels wide, around a column `x` and below a face top `y`."""

from __future__ import annotations

from .canvas import Canvas, Color, Part, shade
from .identity import Person
from .pose import Pose

SKIN: tuple[Color, ...] = (
    (255, 228, 208), (247, 190, 150), (222, 150, 96), (186, 152, 84), (140, 86, 48), (84, 50, 34),
)  # fmt: skip
HAIR: tuple[Color, ...] = (
    (34, 30, 36), (104, 62, 28), (250, 214, 92), (206, 66, 26), (232, 232, 236), (44, 96, 214), (246, 120,
    180),
    (54, 168, 76),
)  # fmt: skip
IRIS: tuple[Color, ...] = ((96, 48, 16), (36, 112, 240), (20, 156, 60), (150, 50, 210), (244, 170, 0))
FRAME: tuple[Color, ...] = ((0, 0, 0), (16, 16, 20), (236, 180, 20), (226, 24, 36))
INK: Color = (28, 20, 28)
WHITE: Color = (250, 250, 250)

_FACES = {  # row widths, top to bottom
    "round": [8, 10, 12, 12, 12, 12, 12, 12, 12, 12, 10, 8],
    "square": [12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12],
    "long": [8, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 8, 6],
}


def draw_person(canvas: Canvas, person: Person, pose: Pose, clothes: Color) -> None:
    """Draw the bust on the canvas; `clothes` colours the shoulders, patterns are laid on afterwards."""
    x, y = pose.x, pose.y + (2 if person.age else 0)
    skin, hair = SKIN[person.skin], HAIR[person.hair_color]
    rows = _FACES[person.value("face")]
    if person.age:  # a child's face is two rows shorter
        rows = rows[:6] + rows[8:]
    height = len(rows)
    style = person.value("hair")
    _back_hair(canvas, style, x, y, height, hair)
    canvas.box(x - 2, y + height - 1, 4, 4, shade(skin, 0.82), Part.BODY)  # neck
    _shoulders(canvas, x, y + height + 2, clothes, narrow=person.age == 1)
    if style == "long":  # long hair falls over the shoulders
        canvas.box(x - 8, y + 4, 2, height + 2, hair, Part.HAIR)
        canvas.box(x + 6, y + 4, 2, height + 2, hair, Part.HAIR)
    canvas.rows(x, y, rows, skin, Part.FACE)
    canvas.dots([(x - rows[5] // 2 - 1, y + 5), (x + rows[5] // 2, y + 5)], shade(skin, 0.9), Part.EARS)
    _fringe(canvas, style, x, y, rows, hair)
    _beard(canvas, person, x, y, rows, hair)
    _marks(canvas, person, x, y, skin)
    _features(canvas, person, pose, x, y, skin, hair)
    _glasses(canvas, person, x, y)


def _shoulders(canvas: Canvas, x: int, top: int, color: Color, *, narrow: bool) -> None:
    width = 12 if narrow else 14
    canvas.rows(x, top, [width - 4, width - 2], color, Part.BODY)
    canvas.box(x - width // 2, top + 2, width, 32, color, Part.BODY)


def _back_hair(canvas: Canvas, style: str, x: int, y: int, height: int, hair: Color) -> None:
    """The hair behind the face."""
    if style == "curly":
        canvas.rows(x, y - 4, [8, 12, 14, 16, 16, 16, 16, 16, 16, 16, 14, 14, 12], hair, Part.HAIR)
        canvas.dots([(x - 8, y - 2), (x + 7, y - 2), (x - 9, y + 2), (x + 8, y + 2)], hair, Part.HAIR)
    elif style == "long":
        canvas.rows(x, y - 2, [10, 14, *[16] * (height + 8)], hair, Part.HAIR)
    elif style == "bob":
        canvas.rows(x, y - 2, [10, 14, *[16] * (height - 2)], hair, Part.HAIR)
    elif style == "bun":
        canvas.rows(x, y - 6, [4, 6, 6, 4, 8, 12], hair, Part.HAIR)
        canvas.rows(x, y, [14, 14, 14, 14], hair, Part.HAIR)
    elif style == "pigtails":
        canvas.rows(x, y - 2, [10, 12, 14, 14, 14], hair, Part.HAIR)
        for side in (x - 10, x + 6):
            canvas.box(side, y + 2, 4, 6, hair, Part.HAIR)
            canvas.box(side + 1, y + 8, 2, 2, hair, Part.HAIR)
    elif style == "short":
        canvas.rows(x, y - 2, [8, 12, 14, 14, 14], hair, Part.HAIR)
    elif style == "spiky":
        canvas.rows(x, y - 2, [12, 12, 14, 14], hair, Part.HAIR)
        for spike in (x - 6, x - 2, x + 2):
            canvas.box(spike, y - 4, 2, 2, hair, Part.HAIR)
            canvas.dots([(spike, y - 5)], hair, Part.HAIR)
        canvas.box(x + 5, y - 4, 1, 2, hair, Part.HAIR)


def _fringe(canvas: Canvas, style: str, x: int, y: int, rows: list[int], hair: Color) -> None:
    """The hair over the forehead."""
    if style == "bald":
        return
    depth = {"short": 1, "spiky": 1, "curly": 2, "long": 1, "bob": 2, "bun": 1, "pigtails": 1}[style]
    canvas.rows(x, y, [max(w, 10) for w in rows[:depth]], hair, Part.HAIR)
    if style == "long":  # parted in the middle
        canvas.box(x - 5, y + 1, 3, 1, hair, Part.HAIR)
        canvas.box(x + 2, y + 1, 3, 1, hair, Part.HAIR)
    elif style == "pigtails":
        canvas.box(x - 1, y, 2, 1, shade(hair, 0.7), Part.HAIR)
    elif style == "curly":
        canvas.dots([(x - 4, y + 2), (x - 1, y + 2), (x + 2, y + 2), (x + 4, y + 2)], hair, Part.HAIR)


def _beard(canvas: Canvas, person: Person, x: int, y: int, rows: list[int], hair: Color) -> None:
    kind = person.value("beard")
    color = shade(hair, 0.85)
    if kind == "full":
        for row in range(8, len(rows)):
            canvas.box(x - rows[row] // 2, y + row, rows[row], 1, color, Part.HAIR)
        canvas.box(x - rows[7] // 2, y + 6, 1, 2, color, Part.HAIR)
        canvas.box(x + rows[7] // 2 - 1, y + 6, 1, 2, color, Part.HAIR)
    elif kind == "goatee":
        canvas.box(x - 2, y + 10, 4, len(rows) - 10 + 1, color, Part.HAIR)
    elif kind == "moustache":
        canvas.box(x - 4, y + 7, 8, 1, color, Part.HAIR)


def _marks(canvas: Canvas, person: Person, x: int, y: int, skin: Color) -> None:
    kind = person.value("mark")
    if kind == "freckles":
        points = [
            (x - 5, y + 6),
            (x - 4, y + 7),
            (x - 3, y + 6),
            (x + 2, y + 6),
            (x + 3, y + 7),
            (x + 4, y + 6),
        ]
        canvas.dots(points, shade(skin, 0.62), Part.FACE)
    elif kind == "mole":
        canvas.dots([(x + 3, y + 7), (x + 3, y + 8)], (48, 24, 20), Part.FACE)
    elif kind == "scar":
        canvas.dots(
            [(x - 5, y + 6), (x - 4, y + 7), (x - 4, y + 8), (x - 3, y + 9)], (196, 30, 60), Part.FACE
        )
    elif kind == "blush":
        canvas.box(x - 5, y + 6, 2, 2, (250, 110, 130), Part.FACE)
        canvas.box(x + 3, y + 6, 2, 2, (250, 110, 130), Part.FACE)


def _features(canvas: Canvas, person: Person, pose: Pose, x: int, y: int, skin: Color, hair: Color) -> None:
    """Brows, eyes, nose and mouth: the parts that expression and gaze move."""
    iris = IRIS[person.eyes]
    brow = shade(hair, 0.75)
    for side, eye in ((-1, x - 4), (1, x + 2)):
        canvas.box(eye, y + 4, 2, 2, WHITE, Part.EYES)
        if pose.gaze == 0:
            canvas.box(eye, y + 4, 2, 2, iris, Part.EYES)
        else:
            canvas.box(eye + (1 if pose.gaze > 0 else 0), y + 4, 1, 2, iris, Part.EYES)
        inner = eye + 1 if side < 0 else eye
        outer = eye if side < 0 else eye + 1
        if person.sex:  # men: heavy brows; women: lashes
            canvas.box(eye, y + 2, 2, 1, brow, Part.HAIR)
            canvas.dots([(outer + side, y + 2)], brow, Part.HAIR)
        else:
            canvas.dots([(outer + side, y + 3), (outer, y + 3), (inner, y + 3)], INK, Part.EYES)
        if pose.expression == "angry":
            canvas.dots([(inner, y + 3), (inner - side, y + 4)], INK, Part.HAIR)
    canvas.dots(
        [(x - (1 if pose.gaze < 0 else 0), y + 6), (x - (1 if pose.gaze < 0 else 0), y + 7)],
        shade(skin, 0.7),
        Part.FACE,
    )
    row = y + (8 if person.age == 0 else 7)
    lips: Color = (120, 36, 36) if person.sex else (226, 30, 70)
    draw_mouth(canvas, x, row, pose.expression, lips)


def draw_mouth(canvas: Canvas, x: int, y: int, expression: str, lips: Color) -> None:
    """A mouth of 4×2 art pixels around column border `x`, shared by people and pets."""
    if expression == "smiling":
        canvas.dots([(x - 2, y), (x + 1, y), (x - 1, y + 1), (x, y + 1)], lips, Part.MOUTH)
        canvas.dots([(x - 1, y), (x, y)], WHITE, Part.MOUTH)
    elif expression == "sad":
        canvas.dots([(x - 1, y), (x, y), (x - 2, y + 1), (x + 1, y + 1)], lips, Part.MOUTH)
    elif expression == "surprised":
        canvas.box(x - 1, y, 2, 2, lips, Part.MOUTH)
    else:
        canvas.box(x - 2, y + 1, 4, 1, lips, Part.MOUTH)


def _glasses(canvas: Canvas, person: Person, x: int, y: int) -> None:
    if person.glasses == 0:
        return
    frame = FRAME[person.glasses]
    for left in (x - 5, x + 1):
        canvas.box(left, y + 3, 4, 1, frame, Part.EYES)
        canvas.box(left, y + 6, 4, 1, frame, Part.EYES)
        canvas.box(left, y + 4, 1, 2, frame, Part.EYES)
        canvas.box(left + 3, y + 4, 1, 2, frame, Part.EYES)
    canvas.box(x - 1, y + 4, 2, 1, frame, Part.EYES)
