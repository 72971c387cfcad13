"""Where training runs: on a GPU where there is one, in bfloat16 where that is faster."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from ..model import CONTEXT, LATENT, LATENT_CHANNELS, POOLED


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Mixed precision with bfloat16, nothing at all with float32."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def faster_precision(unet: nn.Module, batch: int, repetitions: int = 2) -> torch.dtype:
    """Time a UNet forwards and backwards to its input, in float32 and in bfloat16.

    Processors that multiply bfloat16 gain from it; on others it is slower than float32.
    """
    return min((torch.float32, torch.bfloat16), key=lambda dtype: _seconds(unet, batch, dtype, repetitions))


def _seconds(unet: nn.Module, batch: int, dtype: torch.dtype, repetitions: int) -> float:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device())

    # A frozen UNet has no other gradient than that of its input.
    x = zeros(batch, LATENT_CHANNELS, LATENT, LATENT).requires_grad_()
    added = {"text_embeds": zeros(batch, POOLED), "time_ids": zeros(batch, 6)}
    best = float("inf")
    for _ in range(1 + repetitions):
        started = time.monotonic()
        with autocast(dtype):
            out = unet(x, zeros(batch), zeros(batch, 77, CONTEXT), added_cond_kwargs=added).sample
        (gradient,) = torch.autograd.grad(out.float().sum(), x, retain_graph=False)
        float(gradient.sum())  # waits for the device
        best = min(best, time.monotonic() - started)
    return best
