"""Stage 2: the vision encoder, as half of a CLIP of its own.

Crops are contrasted with captions and with another crop of the same subject, as photographs of one person
are when a recogniser learns. Besides, the last layer's tokens must keep what their patches show, because the
Q-Former reads those tokens and not the pooled embedding. No label of a trait is seen. The text half is
discarded: the base model has text encoders of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...training.data import Arrays, Batch
from ...training.frozen import default_device
from ...training.precision import arithmetic
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.model import VISION, VISION_WIDTH, new_text_g, new_vision
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


class _Heads(nn.Module):
    """Training-only heads: temperatures, patches back to pixels, and what two crops of a subject share,
    from the mean token."""

    def __init__(self) -> None:
        super().__init__()
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
    """Train on pairs of crops; returns the averaged vision encoder. `start`: one to begin with."""
    torch.manual_seed(options.seed)
    ids = crops.ids[:, :LENGTH]
    vision = (new_vision() if start is None else start).requires_grad_(True).to(default_device())
    models = {"vision": vision, "text": compact(new_text_g(), used_tokens(ids)), "heads": _Heads()}
    precision = precision_of(folder, vision_pass(vision, options.batch))

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        heads, number = models["heads"], len(batch["crops"])
        pixels = to_vision(batch["crops"].flatten(0, 1))  # (2·B, 3, 56, 56), a subject's two in a row
        with arithmetic(pixels.device, precision):
            out, said = models["vision"](pixels), models["text"](ids_for_both(batch["ids"])[1])
        tokens = out.last_hidden_state[:, 1:].float()  # (2·B, 196, width)
        patches = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)  # (2·B, 196, 48)
        one, other = heads.same(tokens.mean(dim=1)).view(number, 2, -1).unbind(1)
        image = out.image_embeds.float()[::2]
        return {
            "contrast": _contrast(image, said.text_embeds.float(), heads.temperature),
            "same": _contrast(one, other, heads.same_temperature),
            "patches": functional.mse_loss(heads.pixels(tokens), patches),
        }

    data = Arrays(crops=crops.rgb, ids=ids.astype("int64"))
    weights = {"contrast": 1.0, "same": SAME, "patches": 1.0}
    Trainer(folder, models, data, objective, schedule, options, loss_weights=weights).run()
    return vision
