"""The small world with random weights: everything runs, and nothing is recognised."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nested_attention.avatars.drawing.prompts import caption, sample_identities, sample_picture
from nested_attention.avatars.figures.judges import SUBJECTS, Judges
from nested_attention.avatars.models import model
from nested_attention.avatars.models.cells import MEAN, SPREAD, cell_map
from nested_attention.avatars.models.scorers import (
    PromptScorer,
    Recogniser,
    new_prompt_network,
    new_recogniser_network,
    save_scorer,
)
from nested_attention.avatars.models.tokenizer import load_tokenizer
from nested_attention.avatars.models.vocabulary import compact, used_tokens
from nested_attention.avatars.models.world import PARTS, World, save_part
from nested_attention.avatars.train.encoders import encoder_config
from nested_attention.checkpoint import save_subject_encoder
from nested_attention.encoder import SubjectEncoder


def random_world(seed: int = 0) -> World:
    torch.manual_seed(seed)
    tokens = _tokens()
    parts = [
        model.new_unet(),
        model.new_vae(),
        compact(model.new_text_l(), tokens),
        compact(model.new_text_g(), tokens),
        model.new_vision(),
    ]
    return World(*(part.eval().requires_grad_(False) for part in parts))  # type: ignore[arg-type]


def small_encoder(world: World, word: str, queries: int) -> SubjectEncoder:
    """With random weights and fewer queries than those that ship."""
    torch.manual_seed(0)
    return SubjectEncoder(encoder_config(world, word, queries))


def from_cells(latents: Tensor) -> Tensor:
    """The inverse of `to_cells`: (B, 12, h, w) → (B, 3, 2·h, 2·w)"""
    numbers = latents * SPREAD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)
    blocks = torch.einsum("nk,bnhw->bkhw", cell_map(), numbers)
    return torch.nn.functional.pixel_shuffle(blocks, 2)


def random_judges(seed: int = 0) -> Judges:
    world = random_world(seed)
    encoders = {word: small_encoder(world, word, 4).eval() for word in SUBJECTS}
    recognisers = {word: Recogniser(new_recogniser_network().eval()) for word in SUBJECTS}
    return Judges(world, encoders, recognisers, PromptScorer(new_prompt_network().eval()))


def save_judges(judges: Judges, folder: Path) -> None:
    """As the shipped files are: `Judges.load` reads them."""
    for name in PARTS:
        save_part(folder, name, getattr(judges.world, name))
    for word in SUBJECTS:
        save_subject_encoder(judges.encoders[word], folder / f"{word}_encoder.safetensors")
        save_scorer(folder, f"scorer_{word}", judges.recognisers[word].network)
    save_scorer(folder, "scorer_prompt", judges.prompt.network)


@cache
def _tokens() -> list[int]:
    """Those of many captions: all words of the world."""
    rng = np.random.default_rng(0)
    texts = [""]
    for number in range(300):
        kinds = ("person", "pet", "person+pet")[number % 3]
        picture = sample_picture(rng, sample_identities(rng, kinds), split=None)
        texts += [caption(picture, rng, described=True), caption(picture, rng)]
    return used_tokens(load_tokenizer().encode_all(texts))
