"""Maps drawn: over the picture, over the references, and as sheets with numbers. Pictures are (H, W, 3)
uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from ..subject import Reference
from .maps import CHANGE, WORD, Observation, Selection, SubjectMaps

PALETTE = ((255, 140, 0), (0, 150, 255), (40, 200, 80), (235, 70, 180), (200, 190, 40), (150, 110, 255))
"""Colours of subjects, in order, from the first again where there are more."""

PAPER, INK, DIM = (250, 249, 246), (34, 34, 40), (110, 110, 118)
CELL, GAP, LINE = 168, 12, 18
"""Pixels of a sheet: a picture's side, between pictures, a line of text."""

Point = tuple[float, float]
"""x and y in [0, 1], from the upper left corner."""


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet, and the lines below it."""

    picture: np.ndarray
    lines: tuple[str, ...] = ()


def overlay(picture: np.ndarray, maps: Sequence[tuple[Tensor, tuple[int, int, int]]]) -> np.ndarray:
    """The picture in grey, with each map (h, w) ≥ 0 in its colour: fully where it is highest."""
    height, width = picture.shape[:2]
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True) * 0.75
    out = np.repeat(grey, 3, axis=2)
    for values, colour in maps:
        share = _resized(values / values.max().clamp_min(1e-12), height, width).numpy()[..., None]
        out = out * (1 - 0.85 * share) + np.asarray(colour, np.float32) * 0.85 * share
    return _bytes(out)


def colours(rgb: Tensor, word: Tensor, height: int, width: int) -> np.ndarray:
    """Red, green and blue in [0, 1], (3, h, w), dimmer where the word (h, w) is attended less."""
    weight = (word / word.max().clamp_min(1e-12)).sqrt()
    shown, dim = _resized(rgb, height, width), _resized(weight, height, width)
    return _bytes((shown * (0.15 + 0.85 * dim) * 255).movedim(0, -1).numpy())


def word_pictures(
    seen: Observation, pictures: Sequence[np.ndarray], selection: Selection, *, change: bool = False
) -> list[np.ndarray]:
    """Each picture with what its subjects' words attend to, or with the size of the change, a colour each."""
    channel = CHANGE if change else WORD
    return [
        overlay(
            picture,
            [
                (one.mean(channel, selection, seen.spans)[0], PALETTE[i % len(PALETTE)])
                for i, one in enumerate(seen.of(number))
            ],
        )
        for number, picture in enumerate(pictures)
    ]


def value_pictures(
    seen: Observation, pictures: Sequence[np.ndarray], selection: Selection
) -> list[np.ndarray]:
    """For each picture a sheet, a row a subject: the picture, the value without nesting, which is the same at
    every place, with nesting, and with nesting in the first and in the second half of the steps that were
    observed, where they are told apart."""
    sheets = []
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        rows = []
        for one in seen.of(number):
            word = one.mean(WORD, selection, seen.spans)[0]
            values = one.coloured(selection, seen.spans)
            cells = [
                Cell(picture, (one.title,)),
                Cell(colours(torch.full_like(values, 0.5), word, height, width), ("without nesting",)),
                Cell(colours(values, word, height, width), ("with nesting",)),
            ]
            for span in _halves(seen.spans) if selection.steps is None else ():
                half = one.coloured(Selection(selection.layers, span), seen.spans)
                shown = f"steps {span[0] + 1} to {span[1] + 1}"
                cells.append(Cell(colours(half, word, height, width), (shown,)))
            rows.append(cells)
        sheets.append(sheet(rows or [[Cell(picture, ("no subject",))]]))
    return alike(sheets)


def _halves(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """First and last step of each half; none where all steps are one group."""
    if len(spans) < 2:
        return ()
    middle = len(spans) // 2
    return (spans[0][0], spans[middle - 1][1]), (spans[middle][0], spans[-1][1])


def token_pictures(
    seen: Observation, pictures: Sequence[np.ndarray], points: Sequence[Point], strongest: int = 4
) -> list[np.ndarray]:
    """For each picture a sheet: the picture with numbered places, then for each subject and place the
    strongest tokens, and where in the references they come from. points: empty takes the strongest places of
    each subject."""
    sheets = []
    for number, picture in enumerate(pictures):
        rows: list[list[Cell]] = []
        for one in seen.of(number):
            chosen = list(points) or one.strongest(strongest, seen.spans)
            cells = [Cell(numbered(picture, chosen), (one.title,))]
            for i, point in enumerate(chosen, start=1):
                tokens = one.at(point)
                lines = [f"place {i}: " + ", ".join(f"#{token} {share:.0%}" for token, share in tokens[:2])]
                top = sum(share for _, share in tokens[:2])
                lines.append(f"two strongest together {top:.0%}")
                cells += _references(one, tokens, tuple(lines), point)
            rows.append(cells)
        sheets.append(sheet(rows or [[Cell(picture, ("no subject",))]]))
    return alike(sheets)


def query_pictures(seen: Observation, number: int = 8) -> np.ndarray:
    """A sheet, a row a subject: where the encoder's most used queries look in the subject's references."""
    rows, known = [], set()
    for one in seen.subjects:
        key = one.title, one.references
        if key in known or not any(r is not None and r.looks is not None for r in one.references):
            continue
        known.add(key)
        cells = []
        for token in one.most_used(number, seen.spans):
            image, query = divmod(token, one.queries)
            reference = one.references[image]
            if reference is not None and reference.looks is not None:
                drawn = overlay(_square(reference), [(reference.looks()[query], PALETTE[0])])
                cells.append(Cell(drawn, (f"{one.title} #{token}",)))
        if cells:  # else all of them are of a picture that is not known
            rows.append(cells)
    blank = np.full((8, 8, 3), PAPER, np.uint8)
    return sheet(rows or [[Cell(blank, ("no reference is known, or", "none was looked at in parts"))]])


def numbered(picture: np.ndarray, points: Sequence[Point]) -> np.ndarray:
    """The picture with the places' numbers on it."""
    image = Image.fromarray(enlarged(picture, CELL))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for i, (x, y) in enumerate(points, start=1):
        cx, cy = x * image.width, y * image.height
        pen.ellipse([cx - 9, cy - 9, cx + 9, cy + 9], fill=(255, 255, 255), outline=INK, width=2)
        pen.text((cx, cy), str(i), fill=INK, font=font, anchor="mm")
    return np.asarray(image)


def sheet(rows: Sequence[Sequence[Cell]]) -> np.ndarray:
    """Cells in rows, each with its lines below."""
    shown = [[enlarged(cell.picture, CELL) for cell in row] for row in rows]
    heights = [
        max(x.shape[0] for x in pictures) + LINE * max(len(cell.lines) for cell in row)
        for row, pictures in zip(rows, shown, strict=True)
    ]
    steps = max(CELL, *(x.shape[1] for pictures in shown for x in pictures)) + GAP
    size = (GAP + steps * max(map(len, rows)), GAP + sum(height + GAP for height in heights))
    image = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    top = GAP
    for row, pictures, height in zip(rows, shown, heights, strict=True):
        for i, (cell, picture) in enumerate(zip(row, pictures, strict=True)):
            left = GAP + i * steps
            image.paste(Image.fromarray(picture), (left, top))
            for n, line in enumerate(cell.lines):
                place = (left, top + picture.shape[0] + 2 + n * LINE)
                pen.text(place, line, fill=INK if n == 0 else DIM, font=font)
        top += height + GAP
    return np.asarray(image)


def alike(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All of one size, with paper around the smaller ones."""
    height, width = (max(x.shape[axis] for x in pictures) for axis in (0, 1))
    out = []
    for picture in pictures:
        whole = np.full((height, width, 3), PAPER, np.uint8)
        whole[: picture.shape[0], : picture.shape[1]] = picture
        out.append(whole)
    return out


def enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    """With its longer side at `side` pixels: small ones in whole multiples, crisply."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    kind = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(picture).resize(size, kind))


def _references(
    one: SubjectMaps, tokens: list[tuple[int, float]], lines: tuple[str, ...], point: Point
) -> list[Cell]:
    heats = one.looked_at(tokens)
    rows, columns = one.drawn.shape[1:]
    row, column = min(int(point[1] * rows), rows - 1), min(int(point[0] * columns), columns - 1)
    shares = one.drawn[:, row, column].tolist()
    cells = []
    for image, (reference, heat) in enumerate(zip(one.references, heats, strict=True)):
        more = (f"from picture {image + 1}: {shares[image]:.0%}",) if len(shares) > 1 else ()
        if reference is not None and heat is None:
            cells.append(Cell(_square(reference), (*lines, *more, "read as a whole")))
        elif reference is None or heat is None:
            blank = np.full((8, 8, 3), (225, 224, 220), np.uint8)
            cells.append(Cell(blank, (*lines, *more, "its picture is not known")))
        else:
            cells.append(Cell(overlay(_square(reference), [(heat, PALETTE[0])]), (*lines, *more)))
    return cells


def _square(reference: Reference) -> np.ndarray:
    return reference.picture.numpy()


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) → (..., height, width), ≥ 0."""
    maps = values.float().reshape(1, -1, *values.shape[-2:])
    shown = interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    return shown.clamp_min(0).reshape(*values.shape[:-2], height, width)


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
