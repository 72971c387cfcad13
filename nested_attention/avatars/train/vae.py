"""Stage 1: the autoencoder. Noise on the latents while training teaches the decoder to clean imperfect
ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from ..models.model import new_vae
from ..models.pixels import encode_pictures, to_tensor
from .data import Pictures
from .loop import Budget, Run

NOISE = 0.25
"""Largest standard deviation of the noise on unit-variance latents."""


def train_vae(
    folder: Path,
    pictures: Pictures,
    budget: Budget,
    *,
    decoder_of: AutoencoderKL | None = None,
    batch: int = 32,
    seed: int = 0,
) -> AutoencoderKL:
    """Train on drawn pictures; returns the averaged model with latents of zero mean and unit variance.

    `decoder_of` trains only the decoder of an autoencoder further: its latents, and with them whatever was
    trained on them, stay as they are.
    """
    torch.manual_seed(seed)
    vae = new_vae()
    if decoder_of is not None:
        vae.load_state_dict(decoder_of.state_dict())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    run = Run(folder, {"vae": vae}, rate=2e-3, budget=budget, ema=0.995)
    rng = np.random.default_rng([seed, run.step])
    while not run.done:
        x = to_tensor(pictures.rgb[rng.integers(len(pictures.rgb), size=batch)])
        posterior = vae.encode(x).latent_dist
        z = posterior.mean
        scale = z.detach().std(dim=(0, 2, 3), keepdim=True)
        level = NOISE * torch.rand(batch, 1, 1, 1)
        out = vae.decode(z + level * scale * torch.randn_like(z)).sample
        error = out - x
        kl = z.square().mean()  # keeps latents near the origin; their variance is fixed afterwards
        run.update(error.abs().mean() + error.square().mean() + 1e-3 * kl, mse=error.detach().square().mean())
        if run.step % 500 == 0:
            run.save()
    run.save()
    average: AutoencoderKL = run.average["vae"]
    return standardise(average, pictures) if decoder_of is None else average


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
