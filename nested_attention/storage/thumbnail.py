"""The small picture that a saved subject may carry, and the icon that stands for one that carries none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import NestedAttentionError

SIZE = 128
"""Longer side of a thumbnail, and both sides of the icon, in pixels."""

_BACKGROUND, _FIGURE = 228, 164  # greys


def make_thumbnail(picture: Tensor) -> Tensor:
    """(height, width, 3) in [0, 1] → (h, w, 3) uint8, the longer side at most SIZE pixels.

    Only pixels are kept: what a file says of itself (name, place, camera) never reaches a tensor.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, SIZE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    channels_first = picture.detach().cpu().float().movedim(-1, 0)[None]  # (1, 3, height, width)
    small = interpolate(channels_first, size=size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].movedim(0, -1).clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()


def check_thumbnail(thumbnail: Tensor) -> None:
    """Raises NestedAttentionError for what `make_thumbnail` would not have made."""
    shape = tuple(thumbnail.shape)
    fits = len(shape) == 3 and shape[-1] == 3 and min(shape) > 0 and max(shape) <= SIZE
    if not fits or thumbnail.dtype != torch.uint8:
        raise NestedAttentionError(
            f"subject: its thumbnail has shape {shape} and dtype {thumbnail.dtype}; expected (height, width, "
            f"3) of at most {SIZE} pixels a side, as uint8"
        )


def neutral_icon() -> Tensor:
    """(SIZE, SIZE, 3) uint8: head and shoulders of nobody, for subjects saved without a thumbnail."""
    place = (torch.arange(SIZE) + 0.5) / SIZE  # of each pixel's centre, 0 to 1
    y, x = torch.meshgrid(place, place, indexing="ij")
    head = (x - 0.5) ** 2 + (y - 0.38) ** 2 < 0.17**2
    shoulders = ((x - 0.5) / 0.34) ** 2 + ((y - 0.98) / 0.36) ** 2 < 1
    grey = torch.where(head | shoulders, _FIGURE, _BACKGROUND).to(torch.uint8)
    return grey[..., None].expand(-1, -1, 3).contiguous()
