"""What the autoencoder's latents are: each cell of 2×2 art pixels as 12 numbers, by an invertible linear map.

The three colour channels become brightness and two differences of colour, and the four art pixels of a cell
their mean and three differences (Haar). Each number is divided by a power of its spread: the mean of a cell
stays stronger than the differences within it, as in the latents of large models, so that noise hides detail
first.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLOR = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
_HAAR = torch.tensor(
    [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]
)

MEAN = torch.tensor([0.083, 0.149, 0.01, 0.065, 0.003, 0, 0.074, 0, 0, 0, 0, 0])
SPREAD = torch.tensor([0.916, 0.618, 0.384, 0.499, 0.287, 0.192, 0.527, 0.309, 0.213, 0.397, 0.208, 0.134])
"""Of the 12 numbers over the world's pictures, to the power of 0.6, scaled so that latents have a mean
square of 1."""


def cell_map() -> Tensor:
    """The orthonormal map of a cell. (12, 12): numbers × (colour channel, art pixel)"""
    color = _COLOR / _COLOR.norm(dim=1, keepdim=True)
    haar = _HAAR / _HAAR.norm(dim=1, keepdim=True)
    return torch.einsum("ic,jp->jicp", color, haar).reshape(12, 12)


def to_cells(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [−1, 1] → (B, 12, H/2, W/2)"""
    blocks = torch.nn.functional.pixel_unshuffle(pixels, 2)  # (B, 3·4, H/2, W/2)
    numbers = torch.einsum("nk,bkhw->bnhw", cell_map().to(pixels), blocks)
    return (numbers - MEAN.view(-1, 1, 1).to(pixels)) / SPREAD.view(-1, 1, 1).to(pixels)
