"""Stage 3: both text encoders, taught to read before anything is drawn, and frozen afterwards.

SDXL's text encoders come from CLIP, trained on far more than the UNet ever sees. Here they learn from
captions alone: the state of a subject's word must tell who is described before it, the state that ends
its phrase what it wears and where it stands, and the end of the caption where and how the picture is
made. The states in question are those that condition the UNet (the penultimate layer of both,
concatenated), and the heads are linear, so that one projection of a layer is enough to take an appearance
out of the value of a word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..models.model import CONTEXT, POOLED, encode_text, new_text_g, new_text_l
from ..models.pixels import ids_for_both
from ..models.tokenizer import TOKENS, load_tokenizer
from ..models.vocabulary import compact, used_tokens
from .data import FIGURE_LABELS, SETTING_LABELS, Pictures
from .device import device
from .loop import Budget, Run

IDENTITY = slice(0, len(FIGURE_LABELS) - 4)
"""Columns of a figure's labels that its identity fixes; the last four are worn, felt or placed."""

DESCRIBED = 0.8
"""Share of captions that describe the identity."""


class _Heads(nn.Module):
    """Training-only linear answers from one state: every label of a figure, or of the setting."""

    def __init__(self) -> None:
        super().__init__()
        sizes = list(FIGURE_LABELS.values())
        self.word = nn.Linear(CONTEXT, sum(sizes[IDENTITY]))
        self.phrase = nn.Linear(CONTEXT, sum(sizes))
        self.end = nn.Linear(CONTEXT, sum(SETTING_LABELS.values()))
        self.pooled = nn.Linear(POOLED, sum(SETTING_LABELS.values()) + sum(sizes))


def _cross_entropy(logits: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    """Sum over labels of the mean cross-entropy; −1 is not asked.

    logits (n, Σ sizes), labels (n, len(sizes)) → (); 0 where nothing is asked.
    """
    losses = [logits.new_zeros(())]
    for column, part in enumerate(logits.split(sizes, dim=-1)):
        asked = labels[:, column] >= 0
        if asked.any():
            losses.append(functional.cross_entropy(part[asked], labels[asked, column]))
    return torch.stack(losses).sum()


def train_text(
    folder: Path, pictures: Pictures, budget: Budget, *, batch: int = 48, seed: int = 0
) -> dict[str, nn.Module]:
    """Train both encoders on the captions of `pictures`; returns the averaged `text_l` and `text_g`."""
    torch.manual_seed(seed)
    tokens = used_tokens(pictures.described, pictures.plain, load_tokenizer().encode_all([""]))
    text_l, text_g = (compact(new(), tokens).to(device()) for new in (new_text_l, new_text_g))
    heads = _Heads().to(device())
    modules = {"text_l": text_l, "text_g": text_g, "heads": heads}
    run = Run(folder, modules, rate=2e-3, budget=budget, ema=0.998)
    rng = np.random.default_rng([seed, run.step])
    sizes, setting_sizes = list(FIGURE_LABELS.values()), list(SETTING_LABELS.values())
    figures = torch.from_numpy(pictures.figure_labels.astype(np.int64))
    setting = torch.from_numpy(pictures.setting_labels.astype(np.int64)).to(device())
    while not run.done:
        rows = rng.integers(len(pictures.rgb), size=batch)
        tells = rng.random(batch) < DESCRIBED
        ids, words, ends = (
            np.where(tells[:, None], described[rows], plain[rows]).astype(np.int64)
            for described, plain in (
                (pictures.described, pictures.plain),
                (pictures.described_words, pictures.plain_words),
                (pictures.described_ends, pictures.plain_ends),
            )
        )
        labels = figures[rows]  # (batch, 2, labels)
        labels[torch.from_numpy(~tells), :, IDENTITY] = -1  # a plain prompt does not tell
        labels = labels.to(device())
        context, pooled = encode_text(text_l, text_g, *(part.to(device()) for part in ids_for_both(ids)))
        end = (ids == TOKENS.end).argmax(axis=1)
        whole = _cross_entropy(heads.end(context[np.arange(batch), end]), setting[rows], setting_sizes)
        word, phrase = whole.new_zeros(()), whole.new_zeros(())
        for number in range(words.shape[1]):
            there = np.nonzero(words[:, number] >= 0)[0]
            asked = labels[there, number]
            at_word, at_end = context[there, words[there, number]], context[there, ends[there, number]]
            word = word + _cross_entropy(heads.word(at_word), asked[:, IDENTITY], sizes[IDENTITY])
            phrase = phrase + _cross_entropy(heads.phrase(at_end), asked, sizes)
        alone = torch.from_numpy(words[:, 1] < 0).to(device())
        figure = torch.where(
            alone[:, None], labels[:, 0], -1
        )  # of two, a summary could not tell which is meant
        about = torch.cat([setting[rows], figure], dim=1)
        summary = _cross_entropy(heads.pooled(pooled), about, setting_sizes + sizes)
        run.update(
            whole + summary + word + phrase, word=word.detach(), phrase=phrase.detach(), end=whole.detach()
        )
        if run.step % 500 == 0:
            run.save()
    run.save()
    return {name: run.average[name].cpu() for name in ("text_l", "text_g")}
