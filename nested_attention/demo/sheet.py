"""The demo's picture: a row a case, with references, plain base model, personalised, and person with pet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..avatars.references import reference_crop
from .cases import Case, Drawn

PIXEL = 7
"""Screen pixels an art pixel."""

TITLES = ("references", "plain base model", "with the person", "with person and pet")
MARGIN, HEADER, CAPTION = 16, 34, 56
INK, PAPER = (34, 34, 40), (250, 249, 246)


def save_sheet(cases: Sequence[Case], drawn: Sequence[Drawn], path: Path) -> None:
    """Write the picture, nearest-neighbour enlarged, with titles and each row's prompts."""
    cell = 32 * PIXEL
    columns = [MARGIN, *(2 * MARGIN + cell // 2 + n * (cell + MARGIN) for n in range(3))]
    size = (columns[-1] + cell + MARGIN, HEADER + len(cases) * (cell + CAPTION + MARGIN))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for x, title in zip(columns, TITLES, strict=True):
        pen.text((x, 9), title, fill=INK, font=_font(15))
    for row, (case, pictures) in enumerate(zip(cases, drawn, strict=True)):
        y = HEADER + row * (cell + CAPTION + MARGIN)
        for number, identity in enumerate(case.identities):
            sheet.paste(
                _enlarged(reference_crop(identity), cell // 2), (columns[0], y + number * (cell // 2))
            )
        for x, rgb in zip(columns[1:], (pictures.base, pictures.alone, pictures.together), strict=True):
            sheet.paste(_enlarged(rgb, cell), (x, y))
        for x, width, prompt in (
            (columns[1], 2 * cell + MARGIN, case.alone_prompt),
            (columns[3], cell, case.together_prompt),
        ):
            lines = textwrap.wrap(prompt, width // 6)[: CAPTION // 13]
            pen.multiline_text((x, y + cell + 3), "\n".join(lines), fill=INK, font=_font(11), spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _enlarged(rgb: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(rgb).resize((side, side), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
