"""Encoders of any mechanism, trained on pictures in memory with the paper's loss (Sec. 3.3).

Comparisons and adapters are trained with it. The person and pet encoders are trained by `configured.py`.

Two auxiliary losses (`AuxiliaryLosses`), which comparisons try, are off by default: attribute heads on the
encoder's tokens, and distillation from the frozen base model under a caption that describes the subject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...hosts.diffusers.processors import SubjectSlot
from ...sites import diffusers_sites
from ...training.data import Arrays, Batch, Noise
from ...training.frozen import default_device
from ...training.mechanisms import Mechanism, mechanism_of
from ...training.objective import Predict
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..drawing.identity import KINDS, attributes
from ..models.model import CONTEXT, VISION_WIDTH
from ..models.world import World
from .attribute_heads import AttributeHeads, columns_of
from .data import Pictures
from .denoising import TextStates, denoising_noise, latent_losses, normalised, predictor, read_captions
from .device import precision_of, unet_pass

OPTIONS = TrainerOptions(ema=0.998)

DISTILLATION = 0.75
"""How far the target of a distilled encoder moves to the base model's prediction."""


@dataclass(frozen=True)
class EncoderData:
    """What a step reads, encoded once by the frozen models."""

    latents: Tensor  # (n, 8, 16, 16) float16
    features: Tensor  # (n, 197, vision width) float16
    text: TextStates  # of the prompts, which do not describe the subject
    described: TextStates  # of captions that do
    attributes: Tensor  # (n, attributes) int64: the subject's, as many as its kind has
    mask: Tensor  # (n, 77) bool: where the subject's word stands
    loss_weight: Tensor  # (n, 16, 16): of each latent cell, 1 on average
    word: str


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


def new_encoder(world: World, word: str, *, queries: int = 32, seed: int = 0) -> SubjectEncoder:
    """An encoder with random weights."""
    torch.manual_seed(seed)
    return SubjectEncoder(encoder_config(world, word, queries))


def new_adapter(encoder: SubjectEncoder) -> SubjectEncoder:
    """A decoupled adapter to be trained, which begins with all that a nested encoder has learned."""
    adapter = SubjectEncoder(replace(encoder.config, injection="decoupled"))
    adapter.load_state_dict(encoder.float().state_dict())
    return adapter


def image_features(world: World, crops: np.ndarray, batch: int = 64) -> Tensor:
    """Features of crops from the frozen vision encoder. (n, 20, 20, 3) uint8 → (n, 197, vision width)
    float16"""
    return torch.cat(
        [world.features(crops[start : start + batch]).half() for start in range(0, len(crops), batch)]
    )


def encode_data(world: World, pictures: Pictures, word: str) -> EncoderData:
    """Run the frozen autoencoder, text encoders and vision encoder over a data set."""
    everyone = np.arange(len(pictures.wanted))
    where = pictures.plain_words[everyone, pictures.wanted]
    labels = pictures.figure_labels[everyone, pictures.wanted]  # (n, FIGURE_LABELS), attributes first
    return EncoderData(
        latents=world.encode(pictures.rgb).half(),
        features=image_features(world, pictures.reference),
        text=read_captions(world.text_encoder, world.text_encoder_2, pictures.plain),
        described=read_captions(world.text_encoder, world.text_encoder_2, pictures.described),
        attributes=torch.from_numpy(labels[:, columns_of(word)].astype(np.int64)),
        mask=torch.from_numpy(np.arange(pictures.plain.shape[1]) == where[:, None]),
        loss_weight=normalised(pictures.loss_weight),
        word=word,
    )


@dataclass(frozen=True)
class AuxiliaryLosses:
    """What an encoder learns from beside the denoising loss.

    heads: classify the subject's attributes from its tokens, and are trained with the encoder; None: no
    heads. attribute_weight: weight of their cross-entropies. distillation: the share by which the target
    moves from the picture's own velocity to the frozen model's prediction under a caption that describes the
    subject, in [0, 1].
    """

    heads: AttributeHeads | None = None
    attribute_weight: float = 0.02
    distillation: float = 0.0


def new_heads(word: str) -> AttributeHeads:
    """Heads for the attributes of one kind of subject, with random weights."""
    return AttributeHeads(CONTEXT, attributes(KINDS[word]).values())


def train_encoder(
    folder: Path,
    world: World,
    data: EncoderData,
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    start: SubjectEncoder | None = None,
    queries: int = 32,
    mechanism: Mechanism | None = None,
    auxiliary: AuxiliaryLosses = AuxiliaryLosses(),
    noise: Noise = denoising_noise,
    precision: torch.dtype | None = None,
    deadline: float = math.inf,
) -> SubjectEncoder:
    """Train one encoder; returns the averaged one. `start`: one to begin with; a random one by default.

    mechanism: how its tokens reach the picture; by default the one that its configuration names. auxiliary:
    losses beside the denoising loss; none by default, as in the paper (Sec. 3.3). precision: of the
    arithmetic; None: the faster one, as measured. deadline: the Trainer's, which raises Stopped.
    """
    encoder = new_encoder(world, data.word, queries=queries, seed=options.seed) if start is None else start
    models: dict[str, nn.Module] = {"encoder": encoder.float().requires_grad_(True)}
    injected = mechanism or mechanism_of(encoder.config)
    injected.freeze_unused(encoder)
    weights = {"denoise": 1.0}
    if auxiliary.heads is not None:
        models["heads"] = auxiliary.heads.requires_grad_(True)
        weights["attributes"] = auxiliary.attribute_weight
    unet = world.unet.requires_grad_(False).eval().to(default_device())
    dtype = precision_of(folder, unet_pass(unet, options.batch)) if precision is None else precision
    slot = SubjectSlot.install(unet, injected.attention)

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        def under(captions: str) -> Predict:
            text = TextStates(batch[f"{captions}_context"], batch[f"{captions}_pooled"])
            return predictor(unet, text, dtype)

        tokens = models["encoder"](batch["features"].float())  # (B, queries, token_dim)
        binding = injected.bind(models["encoder"], unet, tokens, batch["mask"])

        def personalised(noisy: Tensor, timesteps: Tensor) -> Tensor:
            with slot.bind(binding):
                return under("text")(noisy, timesteps)

        teaching: dict[str, Any] = {}
        if auxiliary.distillation:
            teaching = {"teacher": under("described"), "distillation": auxiliary.distillation}
        losses = latent_losses(personalised, batch, noise, **teaching)
        if "heads" in models:
            losses["attributes"] = models["heads"].loss(tokens, batch["attributes"])
        return losses

    names = ["latents", "features", "mask", "loss_weight"]
    names += ["attributes"] if auxiliary.heads is not None else []
    arrays = {name: getattr(data, name) for name in names}
    for captions in ("text", "described") if auxiliary.distillation else ("text",):
        arrays |= {f"{captions}_{name}": value for name, value in getattr(data, captions)._asdict().items()}
    more: dict[str, Any] = {
        "loss_weights": weights,
        "noise": noise,
        "on_host": ["mask"],
        "deadline": deadline,
    }
    try:
        Trainer(folder, models, Arrays(**arrays), objective, schedule, options, **more).run()
    finally:
        slot.remove()
        unet.cpu()
    return encoder
