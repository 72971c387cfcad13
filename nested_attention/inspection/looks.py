"""Where in a reference picture the encoder's learned queries look (Figure 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..encoder import SubjectEncoder
from ..errors import NestedAttentionError
from ..subject import Reference

SIDE = 224
"""Pixels of a side of a reference that is kept for showing."""


def looks(encoder: SubjectEncoder, features: Tensor) -> Tensor:
    """Features of one picture (patches, vision_dim) → (num_queries, rows, columns), in fp32 on the CPU.

    The mean over layers and heads of what a query attends to of the picture's patches. What it attends to of
    the class token, which is nowhere in the picture, and of other latents is left out; each map sums to 1.
    """
    with torch.no_grad():
        maps = encoder.attention_maps(features[None])[0].float().mean(dim=0).cpu()  # (num_queries, patches)
    side = math.isqrt(maps.shape[1])
    patches = maps[:, maps.shape[1] - side**2 :]  # the class token stands first
    if maps.shape[1] - side**2 not in (0, 1):
        raise NestedAttentionError(
            f"the vision model gives {maps.shape[1]} features a picture, which are no square of patches with "
            "or without a class token, so it cannot be told where in the picture they are"
        )
    return (patches / patches.sum(dim=1, keepdim=True).clamp_min(1e-12)).unflatten(1, (side, side))


def reference(picture: Tensor, make: Callable[[], Tensor] | None) -> Reference:
    """A reference of a picture (height, width, 3) in [0, 1]: its middle square, as vision models see it.

    make: () → `looks`, called when somebody asks, and once; None if the encoder looks nowhere in particular.
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = (
        picture[top : top + side, left : left + side].detach().float().permute(2, 0, 1)[None]
    )  # (1, 3, s, s)
    if side > SIDE:
        square = interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    shown = square[0].permute(1, 2, 0).mul(255).round().clamp(0, 255).byte().cpu()
    return Reference(shown, None if make is None else lru_cache(maxsize=1)(make))
