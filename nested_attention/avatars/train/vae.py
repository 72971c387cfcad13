"""The autoencoder. Its encoder is an invertible map, `cells`, written into the weights; its decoder
learns to give the pixels back, from such latents with a little noise.

Whatever is trained on latents therefore needs no autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ...training.data import Arrays, Batch, Joined
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.cells import MEAN, SPREAD, cell_map, to_cells
from ..models.model import LATENT, LATENT_CHANNELS, LATENT_WIDE, new_vae
from ..models.pixels import to_tensor
from .data import Pictures

OPTIONS = TrainerOptions(rate=2e-3, ema=0.995)

NOISE = 0.2
"""Largest standard deviation of the noise on latents."""


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    level = NOISE * rng.random((1, 1, 1), dtype=np.float32)
    shape = (LATENT_CHANNELS, LATENT, LATENT_WIDE)
    return {"latent": level * rng.standard_normal(shape, dtype=np.float32)}


def _objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    x = to_tensor(batch["rgb"])
    z = to_cells(x)
    decoded = models["vae"].decode(z + noise["latent"][..., : z.shape[-1]]).sample
    return {"absolute": (decoded - x).abs().mean(), "mse": (decoded - x).square().mean()}


def train_vae(
    folder: Path,
    sets: Sequence[Pictures],
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    start: AutoencoderKL | None = None,
) -> AutoencoderKL:
    """Train on drawn pictures; returns the averaged model, whose encoding is deterministic. `start`: one
    to begin with."""
    torch.manual_seed(options.seed)
    vae = write_encoder(new_vae() if start is None else start.requires_grad_(True))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    data = Joined(*(Arrays(rgb=pictures.rgb) for pictures in sets))
    weights = {"absolute": 1.0, "mse": 1.0}
    Trainer(
        folder, {"vae": vae}, data, _objective, schedule, options, loss_weights=weights, noise=_noise
    ).run()
    return vae


@torch.no_grad()
def write_encoder(vae: AutoencoderKL) -> AutoencoderKL:
    """Make the encoder of an autoencoder of `models.model.VAE`'s sizes the map `to_cells`, to 3 digits, and
    its posterior a point.

    Residual blocks add nothing. The strided convolution sees the four art pixels of a cell, and gives its 12
    numbers. What follows the last normalisation is not linear; yet silu(x) − silu(−x) = x, so that each
    number comes with its negative, and a large constant with its own makes the norm the same for all
    pictures.
    """
    encoder = vae.encoder
    for name, parameter in encoder.named_parameters():
        parameter.fill_(1.0 if ".norm" in name and name.endswith("weight") else 0.0)
    encoder.conv_norm_out.weight.fill_(1.0)
    for channel in range(3):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1.0
    first, second = encoder.down_blocks
    taps = cell_map().reshape(12, 3, 2, 2)  # (number, colour, row, column)
    first.downsamplers[0].conv.weight[:12, :3, :2, :2] = taps
    constant = LATENT_CHANNELS
    first.downsamplers[0].conv.bias[constant] = 1.0
    widen, groups = second.resnets[0].conv_shortcut.weight[..., 0, 0], encoder.conv_norm_out.num_groups
    size = len(widen) // groups
    gain = (size / 2) ** 0.5  # of the normalisation, where the constants are all there is
    for group in range(groups):
        last = (group + 1) * size
        widen[last - 2, constant], widen[last - 1, constant] = 1.0, -1.0
    each = size // 2 - 1  # numbers a group has room for
    for number in range(LATENT_CHANNELS):
        place = number // each * size + 2 * (number % each)
        for channel, sign in ((place, 1.0), (place + 1, -1.0)):
            widen[channel, number] = sign * _SMALL
            encoder.conv_out.weight[number, channel, 1, 1] = sign / (_SMALL * gain * SPREAD[number])
        encoder.conv_out.bias[number] = -MEAN[number] / SPREAD[number]
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.zero_()
    for number in range(LATENT_CHANNELS):
        vae.quant_conv.weight[number, number] = 1.0
    vae.quant_conv.bias[LATENT_CHANNELS:] = -30.0
    return vae


_SMALL = 0.01
"""How large numbers are beside the constant: their squares are what makes the norm differ."""
