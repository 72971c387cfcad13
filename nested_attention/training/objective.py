"""The denoising step, as a pure function: a model, clean latents and noise in, losses out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents (B, C, h, w) and timesteps (B,) → a prediction (B, C, h, w) in fp32."""


def choose(which: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` in the rows where `which` (B,) is true, `other` elsewhere; either may have a single row, or be a
    number."""
    dims = max(one.dim(), other.dim())
    return torch.where(which.view(-1, *[1] * (dims - 1)), one.to(other), other)


def weighted_mse(error: Tensor, loss_weight: Tensor) -> Tensor:
    """The mean squared error of each example, with a weight for every latent cell.

    error (B, C, h, w), loss_weight (B, h, w) → (B,). Where the weights average 1 over a data set, the
    minimum is that of the plain mean.
    """
    return (error.square() * loss_weight[:, None]).mean(dim=(1, 2, 3))


def min_snr_weight(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR-γ (Hang et al., 2023): the weight of each example's loss, (B,) for timesteps (B,).

    min(SNR, γ)/SNR where noise is predicted, min(SNR, γ)/(SNR + 1) where velocity is.
    """
    snr = compute_snr(scheduler, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    return snr.clamp(max=gamma) / (snr + 1 if velocity else snr)


def denoising_losses(
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    loss_weight: Tensor,
) -> dict[str, Tensor]:
    """One denoising step, with the losses of each example.

    scheduler: a noise schedule of diffusers; its prediction type (`epsilon` or `v_prediction`) is the target.
    latents, noise (B, C, h, w); timesteps (B,); loss_weight (B, h, w), or (B, 1, 1).

    Returns `denoise` (B,): the weighted error; `plain` (B,): the unweighted one, without a gradient.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    out = predict(noisy, timesteps)
    plain = (out.detach() - target).square().mean(dim=(1, 2, 3))
    return {"denoise": weighted_mse(out - target, loss_weight), "plain": plain}
