"""Nested attention written out as the paper states it: slow, in fp64, with the mixed values built in full.

What the tests of `nested_attention.attention` compare against. No line here is shared with the library, and
nothing is rearranged: Eq. 2, 3 and 4 in their order, one row of the batch at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def explicit_nested_attention(query: Tensor, key: Tensor, value: Tensor, subjects, *, heads: int) -> Tensor:
    """(B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d) in fp64."""
    rows = [
        _row(query[row].double(), key[row].double(), value[row].double(), subjects, heads, row)
        for row in range(query.shape[0])
    ]
    return torch.stack(rows)


def _row(query: Tensor, key: Tensor, value: Tensor, subjects, heads: int, row: int) -> Tensor:
    length, tokens = len(query), len(key)
    scores = per_head(query, heads) @ per_head(key, heads).transpose(1, 2)  # (H, L, T)
    scores = scores / math.sqrt(query.shape[1] // heads)
    mixed = value.expand(length, tokens, -1).clone()  # (L, T, H·d): a value of its own for every query

    for subject in subjects:
        mask = subject.mask[row]
        if subject.strength == 0 or not mask.any():
            continue
        region = torch.ones(length).double()
        if subject.region is not None:
            region = of_row(subject.region, row).double()
        gate = subject.strength * region  # (L,)
        value_gate = torch.full_like(gate, subject.strength) if subject.bounded else gate

        # Eq. 2: the nested layer's own attention, over the subject's tokens.
        nested = per_head(query, heads) @ per_head(of_row(subject.key, row).double(), heads).transpose(1, 2)
        nested = nested / math.sqrt(query.shape[1] // heads)  # (H, L, N)
        if subject.token_bias is not None:
            bias = subject.token_bias
            nested = nested + (bias if bias.ndim == 1 else of_row(bias, row)).double()
        star = nested.softmax(-1) @ per_head(of_row(subject.value, row).double(), heads)  # (H, L, d)

        for token in mask.nonzero().flatten().tolist():
            scale = 1 + gate * (subject.attention_scale - 1)  # λ_q
            score = scores[:, :, token]  # (H, L)
            choose = torch.maximum if subject.attention_scale >= 1 else torch.minimum
            scores = scores.clone()
            scores[:, :, token] = choose(score, scale[None, :] * score)

            text_value = per_head(value[token][None], heads)  # (H, 1, d)
            regular = star
            if subject.alpha is not None:
                size = text_value.norm(dim=2, keepdim=True)  # per head
                length_of_star = star.norm(dim=2, keepdim=True)
                if subject.norm == "inner":
                    size = size.square().sum(0, keepdim=True).sqrt()
                    length_of_star = length_of_star.square().sum(0, keepdim=True).sqrt()
                regular = subject.alpha * size * star / length_of_star
            moved = text_value + value_gate[None, :, None] * (regular - text_value)  # (H, L, d)
            mixed[:, token] = moved.transpose(0, 1).reshape(length, -1)

        if subject.bounded and subject.region is not None:
            word = subject.mask[row] if subject.word is None else subject.word[row]
            scores = torch.where(word[None, None, :], scores + region.log()[None, :, None], scores)

    # Eq. 3 and 4: the text's attention over values that differ from query to query.
    probabilities = scores.softmax(-1)  # (H, L, T)
    mixed = mixed.reshape(length, tokens, heads, -1)  # (L, T, H, d)
    return torch.einsum("hlt,lthd->lhd", probabilities, mixed).reshape(length, -1)


def per_head(x: Tensor, heads: int) -> Tensor:
    """(L, H·d) → (H, L, d)."""
    return x.reshape(len(x), heads, -1).transpose(0, 1)


def of_row(x: Tensor, row: int) -> Tensor:
    """A tensor's row, where its only row stands for every row."""
    return x[0] if len(x) == 1 else x[row]
