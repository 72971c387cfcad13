"""Where training runs: on a GPU where there is one, in bfloat16 where that is faster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...storage.files import replacing
from ...training.frozen import default_device
from ...training.precision import arithmetic, attention_to_learn_by
from ...training.trainer import TrainerOptions
from ..models.model import CONTEXT, LATENT, LATENT_CHANNELS, POOLED, VISION_SIZE

PRECISIONS = torch.float32, torch.bfloat16


def for_device(options: TrainerOptions) -> TrainerOptions:
    """The options as they are, or, where there is a GPU, with batches and a learning rate for one.

    A step of a model this small waits for its launches there, so that a larger batch costs next to nothing.
    Its weights are averaged over fewer steps, for fewer are made.
    """
    if default_device().type != "cuda":
        return options
    workers = max(1, (os.cpu_count() or 1) - 2)
    return replace(
        options,
        batch=32 * options.batch,
        rate=2 * options.rate,
        ema=1 - 5 * (1 - options.ema),
        workers=workers,
        save_every=500,
    )


def prepare_device() -> None:
    """Once, before anything is trained: products of float32 are made in TF32 on a GPU."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def faster_precision(work: Callable[[], tuple[Tensor, Tensor]], repetitions: int = 2) -> torch.dtype:
    """Time a forward pass and its gradient in float32 and in bfloat16, and name the faster one.

    `work` returns an output and an input that requires a gradient. Processors that multiply bfloat16 gain
    from it; on others it is slower than float32. One whose gradient is not finite is not named, but for
    float32 where neither is.
    """
    return min(PRECISIONS, key=lambda dtype: _seconds(work, dtype, repetitions))


def precision_of(run: Path, work: Callable[[], tuple[Tensor, Tensor]]) -> torch.dtype:
    """The faster precision, measured at the first start of a run: its folder keeps it for later ones."""
    path, known = run / "precision", {str(dtype): dtype for dtype in PRECISIONS}
    if path.exists() and (kept := known.get(path.read_text())) is not None:
        return kept
    dtype = faster_precision(work)
    run.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(str(dtype))
    return dtype


def _seconds(work: Callable[[], tuple[Tensor, Tensor]], dtype: torch.dtype, repetitions: int) -> float:
    best = float("inf")
    for _ in range(1 + repetitions):
        started = time.monotonic()
        with attention_to_learn_by(default_device(), dtype):
            with arithmetic(default_device(), dtype):
                out, x = work()
            (gradient,) = torch.autograd.grad(out.float().sum(), x)
        finite = bool(gradient.isfinite().all())  # waits for the device
        if not finite:
            return float("inf")
        best = min(best, time.monotonic() - started)
    return best


def unet_pass(unet: nn.Module, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A pass through the UNet to time, where it is: a frozen one has no other gradient than that of its
    input."""
    device = next(unet.parameters()).device

    def normal(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(device)

    def work() -> tuple[Tensor, Tensor]:
        x = normal(batch, LATENT_CHANNELS, LATENT, LATENT).requires_grad_()
        added = {"text_embeds": normal(batch, POOLED), "time_ids": 128 * torch.ones_like(normal(batch, 6))}
        times = torch.full((batch,), 500.0, device=device)
        return unet(x, times, normal(batch, 77, CONTEXT), added_cond_kwargs=added).sample, x

    return work


def vision_pass(vision: nn.Module, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A pass through the vision encoder to time, where it is."""
    device = next(vision.parameters()).device

    def work() -> tuple[Tensor, Tensor]:
        x = torch.zeros(batch, 3, VISION_SIZE, VISION_SIZE, device=device).requires_grad_()
        return vision(x).last_hidden_state, x

    return work
