"""Stage 2: the vision encoder, as half of a CLIP of its own.

Crops are contrasted with descriptions; besides, the last layer's tokens must keep what their patches show and
which attributes the subject has, because the Q-Former reads those tokens and not the pooled embedding. The
text
half is discarded: the base model trains its own text encoders.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from ..models.model import VISION, VISION_WIDTH, new_text_g, new_vision
from ..models.pixels import ids_for_both, to_vision
from ..models.tokenizer import load_tokenizer
from ..models.vocabulary import compact, used_tokens
from .attribute_heads import ATTRIBUTES, AttributeHeads
from .data import draw_crops
from .device import autocast, device, faster_precision, vision_pass
from .loop import Budget, Run

LENGTH = 40
"""Tokens a description may take; the pooled state sits at its end, so padding beyond is not needed."""


class _Heads(nn.Module):
    """Training-only heads: temperature, patches back to pixels, attributes from the mean token."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.pixels = nn.Linear(VISION_WIDTH, 3 * patch * patch)
        self.attributes = AttributeHeads(VISION_WIDTH, ATTRIBUTES.values())


def _contrast(image: torch.Tensor, text: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
    logits = image @ text.T * temperature.exp().clamp(max=50)
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


NAMED = 0.3
"""Weight of the attributes beside contrast and patches. What an encoder cannot read here, no picture of its
subject will show: without enough of it, colours arrive and shapes do not."""


def train_clip(
    folder: Path,
    budget: Budget,
    *,
    start: nn.Module | None = None,
    crops: int = 60_000,
    batch: int = 32,
    seed: int = 0,
) -> nn.Module:
    """Train on crops drawn here; returns the averaged vision encoder. `start`: one to begin with."""
    torch.manual_seed(seed)
    drawn, texts, labels = draw_crops(crops, seed + 11)
    ids = load_tokenizer().encode_all(texts)[:, :LENGTH]
    vision = (new_vision() if start is None else start).requires_grad_(True).train().to(device())
    text = compact(new_text_g(), used_tokens(ids)).to(device())
    patch: int = VISION["patch_size"]
    heads = _Heads(patch).to(device())
    modules: dict[str, nn.Module] = {"vision": vision, "text": text, "heads": heads}
    run = Run(folder, modules, rate=1e-3, budget=budget, ema=0.995)
    targets = torch.from_numpy(labels).to(device())
    precision = faster_precision(vision_pass(vision, batch))
    rng = np.random.default_rng([seed, run.step])
    while not run.done:
        rows = rng.integers(crops, size=batch)
        pixels = to_vision(drawn[rows]).to(device())
        _, ids_g = ids_for_both(ids[rows])
        with autocast(precision):
            out, said = vision(pixels), text(ids_g.to(device()))
        tokens = out.last_hidden_state[:, 1:].float()  # (B, 196, width)
        contrast = _contrast(out.image_embeds.float(), said.text_embeds.float(), heads.temperature)
        patches = functional.unfold(pixels, patch, stride=patch).transpose(1, 2)  # (B, 196, 48)
        kept = functional.mse_loss(heads.pixels(tokens), patches)
        named = heads.attributes.loss(tokens, targets[rows])
        run.update(
            contrast + kept + NAMED * named,
            contrast=contrast.detach(),
            kept=kept.detach(),
            named=named.detach(),
        )
        if run.step % 500 == 0:
            run.save()
    run.save()
    return run.average["vision"].cpu()
