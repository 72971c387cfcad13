"""Which precision a UNet's step is faster in: bfloat16 wins on processors that multiply it, and loses on others."""

from __future__ import annotations

import time

import torch
from torch import nn

from ..model import CONTEXT, LATENT, LATENT_CHANNELS, POOLED


def faster_precision(unet: nn.Module, batch: int, repetitions: int = 2) -> torch.dtype:
    """Time a step forwards and backwards under both; gradients are left as they were (none)."""
    return min((torch.float32, torch.bfloat16), key=lambda dtype: _seconds(unet, batch, dtype, repetitions))


def _seconds(unet: nn.Module, batch: int, dtype: torch.dtype, repetitions: int) -> float:
    x, t = torch.zeros(batch, LATENT_CHANNELS, LATENT, LATENT), torch.zeros(batch, dtype=torch.long)
    added = {"text_embeds": torch.zeros(batch, POOLED), "time_ids": torch.zeros(batch, 6)}
    best = float("inf")
    for _ in range(1 + repetitions):
        started = time.monotonic()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = unet(x, t, torch.zeros(batch, 77, CONTEXT), added_cond_kwargs=added).sample
        out.float().sum().backward()
        unet.zero_grad(set_to_none=True)
        best = min(best, time.monotonic() - started)
    return best
