"""Nested attention: the value of one text token becomes a function of the image query.

    x     = Q Kᵀ / √d                           (B, H, L, T)  text cross-attention
    x[s*] = max(x[s*], λ·x[s*])                               identity–editability control, Section 5.1
    P     = softmax(x)
    v*_q  = softmax(Q K̆ᵀ / √d) V̆                (B, H, L, d)  nested attention over a subject's tokens, Eq. 2
    v*_q  ← α · |V[s*]| · v*_q / |v*_q|                       regularisation, Section 3.2
    out_q = Σ_{s≠s*} P[s] V[s] + P[s*] v*_q                   Eq. 3 and 4

after Patashnik et al., "Nested Attention: Semantic-aware Attention Values for Concept Personalization",
SIGGRAPH 2025. Only row s* of V depends on the query, so the mixed values (L, T, d) are never built: a subject
is the rank-one correction P[s*]·(v*_q − V[s*]) of P V. Letters: B batch, n of its rows, H heads, d head size,
L image queries, l of them in a chunk, T text tokens, N subject tokens, K marked tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .rows import Marks, Rows, by_rows, take
from .rows import check_subjects as check_subjects

EPSILON = 1e-6  # smallest norm divided by
FAR = -1e4  # log 0: softmax gives exactly 0 beside any other token, and no NaN where there is none
CPU_LOGITS, DEVICE_LOGITS = 2**19, 2**25  # logits held at once: what stays near a CPU's cache; 128 MiB
Subjects = Sequence["BoundSubject"]
Carried = Sequence[tuple["BoundSubject", Marks]]


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundSubject:
    """A subject bound to tokens of the text at one cross-attention layer; the defaults are the paper's.

    For a query with region weight r (1 without a region) the gate is g = strength·r: λ_q = 1 + g·(λ − 1), and
    the value at s* is V[s*] + g·(v*_q − V[s*]). λ < 1 lowers the attention to s* (min instead of max).
    ValueError for a strength outside [0, 1]; what needs a look into tensors is for `check_subjects`.
    """

    key: Tensor  # K̆ (1|B, N, H·d)
    value: Tensor  # V̆ (1|B, N, H·d); a batch may carry another subject in each row
    mask: Tensor  # (B, T) bool: tokens whose value is replaced; on the CPU it is read without a device sync
    word: Tensor | None = None  # (B, T) bool: all tokens of the word, for `bounded`; None: the mask
    alpha: float | None = 2.0  # norm of v*_q as a multiple of |V[s*]|; None: no regularisation
    attention_scale: float = 1.0  # λ
    strength: float = 1.0  # in [0, 1]; 0 skips the subject, λ and bounded included
    token_bias: Tensor | None = None  # (N,) or (1|B, N), added to the nested logits; -inf removes a token
    region: Tensor | None = None  # (1|B, L) in [0, 1]
    bounded: bool = False  # adds log r to the word's logits; the value is then gated by strength alone
    norm: Literal["inner", "head"] = "inner"  # norms over all heads together, or in each head

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"A subject's strength must lie in [0, 1], found {self.strength}.")


def nested_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int,
    rows: Rows | None = None, unmarked: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Text cross-attention with nested values at the marked tokens (Eq. 2 to 4), in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d).
    rows: `read_rows(subjects, query.device)`, where several layers have subjects with these masks.
    unmarked: the attention of rows that carry no subject, (q, k, v) → out; plain attention if None.
    """

    def run(carried: Carried, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return unmarked(q, k, v) if unmarked and not carried else _nested(carried, q, k, v, heads)

    return by_rows(run, subjects, rows, query, key, value)


def subject_correction(
    query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int,
    plain: Tensor | None = None, rows: Rows | None = None,
) -> Tensor:  # fmt: skip
    """The nested output minus the plain text attention, so that a host can add it to whatever it already has.

    `plain` may be passed when the caller has the plain text attention's output (and nothing else) at hand.
    nested_cross_attention(…) == plain + subject_correction(…). Zero in rows that carry no subject.
    """

    def run(carried: Carried, q: Tensor, k: Tensor, v: Tensor, text: Tensor | None = None) -> Tensor:
        if not carried:
            return torch.zeros_like(q)
        if all(s.attention_scale == 1 and not (s.bounded and s.region is not None) for s, _ in carried):
            return _nested(carried, q, k, v, heads, text=False)  # the softmax is the same: P V cancels
        return _nested(carried, q, k, v, heads) - (_nested([], q, k, v, heads) if text is None else text)

    return by_rows(run, subjects, rows, query, key, value, *([] if plain is None else [plain]))


def _nested(carried: Carried, q: Tensor, k: Tensor, v: Tensor, heads: int, text: bool = True) -> Tensor:
    """Eq. 3 and 4 for rows that carry these subjects; without `text` only Σ P[s*]·g·(v*_q − V[s*])."""
    if q.device.type == "cpu" and len(q) > 1 and q.shape[1] * k.shape[1] * heads > CPU_LOGITS and carried:
        rows = ([(s, marks.row(i)) for s, marks in carried] for i in range(len(q)))  # to stay in the cache
        parts = zip(rows, q.split(1), k.split(1), v.split(1), strict=True)
        return torch.cat([_nested(one, a, b, c, heads, text) for one, a, b, c in parts])
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    if not carried:
        return rearrange(scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)")
    device, precise = q.device.type, torch.promote_types(q.dtype, torch.float32)
    autocast = torch.amp.is_autocast_available(device)  # would run the logits in half precision
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        values = [_nested_value(q, v, subject, marks) for subject, marks in carried]
        k = k.mT.to(precise) * q.shape[-1] ** -0.5  # (n, H, d, T)
        v_text = v.to(precise) if device == "cpu" and v.dtype == torch.float16 else v  # slow in fp16
        size, limit = q[..., 0].numel() * k.shape[-1], CPU_LOGITS if device == "cpu" else DEVICE_LOGITS
        step = -(-q.shape[2] // -(-size // limit))  # even chunks of queries
        chunks = []
        for at in (slice(start, start + step) for start in range(0, q.shape[2], step)):
            x = q[:, :, at].to(precise) @ k  # (n, H, l, T)
            for subject, marks in carried:
                x = _reweight(x, subject, marks, at)
            probs = x.softmax(dim=-1)  # shared by the text and all subjects
            changes = [_change(probs, *one, value, at) for one, value in zip(carried, values, strict=True)]
            if text:
                changes.append((probs.to(v_text.dtype) @ v_text).transpose(1, 2))
            chunks.append(reduce(Tensor.add_, changes).to(q.dtype).flatten(2))
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def _reweight(x: Tensor, subject: BoundSubject, marks: Marks, at: slice) -> Tensor:
    """The text's logits x (n, H, l, T) under λ and `bounded`."""
    if subject.attention_scale != 1:
        # max(x, λ_q·x) = x + (λ_q − 1)·relu(x) for λ_q ≥ 1, and for λ_q < 1 that is min(x, λ_q·x).
        gain = (subject.attention_scale - 1) * _gate(subject, marks, at, x).transpose(1, 2)  # (n, 1, l, K)
        index = _columns(marks.tokens, x)
        x = x.scatter_add(-1, index, x.gather(-1, index).relu() * gain)
    if subject.bounded and subject.region is not None:
        region = take(subject.region, marks.rows)[:, None, at, None].to(x)  # (1|n, 1, l, 1)
        logs = torch.where(region > 0, region.clamp_min(1e-30).log(), FAR)
        x = x + marks.word[:, None, None] * logs
    return x


def _nested_value(q: Tensor, v: Tensor, subject: BoundSubject, marks: Marks) -> tuple[Tensor, Tensor, Tensor]:
    """From q (n, H, L, d) and the text's v (n, H, T, d): v*_q of Eq. 2 (n, L, H, d), what brings it to its
    length at each s* (n, L, 1|H, K), and V[s*] (n, K, H, d)."""
    nested = (take(x, marks.rows).to(q.dtype).expand(len(q), -1, -1) for x in (subject.key, subject.value))
    k_nested, v_nested = (rearrange(x, "n t (h d) -> n h t d", h=q.shape[1]) for x in nested)
    bias = take(subject.token_bias, marks.rows)  # (N,) or (1|n, N) → (1|n, 1, 1, N)
    bias = None if bias is None else torch.atleast_2d(bias)[:, None, None].to(q, non_blocking=True)
    star = scaled_dot_product_attention(q, k_nested, v_nested, attn_mask=bias).transpose(1, 2)
    text_value = v.transpose(1, 2).take_along_dim(marks.tokens[..., None, None], dim=1)
    if subject.alpha is None:
        return star, star.new_ones(()).expand(len(q), q.shape[2], 1, 1), text_value
    goal = subject.alpha * _norm(text_value, subject)  # (n, K, 1|H, 1)
    return star, rearrange(goal, "n k h 1 -> n 1 h k") / _norm(star, subject).clamp_min(EPSILON), text_value


def _change(
    probs: Tensor, subject: BoundSubject, marks: Marks, value: tuple[Tensor, Tensor, Tensor], at: slice
) -> Tensor:
    """Σ P[s*]·g·(v*_q − V[s*]) over the subject's tokens, (n, l, H, d)."""
    star, factor, text_value = value
    weight = probs.gather(-1, _columns(marks.tokens, probs)).transpose(1, 2)  # (n, l, H, K), P[s*]
    weight = weight * _gate(subject, marks, at, probs, bounded=subject.bounded)
    change = star[:, at] * (weight * factor[:, at]).sum(dim=-1, keepdim=True)
    for i in range(weight.shape[-1]):
        change.addcmul_(weight[..., i : i + 1], text_value[:, i : i + 1].to(weight), value=-1)
    return change


def _gate(subject: BoundSubject, marks: Marks, at: slice, like: Tensor, bounded: bool = False) -> Tensor:
    """g of each query at each of the subject's tokens, (n, 1|l, 1, K); strength alone if `bounded`."""
    gate = subject.strength * marks.counts[:, None, None].to(like)  # 0 where a row has fewer tokens
    if bounded or subject.region is None:
        return gate
    return gate * take(subject.region, marks.rows)[:, at, None, None].to(like)


def _columns(tokens: Tensor, like: Tensor) -> Tensor:
    """(n, K) positions as an index into the last dimension of (n, H, l, T)."""
    return tokens[:, None, None].expand(-1, *like.shape[1:3], -1)


def _norm(x: Tensor, subject: BoundSubject) -> Tensor:
    """(n, ·, H, d) → (n, ·, 1|H, 1), in at least fp32."""
    precise = torch.promote_types(x.dtype, torch.float32)
    x = x if subject.norm == "head" else x.flatten(2)[:, :, None]
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
