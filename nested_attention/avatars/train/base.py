"""The base model. The UNet learns to draw the world from captions that frozen text encoders encode.

Most captions describe the identity before the subject's word, as captions of photographs do, so that the
model learns to take appearance from that word. A second loss asks for attention to that word where the
subject is, at both levels that have places: large models learn it, while here all 77 tokens would share the
attention, because no padding is masked and all later tokens have read the caption too. What a layer does not
attend to, no subject can change there. The loss weighs faces more than skies, and eyes more than faces: a
pair of eyes is a few cells in 256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...training.data import Arrays, Batch, Joined
from ...training.frozen import default_device
from ...training.objective import choose
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.model import new_unet
from ..models.pixels import encode_pictures
from ..models.watched import COARSER, FINEST, probabilities, watch
from .data import Pictures
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

OPTIONS = TrainerOptions()

LOCALISE = 0.03
"""Weight of the attention loss beside the denoising loss."""

DESCRIBED, DROPPED = 0.85, 0.1
"""Share of captions that describe the identity, and of pictures without a caption."""

POWER = 0.75
"""Timesteps are 1000·u^POWER: closer to uniform than in the other stages, for only the base model learns to
draw what is fine."""

ENOUGH = 0.6
"""Attention to the subject's word above which the loss asks for no more."""


def attention_loss(probabilities: Tensor, words: Tensor, masks: Tensor) -> Tensor:
    """How far P[s*] is from being high on the subject and low elsewhere, in nats.

    probabilities (B, L, T); words (B, 2) positions, −1 where there is no subject; masks (B, 2, L) bool. → ()
    """
    index = words.clamp(min=0)[:, None].expand(-1, probabilities.shape[1], -1)
    p = probabilities.gather(2, index).transpose(1, 2).clamp(1e-5, 1 - 1e-5)  # (B, 2, L)
    there = (words >= 0)[..., None]
    inside, outside = masks & there, ~masks & there
    missing = functional.relu(math.log(ENOUGH) - p.log()) * inside
    spilt = -(1 - p).log() * outside
    sums = [(x.sum((0, 2)), where.sum((0, 2))) for x, where in ((missing, inside), (spilt, outside))]
    return torch.stack([total / count.clamp(min=1) for total, count in sums]).sum()


def seen_by(masks: Tensor, queries: int) -> Tensor:
    """Which queries of a layer show a subject, by the larger part of their cells: masks (B, 2, h, w) bool →
    (B, 2, queries) bool."""
    factor = math.isqrt(masks.shape[-2] * masks.shape[-1] // queries)
    return (functional.avg_pool2d(masks.float(), factor) >= 0.5).flatten(2)


def size_conditioning(rng: np.random.Generator) -> np.ndarray:
    """Mostly the size of a picture as shown (0); sometimes another, because hosts send their own defaults.
    (6,)"""
    size = rng.choice([32, 64, 256, 512, 768, 1024])
    return np.asarray((size, size, 0, 0, size, size) if rng.random() < 0.3 else (0,) * 6, np.float32)


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    chosen = {"described": rng.random() < DESCRIBED, "dropped": rng.random() < DROPPED}
    return {**denoising_noise(rng, power=POWER), **chosen, "sizes": size_conditioning(rng)}


def train_base(
    folder: Path,
    sets: Sequence[Pictures],
    text: tuple[nn.Module, nn.Module],
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    start: nn.Module | None = None,
) -> nn.Module:
    """Train the UNet on pictures, conditioned on the frozen text encoders (L, G); returns the averaged one.

    sets: pictures of one figure, of two; each set is a bucket. `start`: a UNet to begin with; a random one by
    default. It is trained itself.
    """
    torch.manual_seed(options.seed)
    empty = read_empty(*text)
    unet: Any = (new_unet() if start is None else start).requires_grad_(True).to(default_device())
    precision = precision_of(folder, unet_pass(unet, options.batch))
    processors = dict(unet.attn_processors)
    watched, scheduler = watch(unet, FINEST + COARSER), schedule_there()

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        def said(name: str) -> Tensor:
            return choose(noise["described"], batch[f"described_{name}"], batch[f"plain_{name}"])

        captions = TextStates(
            *(choose(noise["dropped"], getattr(empty, name), said(name)) for name in TextStates._fields)
        )
        words = said("words").masked_fill(noise["dropped"][:, None], -1)
        predict = predictor(models["unet"], captions, precision, sizes=noise["sizes"])
        losses = latent_losses(predict, scheduler, batch, noise)
        attended = [
            attention_loss(p.float(), words, seen_by(batch["masks"], p.shape[1]))
            for p in probabilities(watched)
        ]
        return {**losses, "localise": torch.stack(attended).mean()}

    weights_of = normalised([pictures.loss_weight for pictures in sets])
    data = Joined(*(_examples(*each, text) for each in zip(sets, weights_of, strict=True)))
    weights = {"denoise": 1.0, "localise": LOCALISE}
    models = {"unet": unet}
    try:
        Trainer(
            folder, models, data, objective, schedule, options,
            loss_weights=weights, noise=_noise, precision=precision,
        ).run()  # fmt: skip
    finally:
        unet.set_attn_processor(processors)
    return unet


def _examples(pictures: Pictures, loss_weight: Tensor, text: tuple[nn.Module, nn.Module]) -> Arrays:
    """What a step reads of pictures of equal width."""
    described, plain = (read_captions(*text, ids) for ids in (pictures.described, pictures.plain))
    return Arrays(
        latents=encode_pictures(pictures.rgb).half(),
        loss_weight=loss_weight,
        masks=pictures.masks,
        described_words=pictures.described_words.astype(np.int64),
        plain_words=pictures.plain_words.astype(np.int64),
        **{f"described_{name}": value for name, value in described._asdict().items()},
        **{f"plain_{name}": value for name, value in plain._asdict().items()},
    )
