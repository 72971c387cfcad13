"""The encoder that training begins with: random, from the base model's own cross-attention, or from a
file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_subject_encoder
from ..encoder import SubjectEncoder, SubjectEncoderConfig, site_key
from ..errors import NestedAttentionError
from ..sites import diffusers_sites
from .settings import EncoderSettings, StartSettings
from .shards import Index

_OURS = ("word", "features", "alpha", "norm", "injection", "sites")
"""What a file that training begins with does not decide."""


def encoder_config(sizes: EncoderSettings, unet: Any, index: Index, vision_dim: int) -> SubjectEncoderConfig:
    """The configuration of an encoder for a UNet and prepared data."""
    return SubjectEncoderConfig(
        vision_dim=vision_dim,
        token_dim=sizes.token_dim or unet.config.cross_attention_dim,
        num_queries=sizes.num_queries,
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        ff_mult=sizes.ff_mult,
        sites=diffusers_sites(unet),
        word=index.word,
        features=index.features,
        alpha=sizes.alpha,
        norm=sizes.norm,
        injection=sizes.injection,
    )


def new_encoder(
    start: StartSettings, config: SubjectEncoderConfig, unet: nn.Module, *, seed: int
) -> SubjectEncoder:
    """The encoder to train, in fp32. The seed decides what is random.

    Raises NestedAttentionError for a file that does not fit the UNet or the data, and for tokens of another
    width than the text's, where keys and values are to begin as the text's.
    """
    torch.manual_seed(seed)
    if start.kind == "file":
        encoder = _from_file(start, config)
    else:
        encoder = SubjectEncoder(config)
        if start.kind == "cross_attention":
            _copy_text_projections(encoder, unet)
    return encoder.float().requires_grad_(True).train()


@torch.no_grad()
def _copy_text_projections(encoder: SubjectEncoder, unet: nn.Module) -> None:
    """Nested keys and values begin as what the text's would be: copies, which training changes apart."""
    for site in encoder.config.sites:
        layer: Any = unet.get_submodule(site.name)
        if site.context_dim != encoder.config.token_dim:
            raise NestedAttentionError(
                f"start.kind is cross_attention, encoder.token_dim {encoder.config.token_dim}, and the text "
                f"is {site.context_dim} wide; leave token_dim out"
            )
        projection: Any = encoder.projections[site_key(site.name)]
        projection.to_key.weight.copy_(layer.to_k.weight)
        projection.to_value.weight.copy_(layer.to_v.weight)


def _from_file(start: StartSettings, config: SubjectEncoderConfig) -> SubjectEncoder:
    assert start.path is not None  # as StartSettings makes sure
    ours = {name: getattr(config, name) for name in _OURS}
    loaded = load_subject_encoder(start.path, dtype=torch.float32, **ours)
    if loaded.config.vision_dim != config.vision_dim:
        raise NestedAttentionError(
            f"start.path: {start.path} reads features of width {loaded.config.vision_dim}, the data has "
            f"{config.vision_dim}; prepare the data with the vision model it was trained with"
        )
    if not start.projections:
        loaded.projections.load_state_dict(SubjectEncoder(loaded.config).projections.state_dict())
    queries, there = config.num_queries, loaded.config.num_queries
    if queries == there:
        return loaded
    encoder = SubjectEncoder(replace(loaded.config, num_queries=queries))
    state: dict[str, Tensor] = dict(loaded.state_dict())
    latents = encoder.qformer.latents.detach().clone()
    kept = min(queries, there)
    latents[:, :kept] = state["qformer.latents"][:, :kept]
    encoder.load_state_dict({**state, "qformer.latents": latents})
    return encoder
