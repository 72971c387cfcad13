"""Pictures from bytes; the sizes they are trained at; and how one is brought to its size."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import NestedAttentionError
from ...pictures.cover import cover
from ...pictures.files import on_white, pixels, upright

Size = tuple[int, int]
"""(height, width) in pixels."""


def decode(content: bytes) -> tuple[Tensor, Tensor | None]:
    """Bytes of a file → picture (H, W, 3) in [0, 1], upright and on white, and its alpha (H, W) if it is
    transparent anywhere. Raises NestedAttentionError for what is no picture, or not all of one."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = upright(opened)
    except Exception as error:  # Pillow raises what its decoders meet
        raise NestedAttentionError(f"no picture that can be read ({error})") from error
    alpha = torch.from_numpy(np.array(image.getchannel("A"))).float().div(255)  # (H, W)
    return pixels(on_white(image)), None if bool((alpha == 1).all()) else alpha


def bucket_sizes(resolution: int, step: int, *, square: bool) -> list[Size]:
    """The sizes of targets: sides are multiples of `step`, of `resolution`² pixels at most, between 1:2 and
    2:1."""
    if square:
        return [(resolution, resolution)]
    sizes = set()
    for width in range(step, 2 * resolution + 1, step):
        height = resolution * resolution // width // step * step
        if height and 0.5 <= width / height <= 2:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes)


def bucket_of(size: Size, sizes: list[Size]) -> Size:
    """The size whose shape is nearest to that of a picture."""
    shape = math.log(size[1] / size[0])
    return min(sizes, key=lambda each: (abs(math.log(each[1] / each[0]) - shape), -each[0] * each[1]))


def fit(picture: Tensor, size: Size) -> tuple[Tensor, tuple[int, ...]]:
    """A picture (H, W, 3) → (3, h, w) of that size, the middle of it, and what SDXL is told: the picture's
    own height and width, the corner of the crop, and the size."""
    height, width = picture.shape[:2]
    cut, top, left = cover(picture.movedim(-1, 0)[None], *size)
    return cut[0].clamp(0, 1), (height, width, top, left, *size)
