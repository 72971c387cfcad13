"""What comes from a graph as IMAGE and MASK → tensors that can be relied on, or an error that names the
node."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from ..regions import OVERSHOOT

SMALLEST = 16
"""Shorter side, in pixels, below which a picture shows no subject."""


def check_pictures(image: Tensor, node: str = "Encode Subject") -> Tensor:
    """(pictures, height, width, 1, 3 or 4) → (pictures, height, width, 3) in [0, 1].

    Grey becomes colour, and what an alpha channel makes transparent becomes white. Values a little outside
    of the range, as bicubic resizing leaves them, are clamped. Raises NestedAttentionError, naming the node,
    for another shape, a side under 16 px, NaN or infinite values, and values of another range.
    """
    if (
        not isinstance(image, Tensor)
        or image.dim() != 4
        or image.shape[-1] not in (1, 3, 4)
        or not len(image)
    ):
        found = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise NestedAttentionError(
            f"{node}: the image has {found}; expected an IMAGE (pictures, height, width, channels) "
            "with 1, 3 or 4 channels. Connect the IMAGE output of Load Image"
        )
    if min(image.shape[1:3]) < SMALLEST:
        raise NestedAttentionError(
            f"{node}: the picture is {image.shape[2]} × {image.shape[1]} pixels; expected at least "
            f"{SMALLEST} on the shorter side. Check the crop or the mask it comes from"
        )
    image = _check_values(image, node, "picture").clamp(0, 1)
    if image.shape[-1] == 1:
        return image.expand(-1, -1, -1, 3)
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    return image


def check_masks(mask: Tensor, node: str) -> Tensor:
    """(masks, height, width) or (height, width) → (masks, height, width) in [0, 1].

    Values a little outside of the range, as bicubic resizing leaves them, are clamped. Raises
    NestedAttentionError, naming the node, for another shape, NaN or infinite values, and values of another
    range.
    """
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3) or not mask.numel():
        found = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise NestedAttentionError(
            f"{node}: the mask has {found}; expected a MASK (masks, height, width). Connect the MASK "
            "output of Load Image, or of a node that segments"
        )
    return _check_values(mask if mask.dim() == 3 else mask[None], node, "mask").clamp(0, 1)


def _check_values(values: Tensor, node: str, what: str) -> Tensor:
    values = values.float()
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NestedAttentionError(
            f"{node}: {what} {bad[0] + 1} of {len(values)} has NaN or infinite values; check the "
            "node that made it (a VAE in half precision may be the cause)"
        )
    low, high = values.aminmax()
    if float(low) < -OVERSHOOT or float(high) > 1 + OVERSHOOT:
        raise NestedAttentionError(
            f"{node}: the {what}'s values are from {float(low):.3g} to {float(high):.3g}; expected "
            "0 to 1, for bytes are divided by 255. Check the node that made it"
        )
    return values
