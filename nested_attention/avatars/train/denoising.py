"""What every stage that denoises shares: captions encoded once, noise, and the UNet as a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...training.data import Batch
from ...training.frozen import default_device
from ...training.objective import Predict, denoising_losses
from ...training.precision import arithmetic
from ..models.model import (
    LATENT,
    LATENT_CHANNELS,
    LATENT_WIDE,
    encode_text,
    new_scheduler,
    time_ids,
)
from ..models.pixels import ids_for_both
from ..models.tokenizer import load_tokenizer


class TextStates(NamedTuple):
    """Captions as the frozen text encoders encode them."""

    context: Tensor  # (n, 77, 256) float16
    pooled: Tensor  # (n, 160) float16


@torch.no_grad()
def read_captions(text_l: nn.Module, text_g: nn.Module, ids: np.ndarray, batch: int = 256) -> TextStates:
    """Encode captions once, for all the steps that will read them. ids (n, 77)"""
    device = default_device()
    for encoder in (text_l, text_g):
        encoder.to(device)
    context, pooled = [], []
    for start in range(0, len(ids), batch):
        both = (part.to(device) for part in ids_for_both(ids[start : start + batch]))
        states, summary = encode_text(text_l, text_g, *both)
        context.append(states.half().cpu())
        pooled.append(summary.half().cpu())
    for encoder in (text_l, text_g):
        encoder.cpu()
    return TextStates(torch.cat(context), torch.cat(pooled))


def read_empty(text_l: nn.Module, text_g: nn.Module) -> TextStates:
    """The empty caption, on the device that trains: what captions are replaced by where they are dropped."""
    read = read_captions(text_l, text_g, load_tokenizer().encode_all([""]))
    return TextStates(*(states.to(default_device()) for states in read))


def denoising_noise(rng: np.random.Generator, power: float) -> dict[str, Any]:
    """Noise and timestep of one example. A power below 1 makes timesteps denser at high noise, where what a
    picture shows is decided. The noise is as wide as the widest latents."""
    shape = (LATENT_CHANNELS, LATENT, LATENT_WIDE)
    return {
        "latent": rng.standard_normal(shape, dtype=np.float32).astype(np.float16),
        "timestep": min(999, int(1000 * rng.random() ** power)),
    }


def schedule_there() -> Any:
    """The world's noise schedule, with its table on the device that trains: else every step would copy it."""
    scheduler = new_scheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(default_device())
    return scheduler


def latent_losses(predict: Predict, scheduler: Any, batch: Batch, noise: Batch) -> dict[str, Tensor]:
    """`denoising_losses` on a noise schedule (`schedule_there`), of a batch and its `denoising_noise`."""
    latents = batch["latents"].float()
    drawn = noise["latent"][..., : latents.shape[-1]].float()
    step = latents, drawn, noise["timestep"], batch["loss_weight"]
    return denoising_losses(predict, scheduler, *step)


def normalised(sets: Sequence[np.ndarray]) -> list[Tensor]:
    """Loss weights (n, 16, W/2) of several sets of pictures, scaled to average 1 over them all."""
    mean = sum(float(each.sum(dtype=np.float64)) for each in sets) / sum(each.size for each in sets)
    return [torch.from_numpy(each).float() / mean for each in sets]


def predictor(
    unet: Any,
    text: TextStates,
    precision: torch.dtype,
    *,
    sizes: Tensor | None = None,
    more: Callable[[Tensor, Tensor, Tensor], dict[str, Any]] | None = None,
) -> Predict:
    """The UNet under captions, as a prediction in fp32.

    sizes (B, 6): size conditioning; that of a picture as shown where it is 0, and by default. more: from
    noisy latents, timesteps and context (B, 77, 256), what else the UNet is called with.
    """
    context, pooled = text.context.float(), text.pooled.float()

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        shown = pooled.new_tensor([time_ids(noisy.shape[-1])]).expand(len(pooled), -1)
        chosen = shown if sizes is None else torch.where(sizes > 0, sizes, shown)
        added = {"text_embeds": pooled, "time_ids": chosen}
        with arithmetic(noisy.device, precision):
            extra = more(noisy, timesteps, context) if more else {}
            return unet(noisy, timesteps, context, added_cond_kwargs=added, **extra).sample.float()

    return predict
