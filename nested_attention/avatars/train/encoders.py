"""Stage 5: a subject encoder for people or pets, trained as the paper does (Sec. 3.3).

The world is frozen. A crop of the subject goes in, the full picture is the target, the prompt says
`person` or `pet` and never names what identity fixes. Crop and picture differ in pose, expression, scene
and clothing, so that copying does not pay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...hosts.diffusers.processors import SubjectBinding, SubjectSlot
from ...sites import diffusers_sites
from ..model import CONTEXT, TIME_IDS, VISION_WIDTH, new_scheduler
from ..world import World
from .base import TextStates, cell_weights, emphasised, read_captions, sample_timesteps
from .data import Pictures
from .device import autocast, device, faster_precision, unet_pass
from .loop import Budget, Run


@dataclass(frozen=True)
class EncoderData:
    """Everything a step reads, encoded once."""

    latents: Tensor  # (n, 8, 16, 16) float16
    features: Tensor  # (n, 197, vision width) float16
    text: TextStates
    mask: Tensor  # (n, 77) bool: where the subject's word stands
    emphasis: Tensor  # (n, 16, 16): weight of each cell in the loss, 1 on average
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
    """Run the frozen autoencoder, text encoders and vision encoder over a data set."""
    features = [
        world.features(pictures.reference[start : start + batch]).half()
        for start in range(0, len(pictures.reference), batch)
    ]
    everyone = np.arange(len(pictures.wanted))
    where = pictures.plain_words[everyone, pictures.wanted]
    return EncoderData(
        latents=world.encode(pictures.rgb).half(),
        features=torch.cat(features),
        text=read_captions(world.text_encoder, world.text_encoder_2, pictures.plain),
        mask=torch.from_numpy(np.arange(pictures.plain.shape[1]) == where[:, None]),
        emphasis=cell_weights(pictures),
        word=word,
    )


def train_encoder(
    folder: Path,
    world: World,
    data: EncoderData,
    budget: Budget,
    *,
    start: SubjectEncoder | None = None,
    queries: int = 32,
    batch: int = 32,
    rate: float = 1e-3,
    seed: int = 0,
    global_value: bool = False,
) -> SubjectEncoder:
    """Train one encoder; returns the averaged one. `start`: one to begin with; a random one by default.

    `global_value` trains the paper's alternative "Global V" instead: the tokens of a subject are averaged, so
    that every query is given the same value.
    """
    torch.manual_seed(seed)
    encoder = SubjectEncoder(encoder_config(world, data.word, queries)) if start is None else start
    encoder = encoder.float().requires_grad_(True).train().to(device())
    unet = world.unet.to(device())
    run = Run(folder, {"encoder": encoder}, rate=rate, budget=budget, ema=0.998, fixed=[unet])
    scheduler = new_scheduler()
    precision = faster_precision(unet_pass(unet, batch))
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    sizes = torch.tensor([TIME_IDS], dtype=torch.float32, device=device()).expand(batch, -1)
    slot = SubjectSlot.install(unet)
    while not run.done:
        rows = torch.from_numpy(rng.integers(len(data.latents), size=batch))
        x = data.latents[rows].float()
        noise, t = torch.randn_like(x), sample_timesteps(batch)
        noisy, wanted = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        context, pooled, features = (
            v[rows].float() for v in (data.text.context, data.text.pooled, data.features)
        )
        here = (noisy, wanted, t, context, pooled, features, data.emphasis[rows])
        noisy, wanted, t, context, pooled, features, weights = (v.to(device()) for v in here)
        tokens = encoder(features)  # (B, queries, token_dim)
        tokens = tokens.mean(dim=1, keepdim=True) if global_value else tokens
        binding = SubjectBinding(projections=encoder.project(tokens), mask=data.mask[rows])
        with slot.bind(binding), autocast(precision):
            added = {"text_embeds": pooled, "time_ids": sizes}
            out = unet(noisy, t, context, added_cond_kwargs=added).sample
        error = out.float() - wanted
        run.update(emphasised(error, weights), plain=error.detach().square().mean())
        if run.step % 250 == 0:
            run.save()
    run.save()
    slot.remove()
    world.unet.cpu()
    return run.average["encoder"].cpu().eval()  # type: ignore[return-value]
