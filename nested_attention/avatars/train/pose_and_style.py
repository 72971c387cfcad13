"""The last stages: a ControlNet that holds a pose, and a LoRA that draws in ink. The world is frozen.

Both learn as the base model does, by denoising. Prompts for the ControlNet mostly do not say where anybody
stands; those for the LoRA name any style, so that no word of the prompt triggers it and none undoes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ..models.control import control_from, residuals, to_hint
from ..models.lora import add_lora, remove_lora
from ..models.model import TIME_IDS, encode_text, new_scheduler
from ..models.pixels import ids_for_both
from ..models.tokenizer import load_tokenizer
from ..models.world import World
from .base import DROPPED, emphasised
from .device import autocast, device, faster_precision, unet_pass
from .loop import Budget, Run
from .pose_data import Held

RANK = 16

Residuals = Callable[[Tensor, Tensor, Tensor, np.ndarray], dict[str, object]]


def train_pose(
    folder: Path,
    world: World,
    held: Held,
    budget: Budget,
    *,
    start: ControlNetModel | None = None,
    batch: int = 16,
    rate: float = 1e-3,
    seed: int = 0,
) -> ControlNetModel:
    """Train the pose ControlNet; returns the averaged one. `start`: one to begin with; by default a copy of
    the UNet's first half."""
    torch.manual_seed(seed)
    latents = world.encode(held.rgb)
    control = control_from(world.unet) if start is None else start
    control = control.requires_grad_(True).train().to(device())
    run = Run(folder, {"control": control}, rate=rate, budget=budget, ema=0.995, fixed=[world.unet])

    def adds(x: Tensor, t: Tensor, context: Tensor, rows: np.ndarray) -> dict[str, object]:
        return residuals(control, x, t, context, to_hint(held.maps[rows]).to(device()))

    _learn(run, world, held, latents, batch, seed, adds)
    return run.average["control"].cpu().eval()


def train_style(
    folder: Path,
    world: World,
    held: Held,
    budget: Budget,
    *,
    rank: int = RANK,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
) -> nn.ModuleDict:
    """Train the style LoRA; returns its averaged layers, by kohya's names."""
    torch.manual_seed(seed)
    latents = world.encode(held.rgb)
    world.unet.requires_grad_(False)
    layers = add_lora(world.unet, rank).to(device())
    try:
        run = Run(folder, {"lora": layers}, rate=rate, budget=budget, ema=0.99, weight_decay=0.0)
        _learn(run, world, held, latents, batch, seed, lambda x, t, context, rows: {})
    finally:
        remove_lora(world.unet)
    return run.average["lora"].cpu()  # type: ignore[return-value]


def _learn(
    run: Run, world: World, held: Held, latents: Tensor, batch: int, seed: int, adds: Residuals
) -> None:
    """Denoise until the budget is spent; `adds` gives what else the UNet is called with."""
    unet = world.unet.to(device())
    emphasis = torch.from_numpy(held.emphasis).float()
    emphasis /= emphasis.mean()
    empty = torch.from_numpy(load_tokenizer().encode_all([""])[0].astype(np.int64))
    ids = torch.from_numpy(held.ids.astype(np.int64))
    scheduler, precision = new_scheduler(), faster_precision(unet_pass(unet, batch))
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    sizes = torch.tensor([TIME_IDS], dtype=torch.float32).expand(batch, -1)
    while not run.done:
        rows = rng.integers(len(latents), size=batch)
        dropped = torch.from_numpy(rng.random(batch) < DROPPED)
        told = torch.where(dropped[:, None], empty, ids[rows])
        with torch.no_grad():
            context, pooled = encode_text(world.text_encoder, world.text_encoder_2, *ids_for_both(told))
        x = latents[rows]
        # What a picture shows, its poses and its style, is decided at high noise.
        noise, t = torch.randn_like(x), (1000 * torch.rand(batch).sqrt()).long().clamp(max=999)
        noisy, wanted = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        here = (noisy, wanted, t, context, pooled, emphasis[rows], sizes)
        noisy, wanted, t, context, pooled, weights, size = (v.to(device()) for v in here)
        with autocast(precision):
            added = {"text_embeds": pooled, "time_ids": size}
            more = adds(noisy, t, context, rows)
            out = unet(noisy, t, context, added_cond_kwargs=added, **more).sample
        error = out.float() - wanted
        run.update(emphasised(error, weights), plain=error.detach().square().mean())
        if run.step % 250 == 0:
            run.save()
    run.save()
    world.unet.cpu()
