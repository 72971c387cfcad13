"""What a Q-Former learns before it is attached to a denoiser: to tell who is in a picture.

From the features of one picture of a subject it learns to redraw a close-up, through a head that is thrown
away: each place of the close-up asks the tokens for its colours, as each place of the denoiser will ask them
for a value (Eq. 2). No label of a trait is seen. BLIP-2 teaches its Q-Former to read before it attaches one,
too (Li et al., 2023).

The denoising loss alone gets there slowly in this world. Tokens that do not hold a shape teach the layers
nothing about drawing it, and layers that cannot draw one teach the tokens nothing. It even undoes much of
what a Q-Former has learned to read (`figures/probe.py` measures it). Features of a CLIP model that has seen
the web hold more, and more openly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...attention import plain_attention
from ...encoder import SubjectEncoder
from ...training.data import Arrays, Batch
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.world import World
from .data import CloseUps
from .encoders import image_features

OPTIONS = TrainerOptions(batch=64, ema=0.998, save_every=1000)

HEADS, WIDTH = 4, 128
"""Of the attention by which places read tokens."""

PATCH = 2
"""A place is a patch of so many art pixels a side."""


class Redraw(nn.Module):
    """A close-up from a subject's tokens, by attention of a query at each place. It begins with the mean of
    all close-ups, of shape (height, width, 3) in [0, 1]."""

    def __init__(self, token_dim: int, mean: Tensor) -> None:
        super().__init__()
        self.rows, self.columns = mean.shape[0] // PATCH, mean.shape[1] // PATCH
        place = _waves(self.rows, self.columns)
        self.register_buffer("place", place)  # (places, waves)
        self.query = nn.Linear(place.shape[-1], WIDTH)
        self.key = nn.Linear(token_dim, WIDTH, bias=False)
        self.value = nn.Linear(token_dim, WIDTH, bias=False)
        self.colours = nn.Linear(WIDTH, PATCH * PATCH * 3)
        nn.init.zeros_(self.colours.weight)
        nn.init.zeros_(self.colours.bias)
        patches = rearrange(mean, "(h p) (w q) c -> (h w) (p q c)", p=PATCH, q=PATCH)
        self.mean = nn.Parameter(patches.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, queries, token_dim) → (B, height, width, 3), colours in [0, 1]"""
        query = self.query(self.place).expand(len(tokens), -1, -1)
        read = plain_attention(query, self.key(tokens), self.value(tokens), heads=HEADS)
        patches = self.colours(read) + self.mean
        grid = {"h": self.rows, "w": self.columns, "p": PATCH, "q": PATCH}
        drawn: Tensor = rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", **grid)
        return drawn


def _waves(rows: int, columns: int) -> Tensor:
    """(rows·columns, 64): sines and cosines of where a place is, 16 of each along each side."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    frequencies = 0.6 * torch.arange(1, 17)
    angles = torch.cat([side.flatten()[:, None] * frequencies for side in (y, x)], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


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
    colours = torch.from_numpy(drawn.rgb)  # (n, 28, 28, 3) uint8
    weight = torch.from_numpy(drawn.loss_weight)[..., None]  # (n, 28, 28, 1) float16
    mean, variance = told_without(colours, weight)
    torch.manual_seed(options.seed)
    models: dict[str, nn.Module] = {
        "qformer": encoder.float().qformer.requires_grad_(True),
        "redraw": Redraw(encoder.config.token_dim, mean),
    }

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        tokens = models["qformer"](batch["features"].float())
        error = models["redraw"](tokens) - batch["colours"].float() / 255
        return {"unread": (error.square() * batch["weight"].float()).mean(dim=(1, 2, 3)) / variance}

    data = Arrays(features=image_features(world, drawn.reference), colours=colours, weight=weight)
    weights = {"unread": 1.0}
    Trainer(folder, models, data, objective, schedule, options, loss_weights=weights, deadline=deadline).run()
    return encoder


def told_without(colours: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """The mean close-up (28, 28, 3), and its weighted squared error."""
    mean = colours.float().mean(dim=0) / 255
    parts = zip(colours.split(512), weight.split(512), strict=True)
    errors = [((some.float() / 255 - mean).square() * w.float()).sum() for some, w in parts]
    return mean, float(torch.stack(errors).sum()) / colours.numel()
