"""The control that asks whether words are enough: one value a layer, taken from a caption that describes a
subject.

The base model reads a caption that says all a caption can say of who is there. What its layers make of the
noun of that caption is one value each; put in place of the value of `person` or `pet` of a prompt that says
nothing, it gives every query the same. Nothing is nested and nothing was trained for it. Where such a value
keeps a subject, identities are no more than their words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...encoder import SubjectEncoder, SubjectEncoderConfig, site_key
from ...settings import SubjectSettings
from ...sites import diffusers_sites
from ..drawing.identity import KINDS
from ..models.model import CONTEXT
from ..models.tokenizer import load_tokenizer
from ..models.world import Attached, World
from .cases import Case


def described_value(world: World, cases: list[Case], word: str) -> Attached:
    """The described noun of each case's caption, attached to `word` of its prompt."""
    context, _, ids = world.text([case.described for case in cases])
    places = noun_places(ids, word)
    tokens = context[torch.arange(len(cases)), places][:, None]  # (B, 1, 256)
    return Attached(word_values(world, word), tokens, word, SubjectSettings())


def noun_places(ids: np.ndarray, word: str) -> Tensor:
    """Where the first noun for a kind of subject stands. ids (B, 77) → (B,) int64"""
    nouns = {load_tokenizer().encode(noun)[1] for noun in KINDS[word].NOUNS}
    found = np.isin(ids, list(nouns))
    if not found.any(axis=1).all():
        raise ValueError(f"a caption has no noun for a {word}")
    return torch.from_numpy(found.argmax(axis=1))


@torch.no_grad()
def word_values(world: World, word: str) -> SubjectEncoder:
    """An encoder whose tokens are words of the text: their values are the base model's own, of no norm but
    theirs. With a single token there is nothing to choose from, so that its keys play no part."""
    config = SubjectEncoderConfig(
        vision_dim=CONTEXT,
        token_dim=CONTEXT,
        num_queries=1,
        width=1,
        depth=1,
        heads=1,
        head_dim=1,
        ff_mult=1,
        sites=diffusers_sites(world.unet),
        word=word,
        alpha=None,
    )
    encoder = SubjectEncoder(config)
    for site in config.sites:
        layer: Any = encoder.projections[site_key(site.name)]
        ours: Any = world.unet.get_submodule(site.name)
        layer.to_key.weight.zero_()
        layer.to_value.weight.copy_(ours.to_v.weight)
    return encoder.eval().requires_grad_(False)
