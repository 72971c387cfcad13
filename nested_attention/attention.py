"""Nested attention: the value of one text token becomes a function of the image query.

    x     = Q Kᵀ / √d                           (B, H, L, T)  text cross-attention
    x[s*] = max(x[s*], λ·x[s*])                               identity–editability control, Section 5.1
    P     = softmax(x)
    v*_q  = softmax(Q K̆ᵀ / √d) V̆                (B, H, L, d)  nested attention over a subject's tokens, Eq. 2
    v*_q  ← α · |V[s*]| · v*_q / |v*_q|                       regularisation, Section 3.2
    out_q = Σ_{s≠s*} P[s] V[s] + P[s*] v*_q                   Eq. 3 and 4

after Patashnik et al., "Nested Attention: Semantic-aware Attention Values for Concept Personalization", SIGGRAPH
2025. Only row s* of V depends on the query, so the mixed values (L, T, d) are never built: a subject is the
rank-one correction P[s*]·(v*_q − V[s*]) of P V.

Letters: B batch, n rows of it that carry the same subjects, H heads, d head size, L image queries, l of them in
one chunk, T text tokens, N subject tokens, K marked tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

EPSILON = 1e-6  # smallest norm divided by
FAR = -1e4  # log 0: softmax gives exactly 0 beside any other token, and no NaN where there is none
CPU_LOGITS, DEVICE_LOGITS = 2**21, 2**25  # logits held at once: what stays near a CPU's cache; 128 MiB


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundSubject:
    """A subject bound to tokens of the text at one cross-attention layer; every default is the paper's method.

    For a query with region weight r (1 without a region) the gate is g = strength·r. Then λ_q = 1 + g·(λ − 1), and
    the value at s* is V[s*] + g·(v*_q − V[s*]). λ < 1 lowers the attention to s* (min instead of max).
    ValueError for a strength outside [0, 1]; what needs a look into tensors is left to `check_subjects`.
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
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int
) -> Tensor:
    """Text cross-attention with nested values at the marked tokens (Eq. 2 to 4), in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d). Rows that carry no subject are plain attention.
    """

    def run(carried: list[BoundSubject], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _nested(q, k, v, carried, heads) if carried else _plain(q, k, v, heads)

    return _by_rows(run, subjects, query, key, value)


def subject_correction(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int,
    plain: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The nested output minus the plain text attention, so that a host can add it to whatever it already has.

    `plain` may be passed when the caller has the plain text attention's output (and nothing else) at hand.
    nested_cross_attention(…) == plain + subject_correction(…). Zero in rows that carry no subject.
    """

    def run(carried: list[BoundSubject], q: Tensor, k: Tensor, v: Tensor, p: Tensor | None = None) -> Tensor:
        if not carried:
            return torch.zeros_like(q)
        if all(s.attention_scale == 1.0 and (s.region is None or not s.bounded) for s in carried):
            return _nested(q, k, v, carried, heads, text=False)  # the softmax is unchanged: P V cancels
        return _nested(q, k, v, carried, heads) - (_plain(q, k, v, heads) if p is None else p)

    return _by_rows(run, subjects, query, key, value, *([] if plain is None else [plain]))


def check_subjects(subjects: Sequence[BoundSubject], batch: int, tokens: int) -> None:
    """Refuses, with a ValueError, what the layers take for granted; called once, where subjects are bound.

    Masks that are not (batch, tokens), two subjects on one token, a token_bias without a finite entry in a row.
    """
    taken = torch.zeros(batch, tokens, dtype=torch.bool)
    for i, s in enumerate(subjects):
        if bad := [x.shape for x in (s.mask, s.word) if x is not None and x.shape != taken.shape]:
            raise ValueError(f"Subject {i}: mask and word must be (batch {batch}, tokens {tokens}), found {bad}.")
        if clash := (taken & s.mask.cpu()).nonzero().tolist():
            raise ValueError(f"Subject {i} is bound to token {clash[0][1]} of row {clash[0][0]}, which carries "
                             "another subject already. Give each a word, or an occurrence, of its own.")  # fmt: skip
        taken |= s.mask.cpu()
        bias, size = s.token_bias, s.key.shape[1]
        if bias is not None and (bias.shape[-1] != size or not bias.amax(-1).isfinite().all()):
            raise ValueError(f"Subject {i}: each row of token_bias must have {size} entries, a finite one among "
                             f"them, none NaN or +inf; found {bias.tolist()}. Keep at least one token.")  # fmt: skip


def _nested(
    query: Tensor, key: Tensor, value: Tensor, subjects: list[BoundSubject], heads: int, text: bool = True
) -> Tensor:
    """Eq. 3 and 4 for rows that all carry `subjects`; without `text` only Σ P[s*]·g·(v*_q − V[s*])."""
    (rows, length, inner), device = query.shape, query.device
    precise = torch.promote_types(query.dtype, torch.float32)
    autocast = torch.amp.is_autocast_available(device.type)  # would run the logits in half precision
    with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
        k = _split(key, heads).mT.to(precise) * (inner // heads) ** -0.5  # (n, H, d, T)
        v = _split(value, heads)  # (n, H, T, d)
        limit = CPU_LOGITS if device.type == "cpu" else DEVICE_LOGITS
        step = -(-length // -(-rows * heads * length * key.shape[1] // limit))  # even chunks of queries
        chunks = []
        for at in (slice(start, start + step) for start in range(0, length, step)):
            q = _split(query[:, at], heads)  # (n, H, l, d)
            x = q.to(precise) @ k  # (n, H, l, T)
            for subject in subjects:
                _reweight(x, subject, at)
            probs = x.softmax(dim=-1)
            out = (probs.to(v.dtype) @ v).to(precise) if text else probs.new_zeros(q.shape)
            for subject in subjects:
                _replace(out, q, v, probs, subject, at)
            chunks.append(rearrange(out.to(query.dtype), "n h l d -> n l (h d)"))
        return torch.cat(chunks, dim=1)


def _reweight(x: Tensor, subject: BoundSubject, at: slice) -> None:
    """Applies λ and `bounded` to the text's logits x (n, H, l, T), in place."""
    scale, region = subject.attention_scale, _region(subject, at, x.device)
    if scale != 1.0:
        # max(x, λ_q·x) = x + (λ_q − 1)·relu(x) for λ_q ≥ 1, and for λ_q < 1 that is min(x, λ_q·x).
        x.addcmul_(x.relu(), _like(subject.mask, x)[:, None, None, :] * (subject.strength * region), value=scale - 1)
    if subject.bounded and isinstance(region, Tensor):
        word = subject.mask if subject.word is None else subject.word
        log_region = torch.where(region > 0, region.clamp_min(1e-30).log(), FAR)  # (1|n, 1, l, 1)
        x.add_(_like(word, x)[:, None, None, :] * log_region)


def _replace(out: Tensor, q: Tensor, v: Tensor, probs: Tensor, subject: BoundSubject, at: slice) -> None:
    """Adds Σ P[s*]·g·(v*_q − V[s*]) over the subject's tokens to out (n, H, l, d), in place."""
    order = subject.mask.cumsum(dim=1) * subject.mask  # (n, T): 1 at a row's first marked token, 2 at the next
    numbers = torch.arange(1, int(order.max()) + 1, device=order.device)
    select = _like(order[:, None, :, None] == numbers, probs)  # (n, 1, T, K), picks the columns s*
    text_value = select.mT @ v.to(select)  # (n, H, K, d), V[s*]
    weight = probs @ select  # (n, H, l, K), P[s*]
    weight = weight * subject.strength * (1.0 if subject.bounded else _region(subject, at, q.device))

    nested = (x.to(q.dtype).expand(len(q), -1, -1) for x in (subject.key, subject.value))
    k_nested, v_nested = (_split(x, q.shape[1]) for x in nested)  # (n, H, N, d)
    bias = subject.token_bias
    bias = None if bias is None else rearrange(torch.atleast_2d(bias.to(q)), "n t -> n 1 1 t")
    star = scaled_dot_product_attention(q, k_nested, v_nested, attn_mask=bias)  # (n, H, l, d), v*_q of Eq. 2
    if subject.alpha is None:
        pull = weight.sum(dim=-1, keepdim=True)  # (n, H, l, 1), the factor of v*_q
    else:
        goal = subject.alpha * _norm(text_value, subject)  # (n, 1|H, K, 1)
        pull = weight @ goal / _norm(star, subject).clamp_min(EPSILON)
    out.addcmul_(pull, star)
    out.view(-1, *out.shape[2:]).baddbmm_(weight.flatten(0, 1), text_value.flatten(0, 1), alpha=-1)


def _region(subject: BoundSubject, at: slice, device: torch.device) -> Tensor | float:
    """r, (1|n, 1, l, 1)."""
    return 1.0 if subject.region is None else subject.region[:, None, at, None].to(device)


def _norm(x: Tensor, subject: BoundSubject) -> Tensor:
    """(n, H, ·, d) → (n, 1|H, ·, 1), in at least fp32."""
    dims, precise = (1, 3) if subject.norm == "inner" else 3, torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)


def _plain(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (_split(x, heads) for x in (query, key, value))
    return rearrange(scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")


def _split(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b l (h d) -> b h l d", h=heads)


def _like(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.device, other.dtype, non_blocking=True)


def _by_rows(run: Callable[..., Tensor], subjects: Sequence[BoundSubject], *tensors: Tensor) -> Tensor:
    """Calls run(carried, *tensors) on the rows that carry the same subjects; strength 0 carries nothing."""
    active = [subject for subject in subjects if subject.strength]
    found = [subject.mask.any(dim=1).tolist() for subject in active]
    groups: dict[tuple[bool, ...], list[int]] = {}
    for row in range(len(tensors[0])):
        groups.setdefault(tuple(rows[row] for rows in found), []).append(row)
    parts = []
    for carried, rows in groups.items():
        here = [_narrow(subject, rows) for subject, yes in zip(active, carried) if yes]
        parts.append(run(here, *(_take(x, rows) for x in tensors)))
    order = [row for rows in groups.values() for row in rows]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _take(out, sorted(range(len(order)), key=order.__getitem__))


def _narrow(subject: BoundSubject, rows: list[int]) -> BoundSubject:
    tensors = {name: x for name, x in vars(subject).items() if isinstance(x, Tensor) and x.ndim > 1}
    return replace(subject, **{name: _take(x, rows) for name, x in tensors.items()})


def _take(x: Tensor, rows: list[int]) -> Tensor:
    """x[rows], a view where they are contiguous; a single row stands for every row."""
    if len(x) == 1:
        return x
    if rows == list(range(rows[0], rows[-1] + 1)):
        return x[rows[0] : rows[-1] + 1]
    return x[torch.tensor(rows).to(x.device, non_blocking=True)]
