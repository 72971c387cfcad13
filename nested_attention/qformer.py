"""The Q-Former: learned queries that read an image's features and become subject tokens (paper, Sec. 3.3).

Every layer lets the queries ("latents") look at the image features and at each other in one cross-attention,
then transforms each of them in a feed-forward network; both steps are residual. The structure and the widths
are those of the perceiver resampler of IP-Adapter Plus, from which the paper's own encoder derives, so that
weights of either can be loaded (`checkpoint.py` renames their tensors).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class QFormerAttention(nn.Module):
    """Cross-attention of the latents over the image features and the latents themselves.

    Projecting is a method of its own, so that a caller that wants the attention maps takes queries and keys
    from `project` instead of repeating how they are made.
    """

    def __init__(self, width: int, *, heads: int, head_dim: int, operations: Any = nn) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm1 = operations.LayerNorm(width)  # of the features
        self.norm2 = operations.LayerNorm(width)  # of the latents
        self.to_q = operations.Linear(width, inner, bias=False)
        self.to_kv = operations.Linear(width, 2 * inner, bias=False)
        self.to_out = operations.Linear(inner, width, bias=False)

    def project(self, features: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, P, width), (B, N, width) → q (B, H, N, d), k and v (B, H, P + N, d), image features first."""
        features, latents = self.norm1(features), self.norm2(latents)
        query = self.to_q(latents)  # (B, N, H·d)
        both = torch.cat((features, latents), dim=1)  # (B, P + N, width)
        key, value = self.to_kv(both).chunk(2, dim=-1)  # each (B, P + N, H·d)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (query, key, value))
        return q, k, v

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """(B, P, width), (B, N, width) → (B, N, width)"""
        q, k, v = self.project(features, latents)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, d)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class QFormerLayer(nn.Module):
    """One layer: attention, then a feed-forward network, each added to the latents."""

    def __init__(self, width: int, *, heads: int, head_dim: int, ff_mult: int, operations: Any = nn) -> None:
        super().__init__()
        self.attention = QFormerAttention(width, heads=heads, head_dim=head_dim, operations=operations)
        self.feed_forward = nn.Sequential(
            operations.LayerNorm(width),
            operations.Linear(width, ff_mult * width, bias=False),
            nn.GELU(),
            operations.Linear(ff_mult * width, width, bias=False),
        )

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """(B, P, width), (B, N, width) → (B, N, width)"""
        latents = latents + self.attention(features, latents)
        return latents + self.feed_forward(latents)


class QFormer(nn.Module):
    """Image features (B, P, vision_dim) → subject tokens (B, num_queries, token_dim).

    operations: a namespace with `Linear` and `LayerNorm`, `torch.nn` or one like ComfyUI's `comfy.ops`.
    """

    def __init__(
        self,
        *,
        vision_dim: int,
        token_dim: int,
        num_queries: int,
        width: int,
        depth: int,
        heads: int,
        head_dim: int,
        ff_mult: int = 4,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, width) / width**0.5)
        self.proj_in = operations.Linear(vision_dim, width)
        self.layers = nn.ModuleList(
            QFormerLayer(width, heads=heads, head_dim=head_dim, ff_mult=ff_mult, operations=operations)
            for _ in range(depth)
        )
        self.proj_out = operations.Linear(width, token_dim)
        self.norm_out = operations.LayerNorm(token_dim)

    def attention_maps(self, features: Tensor) -> Tensor:
        """What each learned query attends to of the image features, averaged over heads, layer by layer.

        (B, P, vision_dim) → (B, depth, num_queries, P). With what it attends to of the other latents, a row
        sums to 1.
        """
        x = self.proj_in(features)  # (B, P, width)
        latents = self.latents.to(x).expand(x.shape[0], -1, -1)  # (B, N, width)
        maps = []
        for layer in self.layers:
            attention: Any = layer.attention
            q, k, _ = attention.project(x, latents)
            weights = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, H, N, P + N)
            maps.append(weights[..., : x.shape[1]].mean(dim=1))
            latents = layer(x, latents)
        return torch.stack(maps, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, P, vision_dim) → (B, num_queries, token_dim)"""
        x = self.proj_in(features)  # (B, P, width)
        # Layers made by `operations` may cast their weights to their input; this parameter is ours to cast.
        latents = self.latents.to(x).expand(x.shape[0], -1, -1)  # (B, N, width)
        for layer in self.layers:
            latents = layer(x, latents)
        return self.norm_out(self.proj_out(latents))
