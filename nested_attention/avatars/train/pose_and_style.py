"""The last stages: a ControlNet for poses, and a LoRA for an ink style. The world is frozen.

Both learn by denoising, as the base model does. Prompts for the ControlNet mostly do not say where anybody
stands; those for the LoRA name any style, so that no word of the prompt triggers it and none undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from ...training.data import Arrays, Batch, Joined
from ...training.frozen import default_device
from ...training.objective import choose
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.control import control_from, residuals, to_hint
from ..models.lora import add_lora, lora_state
from ..models.pixels import encode_pictures
from ..models.world import World
from .base import DROPPED
from .denoising import (
    TextStates,
    denoising_noise,
    latent_losses,
    normalised,
    predictor,
    read_captions,
    read_empty,
    schedule_there,
)
from .device import precision_of, unet_pass
from .pose_data import PoseData

RANK = 16

POWER = 0.5
"""Timesteps are 1000·u^POWER."""

POSE_OPTIONS = TrainerOptions(batch=16, ema=0.995)
STYLE_OPTIONS = TrainerOptions(batch=16, rate=2e-3, ema=0.99, weight_decay=0.0)

Adds = Callable[[Batch, Any, Tensor, Tensor, Tensor], dict[str, Any]]
"""(batch, models, noisy latents, timesteps, context) → what else the UNet is called with"""


def train_pose(
    folder: Path,
    world: World,
    sets: Sequence[PoseData],
    schedule: Schedule,
    options: TrainerOptions = POSE_OPTIONS,
    *,
    start: ControlNetModel | None = None,
) -> ControlNetModel:
    """Train the pose ControlNet; returns the averaged one. `start`: one to begin with; by default a copy of
    the UNet's first half."""
    torch.manual_seed(options.seed)
    control = control_from(world.unet) if start is None else start

    def adds(batch: Batch, models: Any, noisy: Tensor, timesteps: Tensor, context: Tensor) -> dict[str, Any]:
        return residuals(models["control"], noisy, timesteps, context, to_hint(batch["maps"]))

    world.unet.requires_grad_(False)
    _train(folder, world, {"control": control.requires_grad_(True)}, sets, schedule, options, adds)
    return control


def train_style(
    folder: Path,
    world: World,
    sets: Sequence[PoseData],
    schedule: Schedule,
    options: TrainerOptions = STYLE_OPTIONS,
) -> dict[str, Tensor]:
    """Train the style LoRA; returns the averaged one, as the tensors of its file."""
    torch.manual_seed(options.seed)
    world.unet.requires_grad_(False)
    try:
        models = {"lora": add_lora(world.unet, RANK)}
        _train(folder, world, models, sets, schedule, options, lambda *_: {})
        return lora_state(world.unet)
    finally:
        world.unet.unload_lora()


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    return {**denoising_noise(rng, POWER), "dropped": rng.random() < DROPPED}


def _train(
    folder: Path,
    world: World,
    models: Mapping[str, nn.Module],
    sets: Sequence[PoseData],
    schedule: Schedule,
    options: TrainerOptions,
    adds: Adds,
) -> None:
    """Train beside the frozen UNet."""
    unet, text = world.unet.eval().to(default_device()), (world.text_encoder, world.text_encoder_2)
    precision, empty = precision_of(folder, unet_pass(unet, options.batch)), read_empty(*text)
    scheduler = schedule_there()

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        given = (choose(noise["dropped"], one, batch[name]) for name, one in empty._asdict().items())
        predict = predictor(unet, TextStates(*given), precision, more=partial(adds, batch, models))
        return latent_losses(predict, scheduler, batch, noise)

    weights_of = normalised([data.loss_weight for data in sets])
    examples = Joined(
        *(
            Arrays(
                latents=encode_pictures(data.rgb).half(),
                maps=data.maps,
                loss_weight=loss_weight,
                **read_captions(*text, data.ids)._asdict(),
            )
            for data, loss_weight in zip(sets, weights_of, strict=True)
        )
    )
    try:
        Trainer(
            folder, models, examples, objective, schedule, options,
            loss_weights={"denoise": 1.0}, noise=_noise, precision=precision,
        ).run()  # fmt: skip
    finally:
        unet.cpu()
