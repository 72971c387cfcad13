"""Where training runs: on a GPU where there is one, in bfloat16 where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...training.frozen import default_device
from ..models.model import CONTEXT, LATENT, LATENT_CHANNELS, POOLED, VISION_SIZE


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Mixed precision with bfloat16, nothing at all with float32."""
    return torch.autocast(default_device().type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def faster_precision(work: Callable[[], tuple[Tensor, Tensor]], repetitions: int = 2) -> torch.dtype:
    """Time a forward pass and its gradient in float32 and in bfloat16, and name the faster one.

    `work` returns an output and an input that requires a gradient. Processors that multiply bfloat16 gain
    from it; on others it is slower than float32.
    """
    return min((torch.float32, torch.bfloat16), key=lambda dtype: _seconds(work, dtype, repetitions))


def precision_of(run: Path, work: Callable[[], tuple[Tensor, Tensor]]) -> torch.dtype:
    """The faster precision, measured at the first start of a run: its folder keeps it for later ones."""
    path = run / "precision"
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(str(faster_precision(work)))
    dtype: torch.dtype = getattr(torch, path.read_text().removeprefix("torch."))
    return dtype


def _seconds(work: Callable[[], tuple[Tensor, Tensor]], dtype: torch.dtype, repetitions: int) -> float:
    best = float("inf")
    for _ in range(1 + repetitions):
        started = time.monotonic()
        with autocast(dtype):
            out, x = work()
        (gradient,) = torch.autograd.grad(out.float().sum(), x, retain_graph=False)
        float(gradient.sum())  # waits for the device
        best = min(best, time.monotonic() - started)
    return best


def unet_pass(unet: nn.Module, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A pass through the UNet to time: a frozen one has no other gradient than that of its input."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=default_device())

    def work() -> tuple[Tensor, Tensor]:
        x = zeros(batch, LATENT_CHANNELS, LATENT, LATENT).requires_grad_()
        added = {"text_embeds": zeros(batch, POOLED), "time_ids": zeros(batch, 6)}
        return unet(x, zeros(batch), zeros(batch, 77, CONTEXT), added_cond_kwargs=added).sample, x

    return work


def vision_pass(vision: nn.Module, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A pass through the vision encoder to time."""

    def work() -> tuple[Tensor, Tensor]:
        x = torch.zeros(batch, 3, VISION_SIZE, VISION_SIZE, device=default_device()).requires_grad_()
        return vision(x).last_hidden_state, x

    return work
