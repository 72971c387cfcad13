"""How a person is drawn: head and shoulders around a column `x`, with the face from row `y` down."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, Color, Part, Point, centred
from .colors import luma, mix, shade
from .face import draw_eyes, draw_mouth
from .identity import Person
from .pose import Pose

NECK_ROWS = 2

_JAWS = ([0, -1, -1, -2, -4], [0, 0, 0, -1, -2], [-1, -1, -2, -3, -5], [0, 0, -1, -1, -3])
"""Half widths of the last five rows of a face, beside its widest: oval, square, pointed, round."""

_FRAMES: tuple[Color, ...] = (
    (20, 20, 24), (236, 180, 20), (226, 24, 36), (30, 90, 220), (250, 250, 250), (120, 60, 20), (20, 150, 90),
    (200, 60, 180),
)  # fmt: skip


def draw_person(canvas: Canvas, person: Person, pose: Pose, clothes: Color) -> int:
    """Draw head and shoulders; `clothes` colours the shoulders, patterns are laid on afterwards. Returns
    the row of the chin."""
    x, y = pose.x, pose.y + 2 * person.age
    half = 7 + person.width - person.age
    rows = face_rows(person, half)
    chin = y + len(rows)
    hair = Hair(person, x, y, half, chin)
    hair.behind(canvas)
    skin = person.skin_color
    canvas.spans(chin - 1, centred(x, [6] * (NECK_ROWS + 2)), shade(skin, 0.8), Part.BODY)
    shoulders(canvas, x, chin + NECK_ROWS, clothes, 10 - person.age)
    hair.over_shoulders(canvas)
    _ears(canvas, person, x, y, half, skin)
    canvas.spans(y, [(x + left, x + right) for left, right in rows], skin, Part.FACE)
    _cheeks(canvas, x, y, half, skin)
    hair.fringe(canvas)
    hair.strands(canvas)
    _beard(canvas, person, x, y, rows)
    _marks(canvas, person, x, y, half)
    _features(canvas, person, pose, x, y)
    return chin


def face_rows(person: Person, half: int) -> list[tuple[int, int]]:
    """The silhouette of a face, around its centre."""
    height = 16 - 2 * person.age
    halves = [half - 3, half - 1, *[half] * (height - 7), *(half + offset for offset in _JAWS[person.jaw])]
    return [(-width, width) for width in halves]


def shoulders(canvas: Canvas, x: int, top: int, color: Color, half: int) -> None:
    """Shoulders that grow from the neck to `half` on either side, and reach the picture's lower edge."""
    widths = [2 * half - 6, 2 * half - 2, *[2 * half] * 16]
    canvas.spans(top, centred(x, widths), color, Part.BODY)


def _ears(canvas: Canvas, person: Person, x: int, y: int, half: int, skin: Color) -> None:
    size = 1 + person.ears
    for left in (x - half - size, x + half):
        canvas.box(left, y + 7, size, 3 + person.ears, shade(skin, 0.9), Part.EARS)
    for inside in (x - half - 1, x + half):
        canvas.box(inside, y + 8, 1, 1 + person.ears, shade(skin, 0.7), Part.EARS)


def _cheeks(canvas: Canvas, x: int, y: int, half: int, skin: Color) -> None:
    color = mix(skin, (236, 90, 90), 0.16)
    for left in (x - half + 1, x + half - 3):
        canvas.box(left, y + 10, 2, 2, color, Part.FACE)


class Hair:
    """A person's hair: its style says where it is, its outline's seed how it falls."""

    def __init__(self, person: Person, x: int, y: int, half: int, chin: int) -> None:
        self.style, self.color = person.HAIR[person.hair], person.hair_rgb
        self.x, self.y, self.half, self.chin = x, y, half, chin
        rng = np.random.default_rng(person.outline)
        self.left, self.right = rng.integers(0, 2, 32), rng.integers(0, 2, 32)
        self.depth = rng.integers(0, 3, 12)
        self.height = rng.integers(0, 4, 12)
        self.parting = int(rng.integers(-4, 5))
        self.streaks = rng.choice((0.86, 1.0, 1.0, 1.14), 64)

    def _cap(self, canvas: Canvas, top: int, rows: int, wider: int) -> None:
        """Hair around the head: from `top` rows above the face, `rows` high, `wider` than it on each side."""
        full = self.half + wider
        halves = [full - 4, full - 2, full - 1, *[full] * rows][:rows]
        spans = [
            (self.x - h - int(self.left[i]), self.x + h + int(self.right[i])) for i, h in enumerate(halves)
        ]
        canvas.spans(self.y - top, spans, self.color, Part.HAIR)

    def behind(self, canvas: Canvas) -> None:
        """The hair behind the face."""
        x, y, half, color = self.x, self.y, self.half, self.color
        if self.style == "short":
            self._cap(canvas, 3, 9, 0)
        elif self.style == "spiky":
            self._cap(canvas, 2, 8, 0)
            for index, column in enumerate(range(x - half, x + half, 3)):
                height = 2 + int(self.height[index])
                canvas.box(column, y - 1 - height, 2, height, color, Part.HAIR)
                canvas.dots([(column + int(self.left[index]), y - 2 - height)], color, Part.HAIR)
        elif self.style == "curly":
            self._cap(canvas, 5, 17, 2)
            bumps = [(side, row) for row in range(y - 3, y + 11, 3) for side in (x - half - 4, x + half + 3)]
            canvas.dots([p for p, there in zip(bumps, self.left, strict=False) if there], color, Part.HAIR)
            tops = [(column, y - 6) for column in range(x - half, x + half, 2)]
            canvas.dots([p for p, there in zip(tops, self.right, strict=False) if there], color, Part.HAIR)
        elif self.style == "long":
            self._cap(canvas, 4, 24, 2)
        elif self.style == "bob":
            self._cap(canvas, 4, 18, 2)
        elif self.style == "bun":
            self._cap(canvas, 2, 9, 1)
            middle = x + self.parting
            canvas.spans(y - 7, centred(middle, [4, 6, 8, 8, 6]), color, Part.HAIR)
            canvas.shade(middle - 3, y - 3, 7, 1, 0.7)
        elif self.style == "pigtails":
            self._cap(canvas, 3, 9, 1)
            low = 8 + 2 * int(self.height[0])
            for side in (-1, 1):
                at = x + side * (half + 2)
                jitter = self.left if side < 0 else self.right
                widths = [3 + int(j) for j in jitter[:low]]
                spans = [(at - w, at) if side < 0 else (at, at + w) for w in widths]
                canvas.spans(y + 4, spans, color, Part.HAIR)
                canvas.box(at - (1 if side < 0 else 0), y + 4, 1, 2, (240, 60, 120), Part.ACCESSORY)

    def over_shoulders(self, canvas: Canvas) -> None:
        """Long hair falls over the shoulders."""
        if self.style == "long":
            for side, jitter in ((-1, self.left), (1, self.right)):
                at = self.x + side * (self.half - 1)
                widths = [3 + int(j) for j in jitter[: 12 + 2 * int(self.height[1])]]
                spans = [(at - w, at) if side < 0 else (at, at + w) for w in widths]
                canvas.spans(self.y + 9, spans, self.color, Part.HAIR)

    def fringe(self, canvas: Canvas) -> None:
        """The hair over the forehead."""
        x, y, half, color = self.x, self.y, self.half, self.color
        if self.style == "bald":
            return
        base = {"short": 1, "spiky": 1, "curly": 2, "long": 1, "bob": 3, "bun": 1, "pigtails": 1}[self.style]
        for index, column in enumerate(range(x - half, x + half, 2)):
            depth = base + int(self.depth[index % 12]) // (2 if self.style in ("bob", "bun") else 1)
            if self.style in ("long", "pigtails", "bun"):  # parted: less hair at the parting, more beside it
                depth = min(depth, abs(column + 1 - x - self.parting) // 2 + 1)
            canvas.box(column, y, 2, min(depth, 4), color, Part.HAIR)
        if self.style in ("long", "bob", "curly"):
            for row in range(2, 12 if self.style != "curly" else 8):
                left, right = 1 + int(self.left[row]), 1 + int(self.right[row])
                canvas.box(x - half, y + row, left, 1, color, Part.HAIR)
                canvas.box(x + half - right, y + row, right, 1, color, Part.HAIR)

    def strands(self, canvas: Canvas) -> None:
        """Lighter and darker strands."""
        mine = (canvas.part == Part.HAIR) & (canvas.subject == canvas.current)
        columns = np.arange(canvas.width) - self.x + 32
        canvas.light *= np.where(mine, self.streaks[np.clip(columns, 0, 63)][None, :], 1.0).astype(np.float32)
        crown = mine & (np.arange(canvas.light.shape[0])[:, None] == self.y - 1)
        canvas.light *= np.where(crown, 1.18, 1.0).astype(np.float32)


def _beard(canvas: Canvas, person: Person, x: int, y: int, rows: list[tuple[int, int]]) -> None:
    kind, color = person.BEARD[person.beard], shade(person.hair_rgb, 0.82)
    if kind == "full":
        spans = [(x + left, x + right) for left, right in rows[11:]]
        canvas.spans(y + 11, spans, color, Part.HAIR)
        half = -rows[9][0]
        for side in (x - half, x + half - 1):
            canvas.box(side, y + 8, 1, 3, color, Part.HAIR)
    elif kind == "goatee":
        canvas.spans(y + 13, centred(x, [6, 6, 4, 2]), color, Part.HAIR)
    elif kind == "moustache":
        canvas.box(x - 4, y + 11, 8, 1, color, Part.HAIR)
        canvas.dots([(x - 5, y + 12), (x + 4, y + 12)], color, Part.HAIR)


def _marks(canvas: Canvas, person: Person, x: int, y: int, half: int) -> None:
    kind, skin = person.MARK[person.mark], person.skin_color
    if kind == "none":
        return
    rng = np.random.default_rng(person.places)
    low = 13 - 2 * person.age
    cheeks = [(dx, row) for row in range(9, low) for dx in (*range(1 - half, -2), *range(2, half - 1))]
    others = [(dx, row) for row in (3, 4) for dx in range(-4, 4)] + [(-4, low + 1), (3, low + 1)]
    if kind == "freckles":
        chosen = rng.permutation(len(cheeks))[:8]
        points = [cheeks[i] for i in chosen]
        canvas.dots(_at(points, x, y), shade(skin, 0.68), Part.FACE)
        return
    places = cheeks + others
    dx, row = places[int(rng.integers(len(places)))]
    if kind == "mole":
        canvas.dots(_at([(dx, row)], x, y), (44, 22, 20), Part.FACE)
    elif kind == "scar":
        way = 1 if rng.random() < 0.5 else -1
        line = [(dx + way * step, row - 1 + step) for step in range(3)]
        canvas.dots(
            _at(line, x, y),
            mix(skin, (250, 150, 160) if luma(skin) < 130 else (190, 60, 80), 0.75),
            Part.FACE,
        )
    else:
        patch = [(dx + right, row + down) for right in (0, 1) for down in (0, 1)]
        canvas.dots(_at(patch, x, y), mix(skin, (150, 30, 60), 0.55), Part.FACE)


def _at(points: list[Point], x: int, y: int) -> list[Point]:
    return [(x + dx, y + row) for dx, row in points]


def _features(canvas: Canvas, person: Person, pose: Pose, x: int, y: int) -> None:
    """Brows, eyes, nose, mouth and glasses: what expression and gaze move."""
    up = person.age  # a child's features stand a row higher
    skin = person.skin_color
    gap = 1 + person.eye_gap
    eyes = (x - gap - 4, x + gap)
    row = y + 7 - up
    lashes = person.sex == 0
    draw_eyes(canvas, eyes, row, 2 + person.eye_height, person.eye_color, pose, lashes=lashes)
    _brows(canvas, person, pose, eyes, row)
    nose_x, length = x + (0 if pose.gaze >= 0 else -1), 3 + person.nose % 2
    shadow = shade(skin, 0.76)
    canvas.dots([(nose_x, row + i) for i in range(1, length)], shade(skin, 0.88), Part.FACE)
    wide = 2 + person.nose // 2
    canvas.box(nose_x - wide // 2, row + length, wide, 1, shadow, Part.FACE)
    lips = mix(skin, (206, 30, 60), 0.62) if lashes else mix(skin, (140, 40, 40), 0.6)
    draw_mouth(canvas, x, y + 12 - 2 * up, 4 + 2 * person.mouth, pose.expression, lips)
    if person.glasses:
        _glasses(canvas, person, eyes, row)


def _brows(canvas: Canvas, person: Person, pose: Pose, eyes: tuple[int, int], row: int) -> None:
    color = shade(person.hair_rgb, 0.72) if person.hair_color < 48 else shade(person.hair_rgb, 0.6)
    thick, arched = 1 + person.brow % 2, person.brow // 2
    top = row - 2 - thick - (1 if pose.expression == "surprised" else 0)
    for inner_right, left in ((True, eyes[0]), (False, eyes[1])):
        for step in range(4):
            inner = 3 - step if inner_right else step  # 0 at the nose, 3 outside
            drop = 1 if arched and inner == 3 else 0
            if pose.expression == "angry":
                drop = 1 if inner < 2 else 0
            elif pose.expression == "sad":
                drop = 1 if inner >= 2 else 0
            canvas.box(left + step, top + drop, 1, thick, color, Part.HAIR)


def _glasses(canvas: Canvas, person: Person, eyes: tuple[int, int], row: int) -> None:
    frame, low = _FRAMES[person.frame], row + 2 + person.eye_height
    for left in eyes:
        edge = (left, 4) if person.glasses == 1 else (left - 1, 6)  # round, or square
        canvas.box(edge[0], row - 2, edge[1], 1, frame, Part.EYES)
        canvas.box(edge[0], low, edge[1], 1, frame, Part.EYES)
        canvas.box(left - 1, row - 1, 1, low - row + 1, frame, Part.EYES)
        canvas.box(left + 4, row - 1, 1, low - row + 1, frame, Part.EYES)
    canvas.box(eyes[0] + 5, row, eyes[1] - eyes[0] - 6, 1, frame, Part.EYES)
