"""What a Q-Former learns before it is attached to a denoiser: to tell who is in a picture.

From the features of one picture of a subject it learns to redraw a close-up, through a layer that is thrown
away: the tokens then hold what the subject looks like, in a form that linear layers can read, as those of
the cross-attention layers are. No label of a trait is seen. BLIP-2 teaches its Q-Former to read before it
attaches one, too (Li et al., 2023).

The denoising loss alone gets there slowly in this world. Tokens that do not hold a shape teach the layers
nothing about drawing it, and layers that cannot draw one teach the tokens nothing. Features of a CLIP model
that has seen the web hold more, and more openly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...encoder import SubjectEncoder
from ...training.data import Arrays, Batch
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.world import World
from .data import CloseUps
from .encoders import image_features

OPTIONS = TrainerOptions(batch=64, ema=0.998, save_every=1000)

NARROW = 64
"""What the layer that redraws reads of each token: few numbers, so that all tokens are used."""


class _Redraw(nn.Module):
    """A close-up from a subject's tokens: linear throughout. It begins with the mean of all close-ups."""

    def __init__(self, queries: int, token_dim: int, mean: Tensor) -> None:
        super().__init__()
        self.narrow = nn.Linear(token_dim, NARROW)
        self.draw = nn.Linear(queries * NARROW, mean.numel())
        nn.init.zeros_(self.draw.weight)
        with torch.no_grad():
            self.draw.bias.copy_(mean)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, queries, token_dim) → (B, 28·28·3), colours in [0, 1]"""
        drawn: Tensor = self.draw(self.narrow(tokens).flatten(1))
        return drawn


def train_reading(
    folder: Path,
    encoder: SubjectEncoder,
    world: World,
    drawn: CloseUps,
    schedule: Schedule,
    options: TrainerOptions = OPTIONS,
    *,
    deadline: float = math.inf,
) -> SubjectEncoder:
    """Train the Q-Former of `encoder` itself, and nothing else of it; returns it, averaged.

    The loss `unread` is the share of the close-ups' variance that is not told, weighted as the denoising
    loss is: 1 for an encoder that knows nothing. deadline: the Trainer's, which raises Stopped.
    """
    colours = torch.from_numpy(drawn.rgb).flatten(1)  # (n, 2352) uint8
    weight = torch.from_numpy(drawn.loss_weight).repeat_interleave(3, dim=-1).flatten(1)  # (n, 2352) float16
    mean, variance = _told_without(colours, weight)
    config = encoder.config
    torch.manual_seed(options.seed)
    models: dict[str, nn.Module] = {
        "qformer": encoder.float().qformer.requires_grad_(True),
        "redraw": _Redraw(config.num_queries, config.token_dim, mean),
    }

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        tokens = models["qformer"](batch["features"].float())
        error = models["redraw"](tokens) - batch["colours"].float() / 255
        return {"unread": (error.square() * batch["weight"].float()).mean(dim=1) / variance}

    data = Arrays(features=image_features(world, drawn.reference), colours=colours, weight=weight)
    weights = {"unread": 1.0}
    Trainer(folder, models, data, objective, schedule, options, loss_weights=weights, deadline=deadline).run()
    return encoder


def _told_without(colours: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """The mean close-up (2352,), and its weighted squared error."""
    mean = colours.float().mean(dim=0) / 255
    parts = zip(colours.split(512), weight.split(512), strict=True)
    errors = [((some.float() / 255 - mean).square() * w.float()).sum() for some, w in parts]
    return mean, float(torch.stack(errors).sum()) / colours.numel()
