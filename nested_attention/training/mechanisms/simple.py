"""Simple adapter: the subject's tokens stand beside the text's in the layers that are there (paper, Sec. 5.2,
after IP-Adapter).

    K_img, V_img = W_K t, W_V t               with the frozen layer's own W_K, W_V
    out_q = softmax(Q [K; K_img]ᵀ / √d) [V; V_img]

Nothing is trained beside the Q-Former. Image and text share one softmax, so that what one is given the other
loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...attention import BoundSubject, carried, joined, onto, per_head, plain_attention, without_autocast
from ...encoder import SubjectEncoder, SubjectEncoderConfig
from ...errors import NestedAttentionError
from ...settings import SubjectSettings
from .mechanism import Mechanism, Projections


@without_autocast
def beside_text(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int
) -> Tensor:
    """One attention over the text and the tokens of each row's subjects, in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d). Of a subject only key, value and the rows that its
    mask marks are read.
    """
    subjects = [subject for subject in subjects if subject.strength]
    batch = len(query)
    keys = [key, *(subject.key.expand(batch, -1, -1).to(key) for subject in subjects)]
    values = [value, *(subject.value.expand(batch, -1, -1).to(value) for subject in subjects)]
    parts = [torch.zeros(batch, key.shape[1], dtype=query.dtype, device=query.device)]
    for subject in subjects:  # rows that do not carry a subject do not see its tokens
        absent = ~onto(subject.mask.any(dim=1), query.device)
        bias = torch.zeros(batch, dtype=query.dtype, device=query.device).masked_fill(absent, -torch.inf)
        parts.append(bias[:, None].expand(-1, subject.key.shape[1]))
    q, k, v = (per_head(x, heads) for x in (query, torch.cat(keys, dim=1), torch.cat(values, dim=1)))
    bias = torch.cat(parts, dim=1)[:, None, None].expand(-1, -1, query.shape[1], -1)  # (B, 1, L, T + ΣN)
    out = joined(scaled_dot_product_attention(q, k, v, attn_mask=bias))
    plain = plain_attention(query, key, value, heads=heads)
    return torch.where(carried(subjects, query)[:, 0], out, plain)


class SimpleAdapter(Mechanism):
    """Image tokens beside the text's. It has no control: a subject is there (1) or not (0)."""

    name, title, control = "simple", "Simple Adapter", None
    unused, attention = ("projections",), staticmethod(beside_text)

    def project(self, encoder: SubjectEncoder, unet: Any, tokens: Tensor) -> Projections:
        for site in encoder.config.sites:
            if site.context_dim != encoder.config.token_dim:
                raise NestedAttentionError(
                    f"a simple adapter's tokens are {encoder.config.token_dim} wide and the text at "
                    f"{site.name} is {site.context_dim}; expected the same width, since the text's own keys "
                    "and values are made of them. Set token_dim to the text's width"
                )
        layers: dict[str, Any] = {site.name: unet.get_submodule(site.name) for site in encoder.config.sites}
        return {name: (layer.to_k(tokens), layer.to_v(tokens)) for name, layer in layers.items()}

    def settings(self, config: SubjectEncoderConfig, control: float = 1.0) -> SubjectSettings:
        return SubjectSettings(injection="nested", strength=float(control != 0)).trained_as(config)
