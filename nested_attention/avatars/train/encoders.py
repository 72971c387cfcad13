"""Stage 4: a subject encoder for people or pets, trained as the paper does (Sec. 3.3).

The world is frozen. A crop of the subject goes in, the full picture is the target, the prompt says `person`
or
`pet` and never names what identity fixes. Crop and picture differ in pose, expression, scene and clothing, so
that copying does not pay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...hosts.diffusers.processors import SubjectBinding, SubjectSlot
from ...sites import diffusers_sites
from ..model import CONTEXT, TIME_IDS, VISION_WIDTH, encode_text, new_scheduler
from ..pixels import ids_for_both
from ..tokenizer import load_tokenizer
from ..world import World
from .base import sample_timesteps
from .data import Pictures
from .loop import Budget, Run


@dataclass(frozen=True)
class EncoderData:
    """Everything a step reads, encoded once."""

    latents: Tensor  # (n, 8, 16, 16) float16
    features: Tensor  # (n, 197, vision width) float16
    ids: np.ndarray  # (n, 77)
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


def encode_data(world: World, pictures: Pictures, word: str, batch: int = 64) -> EncoderData:
    """Run the frozen autoencoder and vision encoder over a data set."""
    parts = [
        world.features(pictures.reference[start : start + batch]).half()
        for start in range(0, len(pictures.reference), batch)
    ]
    return EncoderData(world.encode(pictures.rgb).half(), torch.cat(parts), pictures.plain, word)


def train_encoder(
    folder: Path,
    world: World,
    data: EncoderData,
    budget: Budget,
    *,
    start: SubjectEncoder | None = None,
    queries: int = 32,
    batch: int = 16,
    rate: float = 1e-3,
    seed: int = 0,
) -> SubjectEncoder:
    """Train one encoder; returns the averaged one. `start`: one to begin with; a random one by default."""
    torch.manual_seed(seed)
    encoder = SubjectEncoder(encoder_config(world, data.word, queries)) if start is None else start
    encoder = encoder.float().requires_grad_(True).train()
    fixed = (world.unet, world.text_encoder, world.text_encoder_2)
    run = Run(folder, {"encoder": encoder}, rate=rate, budget=budget, ema=0.998, fixed=fixed)
    scheduler = new_scheduler()
    token = load_tokenizer().encode(data.word)[1]
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    sizes = torch.tensor([TIME_IDS], dtype=torch.float32).expand(batch, -1)
    slot = SubjectSlot.install(world.unet)
    while not run.done:
        rows = rng.integers(len(data.latents), size=batch)
        index = torch.from_numpy(rows)
        with torch.no_grad():
            context, pooled = encode_text(
                world.text_encoder, world.text_encoder_2, *ids_for_both(data.ids[rows])
            )
        x = data.latents[index].float()
        noise, t = torch.randn_like(x), sample_timesteps(batch)
        noisy = scheduler.add_noise(x, noise, t)
        tokens = encoder(data.features[index].float())  # (B, queries, token_dim)
        mask = torch.from_numpy(data.ids[rows].astype(np.int64) == token)
        with slot.bind(SubjectBinding(projections=encoder.project(tokens), mask=mask)):
            added = {"text_embeds": pooled, "time_ids": sizes}
            out = world.unet(noisy, t, context, added_cond_kwargs=added).sample
        run.update(functional.mse_loss(out, scheduler.get_velocity(x, noise, t)))
        if run.step % 250 == 0:
            run.save()
    run.save()
    slot.remove()
    return run.average["encoder"].eval()  # type: ignore[return-value]
