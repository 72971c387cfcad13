"""Pictures on one labelled sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Layout:
    """Where pictures stand on a sheet, in pixels. times: they are enlarged by so much. height, width: of a
    picture then. left, top: room for labels. size: (width, height) of the sheet."""

    times: int
    height: int
    width: int
    gap: int
    left: int
    top: int
    size: tuple[int, int]
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    @classmethod
    def of(
        cls, rows: Sequence[str], columns: Sequence[str], height: int, width: int, *, corner: bool
    ) -> Layout:
        """For pictures of this size, with labels as in `labelled_sheet`. Raises NestedAttentionError for a
        sheet of more than 16,384 pixels a side."""
        times = _times(height, width)
        height, width = times * height, times * width
        gap = max(4, width // 48)
        font = ImageFont.load_default(max(12, min(width // 16, 40)))
        left = max(width // 2, 144) if any(rows) or corner else 0
        top = _line(font) + gap if any(columns) else 0
        if corner:
            top = max(top, left)
        size = (left + len(columns) * (width + gap) + gap, top + len(rows) * (height + gap) + gap)
        if max(size) > LARGEST:
            raise NestedAttentionError(
                f"the sheet would have {size[0]} × {size[1]} pixels; expected {LARGEST} a side at most. Make "
                "fewer pictures, or smaller ones"
            )
        return cls(times, height, width, gap, left, top, size, font)


def labelled_sheet(
    pictures: Tensor, rows: Sequence[str], columns: Sequence[str], corner: Tensor | None = None
) -> Tensor:
    """Pictures (rows · columns, height, width, 3) in [0, 1], row by row → one sheet (height, width, 3).

    rows, columns: a label each, empty for none. corner: a picture of any size for the place above the rows'
    labels. Raises NestedAttentionError if there are not as many pictures as the labels have places, and as
    `Layout.of` does.
    """
    if not rows or not columns or len(pictures) != len(rows) * len(columns):
        raise NestedAttentionError(
            f"there are {len(pictures)} pictures, and labels for {len(rows)} rows of {len(columns)} columns; "
            f"expected rows × columns pictures. Give a line for each row and each column"
        )
    at = Layout.of(rows, columns, *pictures.shape[1:3], corner=corner is not None)
    sheet = Image.new("RGB", at.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    if corner is not None:
        seen = _enlarged(corner, _times(*corner.shape[:2]))
        sheet.paste(ImageOps.contain(_image(seen), (at.left - at.gap, at.top - at.gap)), (at.gap, at.gap))
    for number, label in enumerate(columns):
        x = at.left + at.gap + number * (at.width + at.gap)
        pen.multiline_text(
            (x, at.top), _wrapped(label, at.font, at.width), fill=INK, font=at.font, anchor="ld"
        )
    for number, label in enumerate(rows):
        y = at.top + at.gap + number * (at.height + at.gap)
        words = _wrapped(label, at.font, at.left - 2 * at.gap)
        pen.multiline_text((at.gap, y), words, fill=INK, font=at.font)
        for place in range(len(columns)):
            picture = _image(_enlarged(pictures[number * len(columns) + place], at.times))
            sheet.paste(picture, (at.left + at.gap + place * (at.width + at.gap), y))
    return torch.from_numpy(np.asarray(sheet).copy()).float() / 255


def _times(height: int, width: int) -> int:
    """By how much pictures are enlarged, until they are no smaller than SMALLEST."""
    return -(-SMALLEST // min(height, width))


def _enlarged(picture: Tensor, times: int) -> Tensor:
    """(height, width, 3), by a whole number, pixel by pixel"""
    return picture.repeat_interleave(times, dim=0).repeat_interleave(times, dim=1)


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.mul(255).round().clamp(0, 255).byte().cpu().numpy())


def _line(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return round(font.getbbox("Ay")[3] * 1.4)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    letters = max(8, int(width / (font.getlength("a person") / 8)))
    return "\n".join(textwrap.wrap(text, letters))
