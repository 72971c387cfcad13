"""Pictures on one labelled sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..errors import NestedAttentionError

SMALLEST = 192
"""Pixels of a cell's shorter side: smaller pictures are enlarged by whole numbers, so that labels fit."""

LARGEST = 16_384
"""Pixels a side of a sheet: what common viewers still open."""

INK, PAPER = (34, 34, 40), (250, 249, 246)


def labelled_sheet(
    pictures: Tensor, rows: Sequence[str], columns: Sequence[str], corner: Tensor | None = None
) -> Tensor:
    """Pictures (rows · columns, height, width, 3) in [0, 1], row by row → one sheet (height, width, 3).

    rows, columns: a label each, empty for none. corner: a picture of any size for the place above the rows'
    labels. Raises NestedAttentionError if there are not as many pictures as the labels have places, and for a
    sheet of more than 16,384 pixels a side.
    """
    if not rows or not columns or len(pictures) != len(rows) * len(columns):
        raise NestedAttentionError(
            f"there are {len(pictures)} pictures, and labels for {len(rows)} rows of {len(columns)} columns; "
            f"expected rows × columns pictures. Give a line for each row and each column"
        )
    shown = _readable(pictures)
    height, width = shown.shape[1:3]
    gap = max(4, width // 48)
    font = ImageFont.load_default(max(12, min(width // 16, 40)))
    left = max(width // 2, 144) if any(rows) or corner is not None else 0
    top = _line(font) + gap if any(columns) else 0
    if corner is not None:
        top = max(top, left)
    size = (left + len(columns) * (width + gap) + gap, top + len(rows) * (height + gap) + gap)
    if max(size) > LARGEST:
        raise NestedAttentionError(
            f"the sheet would have {size[0]} × {size[1]} pixels; expected {LARGEST} a side at most. Make "
            "fewer pictures, or smaller ones"
        )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    if corner is not None:
        picture = ImageOps.contain(_image(_readable(corner[None])[0]), (left - gap, top - gap))
        sheet.paste(picture, (gap, gap))
    for number, label in enumerate(columns):
        x = left + gap + number * (width + gap)
        pen.multiline_text((x, top), _wrapped(label, font, width), fill=INK, font=font, anchor="ld")
    for number, label in enumerate(rows):
        y = top + gap + number * (height + gap)
        pen.multiline_text((gap, y), _wrapped(label, font, left - 2 * gap), fill=INK, font=font)
        for place in range(len(columns)):
            picture = _image(shown[number * len(columns) + place])
            sheet.paste(picture, (left + gap + place * (width + gap), y))
    return torch.from_numpy(np.asarray(sheet).copy()).float() / 255


def _readable(pictures: Tensor) -> Tensor:
    """Enlarged by whole numbers, pixel by pixel, until they are no smaller than SMALLEST."""
    times = -(-SMALLEST // min(pictures.shape[1:3]))
    return pictures.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.mul(255).round().clamp(0, 255).byte().cpu().numpy())


def _line(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return round(font.getbbox("Ay")[3] * 1.4)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    letters = max(8, int(width / (font.getlength("a person") / 8)))
    return "\n".join(textwrap.wrap(text, letters))
