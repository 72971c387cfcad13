"""The demo's picture: references, plain base model, with the person, with person and pet; a row a subject."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..avatars.drawing.canvas import SIZE, WIDE
from .cases import Drawn, Row

PIXEL = 7
"""Screen pixels an art pixel."""

TITLES = ("references", "plain base model", "with the person", "with person and pet")
MARGIN, HEADER, CAPTION = 16, 34, 56
INK, PAPER = (34, 34, 40), (250, 249, 246)


def save_sheet(rows: Sequence[Row], drawn: Sequence[Drawn], path: Path) -> None:
    """Write the picture, nearest-neighbour enlarged, with titles and each row's prompts."""
    cell, wide = SIZE * PIXEL, WIDE * PIXEL
    columns = [MARGIN, *(2 * MARGIN + cell // 2 + n * (cell + MARGIN) for n in range(3))]
    size = (columns[-1] + wide + MARGIN, HEADER + len(rows) * (cell + CAPTION + MARGIN))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, title in zip(columns, TITLES, strict=True):
        pen.text((x, 9), title, fill=INK, font=_font(15))
    for number, (row, pictures) in enumerate(zip(rows, drawn, strict=True)):
        y = HEADER + number * (cell + CAPTION + MARGIN)
        for word, top in (("person", y), ("pet", y + cell // 2)):
            sheet.paste(_enlarged(row.together.reference(word), cell // 2), (columns[0], top))
        for x, rgb in zip(columns[1:], (pictures.base, pictures.alone, pictures.together), strict=True):
            sheet.paste(_enlarged(rgb, cell), (x, y))
        for x, width, prompt in (
            (columns[1], 2 * cell + MARGIN, row.alone.prompt),
            (columns[3], wide, row.together.prompt),
        ):
            lines = textwrap.wrap(prompt, width // 6)[: CAPTION // 13]
            pen.multiline_text((x, y + cell + 3), "\n".join(lines), fill=INK, font=_font(11), spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _enlarged(rgb: np.ndarray, height: int) -> Image.Image:
    width = height * rgb.shape[1] // rgb.shape[0]
    return Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
