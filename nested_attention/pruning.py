"""Below the floor, second way: a subject with fewer tokens. Off unless asked for.

The cost of a subject is in proportion to its tokens. Those that no query attends to can go: a query whose
dropped tokens had a share m of its nested attention has its v*_q moved by at most 2·m·max|V̆|. Instead of
being dropped a token can be merged into its nearest neighbour, which then counts for both (a log-weight in
`token_bias`): equal tokens merge without any change.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .errors import NestedAttentionError
from .subject import Subject


def token_usage(query: Tensor, key: Tensor, *, heads: int, token_bias: Tensor | None = None) -> Tensor:
    """The largest share of a query's nested attention that each token gets, over queries and heads.

    (B, L, H·d), K̆ (1|B, N, H·d), bias (N,) or (1|B, N) → (B, N) in fp32. Over layers and steps take the
    maximum.
    """
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (query, key))
    bias = 0.0 if token_bias is None else torch.atleast_2d(token_bias.float())[:, None, None]
    usage = query.new_zeros(len(query), key.shape[1], dtype=torch.float32)
    for chunk in q.split(1024, dim=2):
        probs = (chunk @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(dim=-1)  # (B, H, l, N)
        usage = torch.maximum(usage, probs.amax(dim=(1, 2)))
    return usage


def prune_subject(subject: Subject, usage: Tensor, keep: int, *, merge: bool = False) -> Subject:
    """The subject with its `keep` most used tokens.

    usage: (N,), as `token_usage` measures it. merge: what is not kept joins the nearest token that is.
    Raises NestedAttentionError for another number of usages than tokens, and for keep outside 1 … N.
    """
    count = len(subject.tokens)
    if usage.shape != (count,):
        raise NestedAttentionError(
            f"pruning: usage has shape {tuple(usage.shape)}; expected ({count},), one number a token"
        )
    if not 1 <= keep <= count:
        raise NestedAttentionError(f"pruning: {keep} tokens are to be kept of {count}; expected 1 to {count}")
    tokens, bias = prune_tokens(subject.tokens, subject.token_bias, usage, keep, merge=merge)
    return replace(subject, tokens=tokens, token_bias=bias)


def prune_tokens(
    tokens: Tensor, token_bias: Tensor, usage: Tensor, keep: int, *, merge: bool = False
) -> tuple[Tensor, Tensor]:
    """(N, width), (N,), (N,) → (keep, width), (keep,): `prune_subject` for its tensors. Order is kept."""
    kept = usage.argsort(descending=True, stable=True)[:keep].sort().values
    if not merge or keep == len(tokens):
        return tokens[kept], token_bias[kept]
    directions = torch.nn.functional.normalize(tokens.float(), dim=-1)
    nearest = (directions @ directions[kept].T).argmax(dim=-1)  # (N,), where each token goes
    nearest[kept] = torch.arange(keep, device=nearest.device)
    weights = token_bias.float().exp()  # a token of log-weight b counts as exp(b) tokens
    sums = weights.new_zeros(keep).index_add(0, nearest, weights)
    mixed = tokens.new_zeros(keep, tokens.shape[1], dtype=torch.float32)
    mixed = mixed.index_add(0, nearest, weights[:, None] * tokens.float())
    empty = sums == 0  # a cluster of removed tokens (bias -inf) only
    mixed = torch.where(empty[:, None], tokens[kept].float(), mixed / sums.clamp_min(1e-30)[:, None])
    return mixed.to(tokens.dtype), (sums.log() - sums.max().log()).to(token_bias.dtype)
