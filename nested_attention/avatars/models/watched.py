"""Cross-attention that keeps its weights: P of some layers, for training and for measuring."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from ...attention import joined, per_head, text_weights


class WatchedAttention:
    """A cross-attention processor that also keeps P, averaged over heads, for the attention term."""

    def __init__(self) -> None:
        self.probabilities: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        query, key, value = (
            attn.to_q(hidden_states),
            attn.to_k(encoder_hidden_states),
            attn.to_v(encoder_hidden_states),
        )
        weights = text_weights(query, key, heads=attn.heads)
        self.probabilities = weights.mean(dim=1)  # (B, L, T)
        out = joined(weights.to(value) @ per_head(value, attn.heads))
        return attn.to_out[1](attn.to_out[0](out))


FINEST = "down_blocks.0", "up_blocks.2"
COARSER = "down_blocks.1", "up_blocks.1"
"""Blocks of the levels with a query for each latent cell, and for 2×2 of them."""


def watch(unet: UNet2DConditionModel, blocks: tuple[str, ...] = FINEST) -> list[WatchedAttention]:
    """Install watched processors on the cross-attention of some blocks; returns them."""
    processors = dict(unet.attn_processors)
    watched = {n: WatchedAttention() for n in processors if "attn2" in n and n.startswith(blocks)}
    unet.set_attn_processor({name: watched.get(name, processor) for name, processor in processors.items()})
    return list(watched.values())


def probabilities(watched: list[WatchedAttention]) -> list[Tensor]:
    """What the watched layers attended to in the last pass: P, averaged over heads, (B, L, T) a layer."""
    return [w.probabilities for w in watched if w.probabilities is not None]
