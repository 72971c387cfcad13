"""Pictures with the faces found in them drawn and numbered, so that one can say which is meant."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .align import AlignedFaces
from .faces import Face, ffhq_square

TAKEN, OTHER, INK = (64, 220, 96), (255, 196, 0), (0, 0, 0)
"""Colours of faces that were taken, of the others, and of the number."""


def draw_faces(pictures: Tensor, faces: AlignedFaces) -> Tensor:
    """(n, height, width, 3) in [0, 1] → the same, with the crop's outline, eyes, mouth and number of each
    face.

    Number 1 is the largest face, as `index` counts. Faces that were taken are green, the others yellow.
    """
    drawn = [
        _draw(picture, found, taken)
        for picture, found, taken in zip(pictures, faces.found, faces.taken, strict=True)
    ]
    return torch.stack(drawn)


def _draw(picture: Tensor, found: tuple[Face, ...], taken: tuple[Face, ...]) -> Tensor:
    image = Image.fromarray(picture.mul(255).round().byte().cpu().numpy())
    canvas = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 400))
    font = ImageFont.load_default(size=max(10, 8 * line))
    for number, face in reversed(list(enumerate(found, start=1))):  # the largest on top
        colour = TAKEN if face in taken else OTHER
        corners = [(place.real, place.imag) for place in ffhq_square(face).corners]
        canvas.line([*corners, corners[0]], fill=colour, width=line, joint="curve")
        for place in (face.left_eye, face.right_eye, face.mouth):
            x, y, radius = place.real, place.imag, 1.5 * line
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        # The label stays inside the picture, wherever the crop's corner lies.
        left, top, right, bottom = canvas.textbbox((0, 0), str(number), font=font)
        width, height = right - left + 4 * line, bottom - top + 4 * line
        x = min(max(min(x for x, _ in corners), 0), image.width - width)
        y = min(max(min(y for _, y in corners), 0), image.height - height)
        canvas.rectangle((x, y, x + width, y + height), fill=colour)
        canvas.text((x + 2 * line - left, y + 2 * line - top), str(number), fill=INK, font=font)
    return torch.from_numpy(np.asarray(image).copy()).float().div(255)
