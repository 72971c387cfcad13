"""Between drawn pictures and tensors: what the modules of the small world read and write."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...hosts.diffusers.vision import vision_input
from ..drawing.picture import ENLARGE
from .cells import to_cells
from .model import VISION_SIZE
from .tokenizer import TOKENS


def to_tensor(rgb: np.ndarray | Tensor) -> Tensor:
    """(n, H, W, 3) uint8 → (n, 3, H, W) in [−1, 1]."""
    return channels_first(rgb).div(127.5).sub(1)


def channels_first(rgb: np.ndarray | Tensor) -> Tensor:
    """(n, H, W, 3) uint8 → (n, 3, H, W) fp32, with the same values."""
    pixels = rgb if isinstance(rgb, Tensor) else torch.from_numpy(np.ascontiguousarray(rgb))
    return pixels.permute(0, 3, 1, 2).float()


def to_rgb(pixels: Tensor) -> np.ndarray:
    """(n, 3, H, W) in [−1, 1] → (n, H, W, 3) uint8."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def to_vision(crops: np.ndarray | Tensor) -> Tensor:
    """Reference crops (n, 28, 28, 3) uint8 → normalised vision input (n, 3, 56, 56), resampled as a host
    would."""
    pixels = functional.interpolate(channels_first(crops).div(255), scale_factor=ENLARGE, mode="nearest")
    return vision_input(pixels, VISION_SIZE)


@torch.no_grad()
def encode_pictures(rgb: np.ndarray, batch: int = 512) -> Tensor:
    """Pictures (n, 32, W, 3) uint8 → latents (n, 12, 16, W/2), as the autoencoder's encoder gives them."""
    parts = [to_cells(to_tensor(rgb[start : start + batch])) for start in range(0, len(rgb), batch)]
    return torch.cat(parts)


def ids_for_both(ids: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Token ids padded with the end token (encoder L) → the ids of L and of G, which pads with 0."""
    ids_l = ids.long() if isinstance(ids, Tensor) else torch.from_numpy(ids.astype(np.int64))
    ends = (ids_l == TOKENS.end).int()
    return ids_l, torch.where(ends.cumsum(-1) > ends, torch.zeros_like(ids_l), ids_l)
