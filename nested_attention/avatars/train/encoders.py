"""Stage 5: a subject encoder for people or pets, trained as the paper does (Sec. 3.3).

The world is frozen. A crop of the subject goes in, the full picture is the target, the prompt says
`person` or `pet` and never names what identity fixes. Crop and picture differ in pose, expression, scene
and clothing, so that copying does not pay.

Beside the denoising loss stand two aids (`Aids`), off by default: heads that name the subject's attributes
from its tokens, and the frozen base model's own prediction when words tell it who the subject is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...hosts.diffusers.processors import SubjectBinding, SubjectSlot
from ...sites import diffusers_sites
from ..drawing.identity import KINDS, attributes
from ..models.model import CONTEXT, TIME_IDS, VISION_WIDTH, new_scheduler
from ..models.world import World
from .attribute_heads import AttributeHeads, columns_of
from .base import TextStates, cell_weights, emphasised, read_captions, sample_timesteps
from .data import Pictures
from .device import autocast, device, faster_precision, unet_pass
from .loop import Budget, Run


@dataclass(frozen=True)
class EncoderData:
    """Everything a step reads, encoded once."""

    latents: Tensor  # (n, 8, 16, 16) float16
    features: Tensor  # (n, 197, vision width) float16
    text: TextStates  # of the prompts, which do not say who the subject is
    told: TextStates  # of captions that do
    attributes: Tensor  # (n, attributes) int64: the subject's, as many as its kind has
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


def new_encoder(world: World, word: str, *, queries: int = 32, seed: int = 0) -> SubjectEncoder:
    """An encoder with random weights."""
    torch.manual_seed(seed)
    return SubjectEncoder(encoder_config(world, word, queries))


def image_features(world: World, crops: np.ndarray, batch: int = 64) -> Tensor:
    """What the frozen vision encoder says of crops. (n, 20, 20, 3) uint8 → (n, 197, vision width) float16"""
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
        told=read_captions(world.text_encoder, world.text_encoder_2, pictures.described),
        attributes=torch.from_numpy(labels[:, columns_of(word)].astype(np.int64)),
        mask=torch.from_numpy(np.arange(pictures.plain.shape[1]) == where[:, None]),
        emphasis=cell_weights(pictures),
        word=word,
    )


@dataclass(frozen=True)
class Aids:
    """What an encoder learns from beside the denoising loss.

    heads: name the subject's attributes from its tokens, and go on learning to; None: nothing is named.
    named: weight of their cross-entropies. told: how far the target moves from the picture's own velocity,
    which is mostly noise, to what the frozen model predicts when a caption tells it who the subject is, in
    [0, 1].
    """

    heads: AttributeHeads | None = None
    named: float = 0.02
    told: float = 0.0


def train_naming(
    folder: Path,
    encoder: SubjectEncoder,
    data: EncoderData,
    budget: Budget,
    *,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
) -> tuple[SubjectEncoder, AttributeHeads]:
    """Teach the Q-Former to read: attributes are named from its tokens, and nothing is drawn.

    A step costs a fifth of one through the UNet, and what the tokens hold the nested layers then only have to
    place. Returns the averaged encoder, whose nested layers are as they were, and the heads.
    """
    torch.manual_seed(seed)
    heads = AttributeHeads(CONTEXT, attributes(KINDS[data.word]).values()).to(device())
    encoder = encoder.float().requires_grad_(True).train().to(device())
    run = Run(folder, {"encoder": encoder, "heads": heads}, rate=rate, budget=budget, ema=0.995)
    rng = np.random.default_rng([seed, run.step])
    while not run.done:
        rows = torch.from_numpy(rng.integers(len(data.features), size=batch))
        tokens = encoder(data.features[rows].float().to(device()))
        run.update(heads.loss(tokens, data.attributes[rows].to(device())))
        if run.step % 250 == 0:
            run.save()
    run.save()
    return run.average["encoder"].cpu(), run.average["heads"].cpu()  # type: ignore[return-value]


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
    aids: Aids | None = None,
) -> SubjectEncoder:
    """Train one encoder; returns the averaged one. `start`: one to begin with; a random one by default.

    `aids`: what it learns from beside the denoising loss (Sec. 3.3); nothing by default, as in the paper.

    `global_value` trains the paper's alternative "Global V" instead: the tokens of a subject are averaged, so
    that every query is given the same value.
    """
    encoder = new_encoder(world, data.word, queries=queries, seed=seed) if start is None else start
    encoder = encoder.float().requires_grad_(True).train().to(device())
    unet, aids = world.unet.to(device()), aids or Aids()
    modules: dict[str, nn.Module] = {"encoder": encoder}
    if aids.heads is not None:
        modules["heads"] = aids.heads.requires_grad_(True).train().to(device())
    run = Run(folder, modules, rate=rate, budget=budget, ema=0.998, fixed=[unet])
    scheduler = new_scheduler()
    precision = faster_precision(unet_pass(unet, batch))
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    sizes = torch.tensor([TIME_IDS], dtype=torch.float32, device=device()).expand(batch, -1)
    slot = SubjectSlot.install(unet)

    def predict(noisy: Tensor, t: Tensor, text: TextStates, rows: Tensor) -> Tensor:
        context, pooled = (v[rows].float().to(device()) for v in text)
        with autocast(precision):
            added = {"text_embeds": pooled, "time_ids": sizes}
            return unet(noisy, t, context, added_cond_kwargs=added).sample.float()

    while not run.done:
        rows = torch.from_numpy(rng.integers(len(data.latents), size=batch))
        x = data.latents[rows].float()
        noise, t = torch.randn_like(x), sample_timesteps(batch)
        noisy, wanted = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        here = (noisy, wanted, t, data.features[rows].float(), data.emphasis[rows])
        noisy, wanted, t, features, weights = (v.to(device()) for v in here)
        target = wanted
        if aids.told:
            with torch.no_grad():
                target = torch.lerp(wanted, predict(noisy, t, data.told, rows), aids.told)
        tokens = encoder(features)  # (B, queries, token_dim)
        used = tokens.mean(dim=1, keepdim=True) if global_value else tokens
        binding = SubjectBinding(projections=encoder.project(used), mask=data.mask[rows])
        with slot.bind(binding):
            out = predict(noisy, t, data.text, rows)
        loss = emphasised(out - target, weights)
        logged = {"plain": (out - wanted).detach().square().mean(), "denoise": loss.detach()}
        if aids.heads is not None:
            named = aids.heads.loss(tokens, data.attributes[rows].to(device()))
            loss, logged["named"] = loss + aids.named * named, named.detach()
        run.update(loss, **logged)
        if run.step % 250 == 0:
            run.save()
    run.save()
    slot.remove()
    world.unet.cpu()
    return run.average["encoder"].cpu().eval()  # type: ignore[return-value]
