"""Multiple tokens: the word becomes as many text tokens as the encoder gives, whose keys stay the word's
(paper, Sec. 5.2).

    x_q   = softmax over the text without s*, and over N tokens whose logits are all x[s*] (λ included)
    out_q = Σ_{s≠s*} P'[s] V[s] + Σ_n P'[n] v_n,     v_n = W_V t_n,     v_n ← α · |V[s*]| · v_n / |v_n|

All N are attended alike, so that they act as one token with the mean of the values and N times its weight:
P'[s*] = N P[s*] / (1 + (N − 1) P[s*]). The paper does not say whether these values are regularised; here each
is, as the nested one is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...attention import (
    EPSILON,
    BoundSubject,
    at_tokens,
    carried,
    joined,
    norm,
    per_head,
    plain_attention,
    text_weights,
    without_autocast,
)
from .mechanism import Mechanism


@without_autocast
def in_place_of_word(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int
) -> Tensor:
    """Text cross-attention in which each marked token is replaced by the subject's, in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d). Of a subject value, mask, α, norm and λ are read.
    """
    subjects = [subject for subject in subjects if subject.strength]
    weights = text_weights(query, key, subjects, heads=heads)  # P, (B, H, L, T)
    v = per_head(value, heads).to(weights)
    mixed = v
    for subject in subjects:
        each = per_head(subject.value, heads).to(weights)  # (1|B, H, N, d)
        marked = at_tokens(subject.mask, weights)  # (B, 1, 1, T)
        weights = weights * (1 + (each.shape[2] - 1) * marked)
        if subject.alpha is not None:
            each = each / norm(each, subject).clamp_min(EPSILON)
        star = each.mean(dim=2, keepdim=True)  # (1|B, H, 1, d)
        if subject.alpha is not None:
            star = star * (subject.alpha * norm(v, subject))  # (B, H, T, d)
        mixed = torch.where(marked.mT.bool(), star, mixed)
    out = joined((weights / weights.sum(dim=-1, keepdim=True)) @ mixed).to(query.dtype)
    return torch.where(carried(subjects, v)[:, 0], out, plain_attention(query, key, value, heads=heads))


class MultipleTokens(Mechanism):
    """One text token for each of the subject's tokens, with the word's key: the encoder's own stay unread."""

    name, title = "multiple", "Multiple Tokens"
    unused, attention = ("to_key",), staticmethod(in_place_of_word)
