"""A picture brought to a size whose shape may be another, as vision models read it and SDXL learns it."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor


def cover(pictures: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
    """(n, C, H, W) → (n, C, height, width), and the upper row and left column of what is shown.

    Pictures are resized, by bicubic interpolation, so that they just cover the size, and what stands out is
    cut off on both sides alike. Values are not clamped: they may go a little beyond those of the pictures.
    """
    own = pictures.shape[-2:]
    scale = max(height / own[0], width / own[1])
    shape = max(height, round(scale * own[0])), max(width, round(scale * own[1]))
    resized = functional.interpolate(pictures, shape, mode="bicubic", antialias=True)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return resized[..., top : top + height, left : left + width], top, left
