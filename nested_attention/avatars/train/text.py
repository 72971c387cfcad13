"""Both text encoders. They learn to read before anything is drawn, and are frozen afterwards.

SDXL's text encoders come from CLIP, trained on far more than the UNet ever sees. Here they learn from
captions alone: the state of a subject's word must tell who is described before it, the state that ends its
phrase what it wears and where it stands, and the end of the caption where and how the picture is made.
These states are the ones that condition the UNet (the penultimate layer of both, concatenated). The heads
are linear, so that one projection of a layer is enough to take an appearance out of the value of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...training.data import Arrays, Batch
from ...training.objective import choose
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..models.model import CONTEXT, POOLED, encode_text, new_text_g, new_text_l
from ..models.pixels import ids_for_both
from ..models.tokenizer import TOKENS, load_tokenizer
from ..models.vocabulary import compact, used_tokens
from .data import Pictures
from .labels import FIGURE_LABELS, NAMED, SETTING_LABELS, label_loss

OPTIONS = TrainerOptions(batch=48, rate=2e-3, ema=0.998)

IDENTITY = slice(0, len(NAMED))
"""Columns of a figure's labels that its identity fixes; what follows is worn, felt or placed."""

DESCRIBED = 0.8
"""Share of captions that describe the identity."""

_FIGURE, _SETTING = list(FIGURE_LABELS.values()), list(SETTING_LABELS.values())


class _Heads(nn.Module):
    """Training-only linear classifiers of one state: every label of a figure, or of the setting."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Linear(CONTEXT, sum(_FIGURE[IDENTITY]))
        self.phrase = nn.Linear(CONTEXT, sum(_FIGURE))
        self.end = nn.Linear(CONTEXT, sum(_SETTING))
        self.pooled = nn.Linear(POOLED, sum(_SETTING) + sum(_FIGURE))


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    return {"described": rng.random() < DESCRIBED}


def _objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    heads, described = models["heads"], noise["described"]
    ids, words, ends = (
        choose(described, batch[f"described{part}"], batch[f"plain{part}"])
        for part in ("", "_words", "_ends")
    )
    labels = batch["figure_labels"].clone()  # (B, 2, labels), −1 where there is no figure
    labels[..., IDENTITY] = choose(described, labels[..., IDENTITY], labels.new_tensor(-1))
    context, pooled = encode_text(models["text_l"], models["text_g"], *ids_for_both(ids))
    rows = torch.arange(len(ids), device=ids.device)
    end = context[rows, (ids == TOKENS.end).int().argmax(dim=1)]
    word, phrase = (context[rows[:, None], at.clamp(min=0)] for at in (words, ends))  # (B, 2, 256)

    def of_figures(head: nn.Module, states: Tensor, columns: slice) -> Tensor:
        answers = [head(states[:, number]).split(_FIGURE[columns], dim=-1) for number in range(2)]
        losses = [label_loss(each, labels[:, i, columns]) for i, each in enumerate(answers)]
        return torch.stack(losses).sum()

    # A summary of two figures cannot tell which of them a label is about.
    alone = choose(words[:, 1] < 0, labels[:, 0], labels.new_tensor(-1))
    about = torch.cat([batch["setting_labels"], alone], dim=1)
    return {
        "end": label_loss(heads.end(end).split(_SETTING, dim=-1), batch["setting_labels"]),
        "summary": label_loss(heads.pooled(pooled).split(_SETTING + _FIGURE, dim=-1), about),
        "word": of_figures(heads.word, word, IDENTITY),
        "phrase": of_figures(heads.phrase, phrase, slice(None)),
    }


def train_text(
    folder: Path, sets: Sequence[Pictures], schedule: Schedule, options: TrainerOptions = OPTIONS
) -> dict[str, nn.Module]:
    """Train both encoders on the captions of pictures; returns the averaged `text_l` and `text_g`."""
    torch.manual_seed(options.seed)
    captions = [ids for pictures in sets for ids in (pictures.described, pictures.plain)]
    tokens = used_tokens(*captions, load_tokenizer().encode_all([""]))
    encoders = {"text_l": compact(new_text_l(), tokens), "text_g": compact(new_text_g(), tokens)}
    names = [f"{caption}{part}" for caption in ("described", "plain") for part in ("", "_words", "_ends")]
    names += ["figure_labels", "setting_labels"]
    data = Arrays(
        **{name: np.concatenate([getattr(each, name) for each in sets]).astype(np.int64) for name in names}
    )
    models = {**encoders, "heads": _Heads()}
    weights = {"end": 1.0, "summary": 1.0, "word": 1.0, "phrase": 1.0}
    Trainer(folder, models, data, _objective, schedule, options, loss_weights=weights, noise=_noise).run()
    return encoders
