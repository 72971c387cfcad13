"""How a cat or a dog is drawn, around the same column `x` and face top `y` as a person."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, Color, Part, centred
from .colors import GREYS, INK, WHITE, luma, mix, ramp, shade
from .face import draw_eyes, draw_mouth
from .identity import Pet
from .people import shoulders
from .pose import Pose

_NOSES: tuple[Color, ...] = ((26, 20, 24), (96, 56, 44), (206, 110, 110), (250, 150, 160))

_ROWS = (
    (5, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7, 6, 4),
    (6, 8, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 8, 6),
    (5, 6, 7, 7, 7, 7, 7, 8, 8, 8, 7, 7, 6, 5, 4),
)
"""Half widths of a head, from its top to the chin: round, broad, slender."""


def draw_pet(canvas: Canvas, pet: Pet, pose: Pose, clothes: Color | None) -> int:
    """Draw head and chest; without clothes the chest shows the fur. Returns the row of the chin."""
    x, y = pose.x, pose.y + 1
    halves = list(_ROWS[pet.width])
    chin = y + len(halves)
    fur, second = pet.fur_color, pet.second_color
    rng = np.random.default_rng(pet.outline)
    left, right = (rng.integers(0, 3 if pet.coat else 1, 20) for _ in range(2))
    shoulders(canvas, x, chin - 1, shade(fur, 0.9) if clothes is None else clothes, 9)
    if clothes is None and pet.pattern in (4, 5):
        canvas.spans(chin + 1, centred(x, [6, 8, 8, 6, 4, 2]), second, Part.BODY)
    floppy = pet.EARS[pet.ears] == "floppy"
    if not floppy:
        _ears(canvas, pet, x, y, halves[3])
    spans = [(x - half - int(left[i]), x + half + int(right[i])) for i, half in enumerate(halves)]
    canvas.spans(y, spans, fur, Part.FACE)
    if pet.coat:  # tufts on the crown
        columns = range(x - 5, x + 5)
        canvas.dots(
            [(c, y - 1) for c, there in zip(columns, left[:10], strict=True) if there], fur, Part.FACE
        )
    _pattern(canvas, pet, x, y, spans, second)
    if floppy:
        _ears(canvas, pet, x, y, halves[3])
    _fur_strands(canvas, rng, x, y)
    _features(canvas, pet, pose, x, y, fur)
    return chin


def _ears(canvas: Canvas, pet: Pet, x: int, y: int, half: int) -> None:
    kind, size = pet.EARS[pet.ears], 1 + pet.ear_size
    fur = pet.second_color if pet.pattern in (3, 4) else shade(pet.fur_color, 0.9)
    inner = mix(pet.fur_color, (240, 150, 150), 0.6)
    for side in (-1, 1):
        if kind in ("pointed", "tufted"):
            height, outer = 4 + 2 * size, x + side * half
            for step in range(height):  # a triangle that leans outwards
                width = min(1 + step, 5 + pet.ear_size)
                at = outer - width if side > 0 else outer
                row = y + 3 - height + step
                canvas.spans(row, [(at, at + width)], fur, Part.EARS)
                if width > 2:
                    canvas.box(at + 1, row, width - 2, 1, inner, Part.EARS)
            if kind == "tufted":
                top = y + 2 - height
                tip = outer - 1 if side > 0 else outer
                canvas.dots([(tip, top), (tip, top - 1), (tip + side, top - 1)], INK, Part.EARS)
        elif kind == "round":
            middle = x + side * (half - 1)
            widths = [4, 6, 6] if size == 1 else [4, 6, 8, 8, 8]
            canvas.spans(y - 2 - pet.ear_size, centred(middle, widths), fur, Part.EARS)
            canvas.box(middle - 1, y - 1 - pet.ear_size, 2, 2 + pet.ear_size, inner, Part.EARS)
        else:
            low, width = 7 + 3 * size, 4
            widths = [2, 3, *[width] * (low - 3), 3]
            at = x + side * (half - 1)
            spans = [(at - w, at) if side < 0 else (at, at + w) for w in widths]
            canvas.spans(y + 1, spans, shade(fur, 0.84), Part.EARS)


def _pattern(canvas: Canvas, pet: Pet, x: int, y: int, spans: list[tuple[int, int]], second: Color) -> None:
    """Markings, at places of this pet's own."""
    kind = pet.PATTERN[pet.pattern]
    rng = np.random.default_rng(pet.places)
    if kind == "striped":
        for column in (-4, -1, 2):
            shift, height = int(rng.integers(-1, 2)), 2 + int(rng.integers(0, 4))
            canvas.box(x + column + shift, y, 2, height, second, Part.FACE)
        for row in range(6, 14, 2):
            if rng.random() < 0.75:
                left, right = spans[row]
                long = 2 + int(rng.integers(0, 3))
                canvas.box(left, y + row, long, 1, second, Part.FACE)
                canvas.box(right - long, y + row, long, 1, second, Part.FACE)
    elif kind == "spotted":
        for _ in range(7):
            row = int(rng.integers(0, 13))
            left, right = spans[row]
            canvas.box(int(rng.integers(left, right - 1)), y + row, 2, 2, second, Part.FACE)
    elif kind == "patched":
        side = 1 if rng.random() < 0.5 else -1
        widths = [int(w) for w in rng.integers(4, 8, 8 + int(rng.integers(0, 4)))]
        top = int(rng.integers(0, 4))
        for step, width in enumerate(widths):
            row = top + step
            left, right = spans[min(row, len(spans) - 1)]
            edges = (x + 1, min(x + 1 + width, right)) if side > 0 else (max(x - 1 - width, left), x - 1)
            canvas.spans(y + row, [edges], second, Part.FACE)
    elif kind == "masked":
        top, low = 3 + int(rng.integers(0, 2)), 9 + int(rng.integers(0, 3))
        for row in range(top, low):
            left, right = spans[row]
            cut = int(rng.integers(0, 2))
            canvas.spans(y + row, [(left + cut, right - cut)], second, Part.FACE)
    elif kind == "blazed":
        width = 2 + 2 * int(rng.integers(0, 2))
        canvas.box(x - width // 2, y, width, 9, second, Part.FACE)
        lows = [6, 8, 10, 10, 8, 6][int(rng.integers(0, 2)) :]
        canvas.spans(y + 9, centred(x, lows), second, Part.FACE)


def _fur_strands(canvas: Canvas, rng: np.random.Generator, x: int, y: int) -> None:
    """Fur is not of one tone, and its strands move with the head."""
    mine = (canvas.part == Part.FACE) & (canvas.subject == canvas.current)
    tones = rng.choice((0.92, 1.0, 1.0, 1.08), (8, 8))
    rows, columns = (np.arange(size) for size in mine.shape)
    tiled = tones[np.ix_((rows - y) // 4 % 8, (columns - x) % 8)]
    canvas.light *= np.where(mine, tiled, 1.0).astype(np.float32)


def _features(canvas: Canvas, pet: Pet, pose: Pose, x: int, y: int, fur: Color) -> None:
    """Muzzle, eyes, nose, mouth and whiskers: what expression and gaze move."""
    dog = pet.species == 1
    light = mix(fur, (255, 246, 232), 0.55 if luma(fur) < 200 else 0.2)
    muzzle = [6, 8, 10, 10, 8] if pet.muzzle else [4, 6, 8, 8, 6]
    shift = pose.gaze if dog else 0
    if dog:
        canvas.spans(y + 8, centred(x + shift, [4, *muzzle]), light, Part.FACE)
    gap = 2 + pet.eye_gap
    eyes = (x - gap - 4, x + gap)
    draw_eyes(canvas, eyes, y + 5, 3 if not dog else 2, pet.eye_color, pose, lashes=False)
    brow = shade(fur, 0.55) if luma(fur) > 90 else ramp(GREYS, 0.7)
    if pose.expression in ("angry", "sad"):
        for first, left in ((True, eyes[0]), (False, eyes[1])):
            for step in range(4):
                inner = 3 - step if first else step
                drop = (inner < 2) if pose.expression == "angry" else (inner >= 2)
                canvas.box(left + step, y + 2 + int(drop), 1, 1, brow, Part.FACE)
    nose, width = _NOSES[pet.nose], 4 if dog else 2
    canvas.box(x + shift - width // 2, y + 9, width, 1 + dog, nose, Part.FACE)
    if dog:
        canvas.shade(x + shift - width // 2, y + 9, 1, 1, 1.4)
    else:
        half = _ROWS[pet.width][9]
        for side in (-1, 1):
            at = x + side * (half - 1)
            for row in (9, 11):
                left = at - 4 if side < 0 else at
                canvas.box(left, y + row, 4, 1, mix(WHITE, fur, 0.25), Part.FACE)
    dark = mix(fur, (60, 20, 30), 0.75) if luma(fur) > 80 else (206, 140, 140)
    draw_mouth(canvas, x + shift, y + 11, 4, pose.expression, dark)
    if pose.expression == "smiling" and dog:
        canvas.box(x + shift - 1, y + 13, 2, 2, (250, 110, 140), Part.MOUTH)
