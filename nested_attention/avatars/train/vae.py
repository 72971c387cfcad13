"""Stage 1: the autoencoder. Noise on the latents in training teaches the decoder to clean imperfect ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ...training.data import Arrays, Batch
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.model import LATENT, LATENT_CHANNELS, new_vae
from ..models.pixels import encode_pictures, to_tensor
from .data import Pictures

OPTIONS = TrainerOptions(rate=2e-3, ema=0.995)

NOISE = 0.25
"""Largest standard deviation of the noise on unit-variance latents."""


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    level = NOISE * rng.random((1, 1, 1), dtype=np.float32)
    return {"latent": level * rng.standard_normal((LATENT_CHANNELS, LATENT, LATENT), dtype=np.float32)}


def _objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    x = to_tensor(batch["rgb"])
    z = models["vae"].encode(x).latent_dist.mean
    scale = z.detach().std(dim=(0, 2, 3), keepdim=True)
    error = models["vae"].decode(z + scale * noise["latent"]).sample - x
    # `kl` keeps latents near the origin; their variance is fixed afterwards.
    return {"absolute": error.abs().mean(), "mse": error.square().mean(), "kl": z.square().mean()}


def train_vae(
    folder: Path,
    pictures: Pictures,
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    decoder_of: AutoencoderKL | None = None,
) -> AutoencoderKL:
    """Train on drawn pictures; returns the averaged model with latents of zero mean and unit variance.

    `decoder_of` trains only the decoder of an autoencoder further: its latents, and with them whatever was
    trained on them, stay as they are.
    """
    torch.manual_seed(options.seed)
    vae = new_vae()
    if decoder_of is not None:
        vae.load_state_dict(decoder_of.state_dict())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    models, data, weights = {"vae": vae}, Arrays(rgb=pictures.rgb), {"absolute": 1.0, "mse": 1.0, "kl": 1e-3}
    Trainer(folder, models, data, _objective, schedule, options, loss_weights=weights, noise=_noise).run()
    return standardise(vae, pictures) if decoder_of is None else vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Pictures, number: int = 512) -> AutoencoderKL:
    """Fold each channel's mean and spread into the two 1×1 convolutions around the latent."""
    z = encode_pictures(vae, pictures.rgb[:number])
    mean, std = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std.view(-1, 1, 1, 1)
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.weight[channels:] = 0  # the posterior is a point: encoding is deterministic
    vae.quant_conv.bias[channels:] = -30.0
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight[:, :, 0, 0] @ mean.view(-1, 1)).view(-1)
    vae.post_quant_conv.weight *= std.view(1, -1, 1, 1)
    return vae
