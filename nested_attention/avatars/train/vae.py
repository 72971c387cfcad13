"""Stage 1: the autoencoder. It learns an invertible map, `cells`, and to clean latents that are not quite
right.

Encoder and decoder learn apart: one to give the latents that the map gives, the other to give the pixels
back from such latents with a little noise. Whatever is trained on latents therefore needs no autoencoder.
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
from ..models.cells import to_cells
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
    encoded = models["vae"].encode(x).latent_dist.mean
    decoded = models["vae"].decode(z + noise["latent"][..., : z.shape[-1]]).sample
    return {
        "latents": (encoded - z).abs().mean(),
        "absolute": (decoded - x).abs().mean(),
        "mse": (decoded - x).square().mean(),
    }


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
    vae = new_vae() if start is None else start.requires_grad_(True)
    data = Joined(*(Arrays(rgb=pictures.rgb) for pictures in sets))
    weights = {"latents": 1.0, "absolute": 1.0, "mse": 1.0}
    Trainer(
        folder, {"vae": vae}, data, _objective, schedule, options, loss_weights=weights, noise=_noise
    ).run()
    return deterministic(vae)


@torch.no_grad()
def deterministic(vae: AutoencoderKL) -> AutoencoderKL:
    """Make the posterior a point."""
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias[LATENT_CHANNELS:] = -30.0
    return vae
