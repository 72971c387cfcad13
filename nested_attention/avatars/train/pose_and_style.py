"""The last stages: a ControlNet for poses, and a LoRA for an ink style. The world is frozen.

Both learn by denoising, as the base model does. Prompts for the ControlNet mostly do not say where anybody
stands; those for the LoRA name any style, so that no word of the prompt triggers it and none undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ...training.data import Arrays, Batch
from ...training.objective import denoising_losses
from ...training.schedule import Schedule
from ...training.trainer import Trainer
from ..models.control import control_from, residuals, to_hint
from ..models.lora import add_lora, lora_state
from ..models.model import new_scheduler
from ..models.tokenizer import load_tokenizer
from ..models.world import World
from .base import DROPPED
from .denoising import TextStates, choose, denoising_noise, normalised, predictor, read_captions
from .device import device, faster_precision, unet_pass
from .pose_data import PoseData

RANK = 16


def train_pose(
    folder: Path,
    world: World,
    data: PoseData,
    schedule: Schedule,
    *,
    start: ControlNetModel | None = None,
    batch: int = 16,
    rate: float = 1e-3,
    seed: int = 0,
) -> ControlNetModel:
    """Train the pose ControlNet; returns the averaged one. `start`: one to begin with; by default a copy of
    the UNet's first half."""
    torch.manual_seed(seed)
    control = control_from(world.unet) if start is None else start
    models = {"control": control.requires_grad_(True)}

    def adds(batch: Batch, models: Any, noisy: Tensor, timesteps: Tensor, context: Tensor) -> dict[str, Any]:
        return residuals(models["control"], noisy, timesteps, context, to_hint(batch["maps"]))

    world.unet.requires_grad_(False).eval()
    _train(folder, world, models, data, schedule, adds, batch=batch, rate=rate, ema=0.995, seed=seed)
    return control


def train_style(
    folder: Path,
    world: World,
    data: PoseData,
    schedule: Schedule,
    *,
    rank: int = RANK,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train the style LoRA; returns the averaged one, as the tensors of its file."""
    torch.manual_seed(seed)
    world.unet.requires_grad_(False).eval()
    options: dict[str, Any] = {"batch": batch, "rate": rate, "ema": 0.99, "weight_decay": 0.0, "seed": seed}
    try:
        models = {"lora": add_lora(world.unet, rank)}
        _train(folder, world, models, data, schedule, lambda *_: {}, **options)
        return lora_state(world.unet)
    finally:
        world.unet.unload_lora()


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    # Poses and styles are decided at higher noise than other things.
    return {**denoising_noise(rng, power=0.5), "dropped": rng.random() < DROPPED}


def _train(
    folder: Path,
    world: World,
    models: Mapping[str, nn.Module],
    data: PoseData,
    schedule: Schedule,
    adds: Callable[..., dict[str, Any]],
    **options: Any,
) -> None:
    """Train beside the frozen UNet. `adds`: from batch, models, noisy latents, timesteps and context, what
    else the UNet is called with. options: the trainer's."""
    unet, scheduler = world.unet.to(device()), new_scheduler()
    precision = faster_precision(unet_pass(unet, options["batch"]))
    text = world.text_encoder, world.text_encoder_2
    captions = read_captions(*text, data.ids)
    empty = TextStates(*(v.to(device()) for v in read_captions(*text, load_tokenizer().encode_all([""]))))

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        given = TextStates(
            *(choose(noise["dropped"], one, batch[name]) for name, one in empty._asdict().items())
        )
        return denoising_losses(
            predictor(unet, given, precision, more=partial(adds, batch, models)),
            scheduler,
            batch["latents"],
            noise["latent"],
            noise["timestep"],
            batch["loss_weight"],
        )

    examples = Arrays(
        latents=world.encode(data.rgb),
        maps=data.maps,
        loss_weight=normalised(data.loss_weight),
        **captions._asdict(),
    )
    weights = {"denoise": 1.0}
    Trainer(
        folder, models, examples, objective, schedule=schedule, loss_weights=weights, noise=_noise, **options
    ).run()
    unet.cpu()
