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
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

EPSILON = 1e-6  # smallest norm divided by
FAR = -1e4  # log 0: softmax gives exactly 0 beside any other token, and no NaN where there is none
CPU_LOGITS, DEVICE_LOGITS = 2**21, 2**25  # logits held at once: what stays near a CPU's cache; 128 MiB
Subjects = Sequence["BoundSubject"]


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
    query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int
) -> Tensor:
    """Text cross-attention with nested values at the marked tokens (Eq. 2 to 4), in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d). Rows that carry no subject are plain attention.
    """
    return _by_rows(partial(_nested, heads=heads), subjects, query, key, value)


def subject_correction(
    query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int, plain: Tensor | None = None
) -> Tensor:
    """The nested output minus the plain text attention, so that a host can add it to whatever it already has.

    `plain` may be passed when the caller has the plain text attention's output (and nothing else) at hand.
    nested_cross_attention(…) == plain + subject_correction(…). Zero in rows that carry no subject.
    """

    def run(carried: Subjects, q: Tensor, k: Tensor, v: Tensor, text: Tensor | None = None) -> Tensor:
        if not carried:
            return torch.zeros_like(q)
        if all(s.attention_scale == 1 and not (s.bounded and s.region is not None) for s in carried):
            return _nested(carried, q, k, v, heads, text=False)  # the softmax is the same: P V cancels
        return _nested(carried, q, k, v, heads) - (_nested([], q, k, v, heads) if text is None else text)

    return _by_rows(run, subjects, query, key, value, *([] if plain is None else [plain]))


def check_subjects(subjects: Subjects, batch: int, tokens: int) -> None:
    """ValueError for what the layers take for granted; called once, where subjects are bound.

    Masks must be (batch, tokens), two subjects never share a token, a token_bias leaves a token in each row.
    """
    taken = torch.zeros(batch, tokens, dtype=torch.bool)
    for i, s in enumerate(subjects):
        mask, word = s.mask.cpu(), s.mask if s.word is None else s.word
        if not mask.shape == word.shape == taken.shape:
            found = f"found {tuple(mask.shape)} and {tuple(word.shape)}."
            raise ValueError(f"Subject {i}: mask and word must be (batch, tokens) {batch, tokens}, {found}")
        if clash := (taken & mask).nonzero().tolist():
            found = f"{clash} carry another subject already. Give each a word, or an occurrence, of its own."
            raise ValueError(f"Subject {i}: the (row, token) {found}")
        taken |= mask
        if s.token_bias is not None and not s.token_bias.amax(-1).isfinite().all():
            found = "a row of token_bias has no finite entry, or NaN or +inf. Keep a token, at a finite bias."
            raise ValueError(f"Subject {i}: {found}")


def _nested(subjects: Subjects, q: Tensor, k: Tensor, v: Tensor, heads: int, text: bool = True) -> Tensor:
    """Eq. 3 and 4 for rows that all carry `subjects`; without `text` only Σ P[s*]·g·(v*_q − V[s*])."""
    q, k, v = (rearrange(x, "n l (h d) -> n h l d", h=heads) for x in (q, k, v))
    if not subjects:
        return rearrange(scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)")
    device, precise = q.device.type, torch.promote_types(q.dtype, torch.float32)
    autocast = torch.amp.is_autocast_available(device)  # would run the logits in half precision
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        k = k.mT.to(precise) * q.shape[-1] ** -0.5  # (n, H, d, T)
        size, limit = q[..., 0].numel() * k.shape[-1], CPU_LOGITS if device == "cpu" else DEVICE_LOGITS
        step = -(-q.shape[2] // -(-size // limit))  # even chunks of queries
        chunks = []
        for at in (slice(start, start + step) for start in range(0, q.shape[2], step)):
            x = q[:, :, at].to(precise) @ k  # (n, H, l, T)
            for subject in subjects:
                _reweight(x, subject, at)
            probs = x.softmax(dim=-1)
            out = (probs.to(v.dtype) @ v).to(precise) if text else probs.new_zeros(q[:, :, at].shape)
            for subject in subjects:
                _replace(out, q[:, :, at], v, probs, subject, at)
            chunks.append(rearrange(out.to(q.dtype), "n h l d -> n l (h d)"))
        return torch.cat(chunks, dim=1)


def _reweight(x: Tensor, subject: BoundSubject, at: slice) -> None:
    """Applies λ and `bounded` to the text's logits x (n, H, l, T), in place."""
    region, word = _region(subject, at, x), subject.mask if subject.word is None else subject.word
    mask, word = (tokens[:, None, None].to(x, non_blocking=True) for tokens in (subject.mask, word))
    if subject.attention_scale != 1:
        # max(x, λ_q·x) = x + (λ_q − 1)·relu(x) for λ_q ≥ 1, and for λ_q < 1 that is min(x, λ_q·x).
        x.addcmul_(x.relu(), mask * (subject.strength * region), value=subject.attention_scale - 1)
    if subject.bounded:
        x.add_(word * torch.where(region > 0, region.clamp_min(1e-30).log(), FAR))


def _replace(out: Tensor, q: Tensor, v: Tensor, probs: Tensor, subject: BoundSubject, at: slice) -> None:
    """Adds Σ P[s*]·g·(v*_q − V[s*]) over the subject's tokens to out (n, H, l, d), in place."""
    number = subject.mask.cumsum(dim=1) * subject.mask  # (n, T): 1 at a row's first s*, 2 at the next, …
    columns = torch.arange(1, int(number.max()) + 1, device=number.device)
    select = (number[:, None, :, None] == columns).to(probs, non_blocking=True)  # (n, 1, T, K)
    text_value = select.mT @ v.to(select)  # (n, H, K, d), V[s*]
    gate = subject.strength if subject.bounded else subject.strength * _region(subject, at, probs)
    weight = probs @ select * gate  # (n, H, l, K), P[s*]·g
    nested = (x.to(q.dtype).expand(len(q), -1, -1) for x in (subject.key, subject.value))
    k_nested, v_nested = (rearrange(x, "n t (h d) -> n h t d", h=q.shape[1]) for x in nested)
    bias = subject.token_bias  # (N,) or (1|n, N) → (1|n, 1, 1, N)
    bias = None if bias is None else torch.atleast_2d(bias)[:, None, None].to(q, non_blocking=True)
    star = scaled_dot_product_attention(q, k_nested, v_nested, attn_mask=bias)  # (n, H, l, d), v*_q of Eq. 2
    pull = weight.sum(dim=-1, keepdim=True)  # (n, H, l, 1), the factor of v*_q
    if subject.alpha is not None:
        goal = subject.alpha * _norm(text_value, subject)  # (n, 1|H, K, 1)
        pull = weight @ goal / _norm(star, subject).clamp_min(EPSILON)
    out.addcmul_(pull, star)
    out.view(-1, *out.shape[2:]).baddbmm_(weight.flatten(0, 1), text_value.flatten(0, 1), alpha=-1)


def _region(subject: BoundSubject, at: slice, like: Tensor) -> Tensor:
    """r, (1|n, 1, l, 1), or 1."""
    return like.new_ones(()) if subject.region is None else subject.region[:, None, at, None].to(like)


def _norm(x: Tensor, subject: BoundSubject) -> Tensor:
    """(n, H, ·, d) → (n, 1|H, ·, 1), in at least fp32."""
    precise, dims = torch.promote_types(x.dtype, torch.float32), (1, 3) if subject.norm == "inner" else 3
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)


def _by_rows(run: Callable[..., Tensor], subjects: Subjects, *tensors: Tensor) -> Tensor:
    """Calls run(carried, *tensors) on the rows that carry the same subjects; strength 0 carries nothing."""
    active = [s for s in subjects if s.strength]
    found = [s.mask.any(dim=1).tolist() for s in active]
    kinds = [tuple(rows[row] for rows in found) for row in range(len(tensors[0]))]
    order = sorted(range(len(kinds)), key=kinds.__getitem__)
    parts, fields = [], ("key", "value", "mask", "word", "token_bias", "region")
    for kind, group in groupby(order, key=kinds.__getitem__):
        rows = list(group)
        here = [s for s, yes in zip(active, kind, strict=True) if yes]
        carried = [replace(s, **{f: _take(getattr(s, f), rows) for f in fields}) for s in here]
        parts.append(run(carried, *(_take(x, rows) for x in tensors)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _take(out, sorted(range(len(order)), key=order.__getitem__))


def _take(x: Any, rows: list[int]) -> Any:
    """x[rows], a view where they are contiguous; one row, a vector or None is for every row."""
    if x is None or x.ndim == 1 or len(x) == 1:
        return x
    contiguous = rows == list(range(rows[0], rows[-1] + 1))
    return x[rows[0] : rows[-1] + 1] if contiguous else x[torch.tensor(rows).to(x.device, non_blocking=True)]
