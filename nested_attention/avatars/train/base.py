"""Stage 4: the base model. The UNet learns to draw the world from captions that the frozen text encoders
read.

Most captions describe the identity before the subject's word, as captions of photographs do, so that the
model learns to take appearance from that word. Its attention is told where the subject is: 77 unmasked
tokens of which all later ones have read the caption too would otherwise share the work evenly, which
large models do not do. The loss counts faces more than skies, and eyes more than faces: a pair of eyes is
two cells in 256.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..models.model import LATENT, TIME_IDS, encode_text, new_scheduler, new_unet
from ..models.pixels import ids_for_both
from ..models.tokenizer import load_tokenizer
from ..models.watched import probabilities, watch
from .data import Pictures
from .device import autocast, device, faster_precision, unet_pass
from .loop import Budget, Run

LOCALISE = 0.03
"""Weight of the attention term beside the denoising loss."""

DESCRIBED, DROPPED = 0.85, 0.1
"""Share of captions that describe the identity, and of pictures that are drawn without any caption."""

ENOUGH = 0.6
"""Attention to the subject's word above which it is no longer asked for more."""


def attention_loss(probabilities: Tensor, words: Tensor, masks: Tensor) -> Tensor:
    """How far P[s*] is from being high on the subject and low elsewhere.

    probabilities (B, L, T); words (B, 2) positions or −1; masks (B, 2, L) bool.
    """
    losses = []
    for subject in range(words.shape[1]):
        rows = (words[:, subject] >= 0).nonzero().view(-1)
        if not len(rows):
            continue
        p = probabilities[rows, :, words[rows, subject]].clamp(1e-5, 1 - 1e-5)  # (b, L)
        inside = masks[rows, subject]
        wanted = functional.relu(math.log(ENOUGH) - p.log())
        losses.append((wanted * inside).sum() / inside.sum().clamp(min=1))
        losses.append((-(1 - p).log() * ~inside).sum() / (~inside).sum().clamp(min=1))
    return torch.stack(losses).sum()


def size_conditioning(batch: int, rng: np.random.Generator) -> Tensor:
    """Mostly the size of a picture as shown; sometimes another, because hosts send their own defaults. (B,
    6)"""
    rows = np.tile(np.asarray(TIME_IDS, np.float32), (batch, 1))
    other = rng.random(batch) < 0.3
    sizes = rng.choice([32, 64, 256, 512, 768, 1024], size=batch)
    for row in np.nonzero(other)[0]:
        rows[row] = (sizes[row], sizes[row], 0, 0, sizes[row], sizes[row])
    return torch.from_numpy(rows)


class TextStates(NamedTuple):
    """What the frozen text encoders say of a list of captions."""

    context: Tensor  # (n, 77, 256) float16
    pooled: Tensor  # (n, 160) float16


@torch.no_grad()
def read_captions(text_l: nn.Module, text_g: nn.Module, ids: np.ndarray, batch: int = 256) -> TextStates:
    """Encode captions once, for all the steps that will draw them. ids (n, 77)"""
    context, pooled = [], []
    for start in range(0, len(ids), batch):
        states, summary = encode_text(text_l, text_g, *ids_for_both(ids[start : start + batch]))
        context.append(states.half())
        pooled.append(summary.half())
    return TextStates(torch.cat(context), torch.cat(pooled))


def sample_timesteps(batch: int) -> Tensor:
    """Timesteps, a little denser at high noise, where what a picture shows is decided. (B,)"""
    return (1000 * torch.rand(batch).pow(0.75)).long().clamp(max=999)


def cell_weights(pictures: Pictures) -> Tensor:
    """The emphasis of each latent cell, 1 on average over all pictures. (n, 16, 16)"""
    weights = torch.from_numpy(pictures.emphasis).float()
    return weights / weights.mean()


def emphasised(error: Tensor, emphasis: Tensor) -> Tensor:
    """Mean squared error with the weight of each cell, whose mean is 1 over all pictures.

    error (B, C, H, W); emphasis (B, H, W). What minimises it is what minimises the plain mean.
    """
    return (error.square() * emphasis[:, None]).mean()


def train_base(
    folder: Path,
    pictures: Pictures,
    latents: Tensor,
    text: tuple[nn.Module, nn.Module],
    budget: Budget,
    *,
    start: nn.Module | None = None,
    batch: int = 32,
    rate: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Train the UNet on latents, conditioned on the frozen text encoders (L, G); returns the averaged one.

    `start`: a UNet to begin with; a random one by default.
    """
    torch.manual_seed(seed)
    described, plain = (read_captions(*text, ids) for ids in (pictures.described, pictures.plain))
    empty = read_captions(*text, load_tokenizer().encode_all([""]))
    unet = (new_unet() if start is None else start).requires_grad_(True).train().to(device())
    run = Run(folder, {"unet": unet}, rate=rate, budget=budget, ema=0.999)
    watched = watch(unet)
    scheduler = new_scheduler()
    precision = faster_precision(unet_pass(unet, batch))
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    masks = torch.from_numpy(pictures.masks.reshape(len(pictures.masks), 2, LATENT * LATENT))
    emphasis = cell_weights(pictures)
    described_words, plain_words = (
        torch.from_numpy(words.astype(np.int64)) for words in (pictures.described_words, pictures.plain_words)
    )
    while not run.done:
        rows = torch.from_numpy(rng.integers(len(latents), size=batch))
        tells = torch.from_numpy(rng.random(batch) < DESCRIBED)
        dropped = torch.from_numpy(rng.random(batch) < DROPPED)
        context = torch.where(tells[:, None, None], described.context[rows], plain.context[rows])
        context = torch.where(dropped[:, None, None], empty.context, context).float()
        pooled = torch.where(tells[:, None], described.pooled[rows], plain.pooled[rows])
        pooled = torch.where(dropped[:, None], empty.pooled, pooled).float()
        words = torch.where(tells[:, None], described_words[rows], plain_words[rows])
        words[dropped] = -1
        x = latents[rows].float()
        noise, t = torch.randn_like(x), sample_timesteps(batch)
        noisy, wanted = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        sizes, weights, where = size_conditioning(batch, rng), emphasis[rows], masks[rows]
        here = (noisy, wanted, t, context, pooled, sizes, weights, words, where)
        noisy, wanted, t, context, pooled, sizes, weights, words, where = (v.to(device()) for v in here)
        with autocast(precision):
            added = {"text_embeds": pooled, "time_ids": sizes}
            out = unet(noisy, t, context, added_cond_kwargs=added).sample
        error = out.float() - wanted
        denoise = emphasised(error, weights)
        attended = [attention_loss(p.float(), words, where) for p in probabilities(watched)]
        localise = torch.stack(attended).mean()
        run.update(
            denoise + LOCALISE * localise,
            denoise=denoise.detach(),
            plain=error.detach().square().mean(),
            localise=localise.detach(),
        )
        if run.step % 250 == 0:
            run.save()
    run.save()
    return run.average["unet"].cpu()
