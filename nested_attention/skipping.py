"""Below the floor, first way: leave out the queries that a subject hardly changes. Off unless asked for.

A query that does not attend to s* is the text's alone, whatever stands there. How much it could change at
most is known from P[s*] and norms, before any of the nested attention is computed:

    |Σ P[s*]·g·(v*_q − V[s*])|  ≤  Σ max_h P_h[s*] · g · (|v*_q| + |V[s*]|),  |v*_q| = α·|V[s*]| (Section 3.2)

so the queries below a tolerance are skipped, and the output is off by at most that tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .attention import BoundSubject, subject_correction
from .errors import NestedAttentionError
from .rows import Rows, read_rows


def skipping_correction(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subjects: Sequence[BoundSubject],
    *,
    heads: int,
    tolerance: float,
    rows: Rows | None = None,
) -> Tensor:
    """`subject_correction` with 0 for the queries whose change is below a tolerance in every row.

    tolerance: of the mean norm of the text's values, > 0; each query's output is off by at most that. Which
    queries are left depends on them, so a GPU is waited for. Raises NestedAttentionError as `change_bound`
    does.
    """
    rows = read_rows(subjects, query.device) if rows is None else rows
    bound = change_bound(query, key, value, subjects, heads=heads, rows=rows)  # (B, L)
    scale = value.float().norm(dim=-1).mean(dim=1, keepdim=True)  # (B, 1)
    kept = (bound > tolerance * scale).any(dim=0).nonzero().squeeze(1)
    if len(kept) == query.shape[1]:
        return subject_correction(query, key, value, subjects, heads=heads, rows=rows)
    out = torch.zeros_like(query)
    if len(kept):
        here = [s if s.region is None else replace(s, region=s.region[:, kept]) for s in subjects]
        found = subject_correction(query[:, kept], key, value, here, heads=heads, rows=rows)
        out[:, kept] = found
    return out


def change_bound(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subjects: Sequence[BoundSubject],
    *,
    heads: int,
    rows: Rows | None = None,
) -> Tensor:
    """What the subjects change of each query's output at most, as a norm over all heads, (B, L) in fp32.

    Raises NestedAttentionError for λ ≠ 1 and for a bounded region, which change the softmax itself.
    """
    for subject in subjects:
        if subject.strength and (subject.attention_scale != 1 or subject.bounded):
            raise NestedAttentionError(
                f"skipping queries: a subject has attention_scale {subject.attention_scale} and bounded "
                f"{subject.bounded}; expected 1 and False, for which what is skipped is known to be small"
            )
    rows = read_rows(subjects, query.device) if rows is None else rows
    bound = query.new_zeros(query.shape[:2], dtype=torch.float32)
    for group in rows.groups:
        q, k, v = (_per_head(x[group.rows], heads) for x in (query, key, value))
        for number, marks in group.carried:
            subject = subjects[number]
            share = _share(q, k, marks.tokens) * marks.counts[:, None]  # (n, L, K), max over heads of P[s*]
            own = v.transpose(1, 2).take_along_dim(marks.tokens[..., None, None], dim=1)  # (n, K, H, d)
            own = own.float().flatten(2).norm(dim=-1)  # (n, K), |V[s*]|
            if subject.alpha is None:  # a mean of V̆'s rows in each head, so no longer than the longest
                nested = subject.value if len(subject.value) == 1 else subject.value[group.rows]
                longest = _per_head(nested, heads).float().norm(dim=-1).amax(dim=-1)  # (1|n, H)
                length = longest.norm(dim=-1)[:, None]
            else:
                length = subject.alpha * own
            change = subject.strength * (share * (length + own)[:, None]).sum(dim=-1)  # (n, L)
            if subject.region is not None:
                change = change * (subject.region if len(subject.region) == 1 else subject.region[group.rows])
            bound[group.rows] += change
    return bound


def _share(q: Tensor, k: Tensor, tokens: Tensor, step: int = 1024) -> Tensor:
    """max_h P_h of each query at the tokens (n, K): (n, L, K)."""
    scale, keys = q.shape[-1] ** -0.5, k.mT.float()
    parts = []
    for chunk in q.split(step, dim=2):
        probs = (chunk.float() @ keys * scale).softmax(dim=-1)  # (n, H, l, T)
        index = tokens[:, None, None].expand(-1, *probs.shape[1:3], -1)
        parts.append(probs.gather(-1, index).amax(dim=1))
    return torch.cat(parts, dim=1)


def _per_head(x: Tensor, heads: int) -> Tensor:
    """(n, L, H·d) → (n, H, L, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
