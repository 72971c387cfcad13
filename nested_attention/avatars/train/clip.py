"""The vision encoder, as half of a CLIP of its own.

Crops are contrasted with captions and with another crop of the same subject, as photographs of one person
are when a recogniser learns. Besides, the last layer's tokens must keep what their patches show, because the
Q-Former reads those tokens and not the pooled embedding; and they must suffice to complete another crop of
the subject, of which few patches are shown (cross-view completion, Weinzaepfel et al., 2022): what a face
looks like in another pose is what a subject encoder is to tell. No label of a trait is seen. The text half
is discarded: the base model has text encoders of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...training.data import Arrays, Batch
from ...training.frozen import default_device
from ...training.precision import arithmetic
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.model import VISION, VISION_SIZE, VISION_WIDTH, new_text_g, new_vision
from ..models.pixels import ids_for_both, to_vision
from ..models.vocabulary import compact, used_tokens
from .data import Crops
from .device import precision_of, vision_pass

OPTIONS = TrainerOptions(batch=48, ema=0.995)

LENGTH = 40
"""Tokens a description may take; the pooled state sits at its end, so padding beyond is not needed."""

PATCH: int = VISION["patch_size"]

SAME = 2.0
"""Weight of the contrast with another crop of the same subject."""

SHOWN = 0.15
"""Share of the patches of another crop that are shown where it is to be completed."""


class _Completion(nn.Module):
    """Patches of one crop from a few of them and from the tokens of another crop of the same subject."""

    def __init__(self) -> None:
        super().__init__()
        patches = (VISION_SIZE // PATCH) ** 2
        self.embed = nn.Linear(3 * PATCH * PATCH, VISION_WIDTH)
        self.hidden = nn.Parameter(torch.zeros(VISION_WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(patches, VISION_WIDTH))
        layer: dict[str, Any] = {
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        self.layer = nn.TransformerDecoderLayer(VISION_WIDTH, 4, 2 * VISION_WIDTH, **layer)
        self.pixels = nn.Linear(VISION_WIDTH, 3 * PATCH * PATCH)

    def forward(self, tokens: Tensor, patches: Tensor, shown: Tensor) -> Tensor:
        """The squared error of the patches that are hidden: tokens of the other crop (B, 196, width), patches
        (B, 196, 48), shown (B, 196) bool → (B,)"""
        seen = torch.where(shown[..., None], self.embed(patches), self.hidden) + self.place
        error = (self.pixels(self.layer(seen, tokens)) - patches).square().mean(dim=-1)
        return (error * ~shown).sum(dim=1) / (~shown).sum(dim=1)


def _shown(rng: np.random.Generator) -> dict[str, Any]:
    return {"shown": rng.random((2, (VISION_SIZE // PATCH) ** 2)) < SHOWN}


class _Heads(nn.Module):
    """Training-only heads: temperatures, patches back to pixels, the other crop's patches, and what two crops
    of a subject share, from the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.completion = _Completion()
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.same_temperature = nn.Parameter(torch.tensor(2.0))
        self.pixels = nn.Linear(VISION_WIDTH, 3 * PATCH * PATCH)
        self.same = nn.Sequential(nn.Linear(VISION_WIDTH, 256), nn.GELU(), nn.Linear(256, 64))


def _contrast(image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
    image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
    logits = image @ text.T * temperature.exp().clamp(max=50)
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def train_clip(
    folder: Path,
    crops: Crops,
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    start: nn.Module | None = None,
) -> nn.Module:
    """Train on pairs of crops; returns the averaged vision encoder. `start`: one to begin with,
    which is trained itself."""
    torch.manual_seed(options.seed)
    ids = crops.ids[:, :LENGTH]
    vision = (new_vision() if start is None else start).requires_grad_(True).to(default_device())
    models = {"vision": vision, "text": compact(new_text_g(), used_tokens(ids)), "heads": _Heads()}
    precision = precision_of(folder, vision_pass(vision, 2 * options.batch))

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        heads, number = models["heads"], len(batch["crops"])
        pixels = to_vision(batch["crops"].flatten(0, 1))  # (2·B, 3, 56, 56), a subject's two in a row
        with arithmetic(pixels.device, precision):
            out, said = models["vision"](pixels), models["text"](ids_for_both(batch["ids"])[1])
            tokens = out.last_hidden_state[:, 1:].float()  # (2·B, 196, width)
            patches = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)  # (2·B, 196, 48)
            others = tokens.unflatten(0, (number, 2)).flip(1).flatten(0, 1)
            completed = heads.completion(others, patches, noise["shown"].flatten(0, 1))
        one, other = heads.same(tokens.mean(dim=1)).view(number, 2, -1).unbind(1)
        image = out.image_embeds.float()[::2]
        return {
            "contrast": _contrast(image, said.text_embeds.float(), heads.temperature),
            "same": _contrast(one, other, heads.same_temperature),
            "patches": functional.mse_loss(heads.pixels(tokens), patches),
            "completed": completed.float().view(number, 2).mean(dim=1),
        }

    data = Arrays(crops=crops.rgb, ids=ids.astype("int64"))
    weights = {"contrast": 1.0, "same": SAME, "patches": 1.0, "completed": 1.0}
    Trainer(
        folder, models, data, objective, schedule, options,
        loss_weights=weights, noise=_shown, precision=precision,
    ).run()  # fmt: skip
    return vision
