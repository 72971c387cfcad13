"""Cross-attention that can be looked at: P of the finest layers, for training and for measuring."""

from __future__ import annotations

import math
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor


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
        batch, length, _inner = hidden_states.shape
        query, key, value = (
            attn.to_q(hidden_states),
            attn.to_k(encoder_hidden_states),
            attn.to_v(encoder_hidden_states),
        )

        def split(x: Tensor) -> Tensor:
            return x.view(batch, x.shape[1], attn.heads, -1).transpose(1, 2)  # (B, H, L, d)

        query, key, value = split(query), split(key), split(value)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = scores.softmax(dim=-1)
        self.probabilities = weights.mean(dim=1)  # (B, L, T)
        out = (weights @ value).transpose(1, 2).reshape(batch, length, -1)
        return attn.to_out[1](attn.to_out[0](out))


def watch(unet: UNet2DConditionModel) -> list[WatchedAttention]:
    """Install watched processors on the cross-attention of the finest level; returns them."""
    processors = dict(unet.attn_processors)
    finest = [n for n in processors if "attn2" in n and n.startswith(("down_blocks.0", "up_blocks.2"))]
    watched = {name: WatchedAttention() for name in finest}
    unet.set_attn_processor({name: watched.get(name, processor) for name, processor in processors.items()})
    return list(watched.values())


def probabilities(watched: list[WatchedAttention]) -> list[Tensor]:
    """What the watched layers attended to in the last pass: P, averaged over heads, (B, L, T) a layer."""
    return [w.probabilities for w in watched if w.probabilities is not None]
