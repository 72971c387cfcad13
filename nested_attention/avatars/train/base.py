"""Stage 3: the base model. UNet and both text encoders learn to draw the world from captions.

Most captions describe the identity before the subject's word, as captions of photographs do, so that the
model
learns to take appearance from that word. Its attention is told where the subject is: 77 unmasked tokens of
which
all later ones have read the caption too would otherwise share the work evenly, which large models do not do.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..model import LATENT, TIME_IDS, encode_text, new_scheduler, new_text_g, new_text_l, new_unet
from ..pixels import ids_for_both
from ..tokenizer import load_tokenizer
from ..vocabulary import compact, used_tokens
from ..watched import watch
from .data import Pictures
from .loop import Budget, Run

LOCALISE = 0.03
"""Weight of the attention term beside the denoising loss."""

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


class Start(NamedTuple):
    """What the base model begins with; the text encoders' token tables are compact."""

    unet: nn.Module
    text_l: nn.Module
    text_g: nn.Module


def sample_timesteps(batch: int) -> Tensor:
    """Timesteps with a density that grows linearly: what a picture shows is decided at high noise. (B,)"""
    return (1000 * torch.rand(batch).sqrt()).long().clamp(max=999)


def train_base(
    folder: Path,
    pictures: Pictures,
    latents: Tensor,
    budget: Budget,
    *,
    start: Start | None = None,
    batch: int = 16,
    rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, nn.Module]:
    """Train UNet and text encoders on latents, together; returns the averaged `unet`, `text_l`, `text_g`.

    `start`: modules to begin with; random ones by default.
    """
    torch.manual_seed(seed)
    empty = load_tokenizer().encode_all([""])
    if start is None:
        tokens = used_tokens(pictures.described, pictures.plain, empty)
        text_l, text_g = (compact(new(), tokens) for new in (new_text_l, new_text_g))
        start = Start(new_unet(), text_l, text_g)
    unet, text_l, text_g = (module.requires_grad_(True).train() for module in start)
    modules = {"unet": unet, "text_l": text_l, "text_g": text_g}
    run = Run(folder, modules, rate=rate, budget=budget, ema=0.999)
    watched = watch(unet)
    scheduler = new_scheduler()
    rng = np.random.default_rng([seed, run.step])
    torch.manual_seed(seed + run.step)
    masks = torch.from_numpy(pictures.masks.reshape(len(pictures.masks), 2, LATENT * LATENT))
    while not run.done:
        rows = rng.integers(len(latents), size=batch)
        described = rng.random(batch) < 0.85
        ids = np.where(described[:, None], pictures.described[rows], pictures.plain[rows])
        words = np.where(described[:, None], pictures.described_words[rows], pictures.plain_words[rows])
        dropped = rng.random(batch) < 0.1
        ids[dropped], words[dropped] = empty[0], -1
        context, pooled = encode_text(text_l, text_g, *ids_for_both(ids))
        x = latents[torch.from_numpy(rows)].float()
        noise, t = torch.randn_like(x), sample_timesteps(batch)
        noisy = scheduler.add_noise(x, noise, t)
        added = {"text_embeds": pooled, "time_ids": size_conditioning(batch, rng)}
        out = unet(noisy, t, context, added_cond_kwargs=added).sample
        denoise = functional.mse_loss(out, scheduler.get_velocity(x, noise, t))
        where = masks[torch.from_numpy(rows)]
        where_words = torch.from_numpy(words.astype(np.int64))
        localise = torch.stack([attention_loss(w.probabilities, where_words, where) for w in watched]).mean()  # type: ignore[arg-type]
        run.update(denoise + LOCALISE * localise, denoise=denoise.detach(), localise=localise.detach())
        if run.step % 250 == 0:
            run.save()
    run.save()
    return dict(run.average)
