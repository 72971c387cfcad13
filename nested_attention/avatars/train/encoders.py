"""Subject encoders of every mechanism, trained on pictures in memory: adapters, and what is compared.

The loss is that of denoising alone (Sec. 3.3), by default weighted by what a cell shows, at timesteps that
are denser at high noise.

The world is frozen. A crop of the subject is the input, the full picture the target, and the prompt says
`person` or `pet` without anything that identity fixes. Crop and picture differ in pose, expression, scene
and clothing, so that copying does not pay. The shipped encoders are trained likewise, from files
(`configured.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...hosts.diffusers.processors import SubjectSlot
from ...sites import diffusers_sites
from ...training.data import Arrays, Batch, Joined, Noise
from ...training.frozen import default_device
from ...training.keys import first_examples, plain, whiten_keys
from ...training.mechanisms import Mechanism, mechanism_of
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.model import CONTEXT, VISION_WIDTH
from ..models.pixels import encode_pictures
from ..models.world import World
from .data import Pictures
from .denoising import (
    TextStates,
    denoising_noise,
    latent_losses,
    normalised,
    predictor,
    read_captions,
    schedule_there,
)
from .device import precision_of, unet_pass

OPTIONS = TrainerOptions(ema=0.998)

POWER = 0.5
"""Timesteps are 1000·u^POWER, as `configs/train/small-person.yaml` says too."""

QUERIES = 32
"""Of the shipped encoders."""

ON_HOST = ("mask",)
"""What a step reads on the host: where words are."""

encoder_noise: Noise = partial(denoising_noise, power=POWER)


@dataclass(frozen=True)
class EncoderData:
    """What a step reads of pictures of equal width, encoded once by the frozen models."""

    latents: Tensor  # (n, 12, 16, w) float16
    features: Tensor  # (n, 197, vision width) float16
    text: TextStates  # of the prompts, which do not describe the subject
    mask: Tensor  # (n, 77) bool: where the subject's word stands
    loss_weight: Tensor  # (n, 16, w): of each latent cell, 1 on average over all sets

    def tensors(self) -> dict[str, Tensor]:
        """By name: what a step reads of the captions as `context` and `pooled`."""
        own = {name: getattr(self, name) for name in ("latents", "features", "mask", "loss_weight")}
        return {**own, **self.text._asdict()}


def encoder_config(world: World, word: str, queries: int) -> SubjectEncoderConfig:
    """Sizes of the shipped encoders."""
    return SubjectEncoderConfig(
        vision_dim=VISION_WIDTH,
        token_dim=CONTEXT,
        num_queries=queries,
        width=128,
        depth=2,
        heads=4,
        head_dim=32,
        ff_mult=4,
        sites=diffusers_sites(world.unet),
        word=word,
    )


def new_encoder(world: World, word: str) -> SubjectEncoder:
    """An encoder with random weights, always the same."""
    torch.manual_seed(0)
    return SubjectEncoder(encoder_config(world, word, QUERIES))


def new_adapter(encoder: SubjectEncoder) -> SubjectEncoder:
    """A decoupled adapter to be trained, which begins with all that a nested encoder has learned."""
    adapter = SubjectEncoder(replace(encoder.config, injection="decoupled"))
    adapter.load_state_dict({name: value.float() for name, value in encoder.state_dict().items()})
    return adapter


def image_features(world: World, crops: np.ndarray, batch: int = 64) -> Tensor:
    """Features of crops from the frozen vision encoder. (n, 28, 28, 3) uint8 → (n, 197, vision width)
    float16"""
    return torch.cat(
        [world.features(crops[start : start + batch]).half() for start in range(0, len(crops), batch)]
    )


def encode_data(world: World, sets: Sequence[Pictures]) -> list[EncoderData]:
    """Run the frozen text encoders and vision encoder over sets of pictures."""
    text = world.text_encoder, world.text_encoder_2
    out = []
    weights = normalised([pictures.loss_weight for pictures in sets])
    for pictures, loss_weight in zip(sets, weights, strict=True):
        where = pictures.plain_words[np.arange(len(pictures.wanted)), pictures.wanted]
        out.append(
            EncoderData(
                latents=encode_pictures(pictures.rgb).half(),
                features=image_features(world, pictures.reference),
                text=read_captions(*text, pictures.plain),
                mask=torch.from_numpy(np.arange(pictures.plain.shape[1]) == where[:, None]),
                loss_weight=loss_weight,
            )
        )
    return out


def train_encoder(
    folder: Path,
    world: World,
    data: Sequence[EncoderData],
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    start: SubjectEncoder,
    mechanism: Mechanism | None = None,
    noise: Noise = encoder_noise,
    precision: torch.dtype | None = None,
    whitened: bool = True,
    keys_anew: bool = False,
    deadline: float = math.inf,
) -> SubjectEncoder:
    """Train `start`, which is used up; returns the averaged encoder.

    whitened: whether its keys are trained whitened (`training/keys.py`), if the mechanism reads them.
    keys_anew: whether those that are there are random. mechanism: how its tokens reach the picture; by
    default the one that its configuration names. precision: of the arithmetic; None: the faster one, as
    measured. deadline: the Trainer's, which raises Stopped.
    """
    models: dict[str, nn.Module] = {"encoder": start.float().requires_grad_(True)}
    injected = mechanism or mechanism_of(start.config)
    injected.freeze_unused(start)
    unet = world.unet.requires_grad_(False).eval().to(default_device())
    dtype = precision_of(folder, unet_pass(unet, options.batch)) if precision is None else precision
    slot, scheduler = SubjectSlot.install(unet, injected.attention), schedule_there()

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        tokens = models["encoder"](batch["features"].float())  # (B, queries, token_dim)
        binding = injected.bind(models["encoder"], unet, tokens, batch["mask"])
        predict = predictor(unet, TextStates(batch["context"], batch["pooled"]), dtype)

        def personalised(noisy: Tensor, timesteps: Tensor) -> Tensor:
            with slot.bind(binding):
                return predict(noisy, timesteps)

        return latent_losses(personalised, scheduler, batch, noise)

    examples = Joined(*(Arrays(**each.tensors()) for each in data))
    try:
        if whitened and not {"to_key", "projections"} & set(injected.unused):
            first = first_examples(
                examples,
                noise,
                batch=options.batch,
                seed=options.seed,
                device=default_device(),
                on_host=ON_HOST,
            )
            whiten_keys(start, unet, objective, first, anew=keys_anew)
        Trainer(
            folder, models, examples, objective, schedule, options,
            loss_weights={"denoise": 1.0}, noise=noise, precision=dtype, on_host=ON_HOST, deadline=deadline,
        ).run()  # fmt: skip
    finally:
        slot.remove()
        unet.cpu()
    return plain(start)
