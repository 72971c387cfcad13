"""Nested attention: the value of one text token becomes a function of the image query.

    x     = Q Kᵀ / √d                           (B, H, L, T)  text cross-attention
    x[s*] = max(x[s*], λ·x[s*])                               identity–editability control, Section 5.1
    P     = softmax(x)
    v*_q  = softmax(Q K̆ᵀ / √d) V̆                (B, H, L, d)  nested attention over a subject's tokens, Eq. 2
    v*_q  ← α · |V[s*]| · v*_q / |v*_q|                       regularisation, Section 3.2
    out_q = Σ_{s≠s*} P[s] V[s] + P[s*] v*_q                   Eq. 3 and 4

Equations and sections are those of Patashnik et al., "Nested Attention: Semantic-aware Attention Values for
Concept Personalization", SIGGRAPH 2025. Only row s* of V depends on the query, so the mixed values (L, T, d)
are never built: out = P V + P[s*]·(v*_q − V[s*]), one rank-one correction a subject.

Letters: B batch, n rows of it that carry the same subjects, H heads, d head size, L image queries, T text
tokens, N subject tokens, K marked tokens, l the queries of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

EPSILON = 1e-6  # smallest norm divided by
FAR = -1e4  # log 0: softmax gives exactly 0 beside any other token, and no NaN when there is none


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundSubject:
    """A subject bound to tokens of the text at one cross-attention layer.

    Every default is the paper's method. For a query with region weight r (1 without a region) the gate is
    g = strength·r: λ_q = 1 + g·(λ − 1), and the value at s* is V[s*] + g·(v*_q − V[s*]). λ < 1 lowers the
    attention to s* (min instead of max). Raises ValueError for a strength outside [0, 1]; what needs a look
    into tensors is checked by `check_subjects`, once, not in every layer.
    """

    key: Tensor  # K̆ (1|B, N, H·d)
    value: Tensor  # V̆ (1|B, N, H·d); a batch may carry another subject in each row
    mask: Tensor  # (B, T) bool: tokens whose value is replaced. On the CPU, rows are found without a device sync
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

    @property
    def renormalises(self) -> bool:
        """Whether the text's attention itself changes, and not only the value at s*."""
        return self.attention_scale != 1.0 or (self.bounded and self.region is not None)


def nested_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int
) -> Tensor:
    """Text cross-attention with nested values at the marked tokens (Eq. 2 to 4).

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d), in the query's dtype. Rows that carry no subject are
    plain attention, for them nothing else is computed. Raises ValueError where a mask is not (B, T).
    """
    parts = []
    for rows, carried in _rows_by_subjects(subjects, query.shape[0], key.shape[1]):
        q, k, v = _take(query, rows), _take(key, rows), _take(value, rows)
        out = _nested(q, k, v, carried, heads, text=True) if carried else _attention(q, k, v, heads)
        parts.append((rows, out))
    return _put_together(parts)


def subject_correction(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int,
    plain: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The nested output minus the plain text attention, so that a host can add it to whatever it already has.

    `plain` may be passed when the caller has the plain text attention's output (and nothing else) at hand.
    nested_cross_attention(…) == plain + subject_correction(…). Shapes and errors as there; zero in rows
    that carry no subject.
    """
    parts = []
    for rows, carried in _rows_by_subjects(subjects, query.shape[0], key.shape[1]):
        q, k, v = _take(query, rows), _take(key, rows), _take(value, rows)
        if not carried:
            out = torch.zeros_like(q)
        elif any(subject.renormalises for subject in carried):
            text = _attention(q, k, v, heads) if plain is None else _take(plain, rows)
            out = _nested(q, k, v, carried, heads, text=True) - text
        else:  # the softmax is unchanged: P V cancels and need not be computed
            out = _nested(q, k, v, carried, heads, text=False)
        parts.append((rows, out))
    return _put_together(parts)


def _nested(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], heads: int, *, text: bool
) -> Tensor:
    """Eq. 3 and 4 for rows that all carry `subjects`; without `text` only Σ P[s*]·g·(v*_q − V[s*])."""
    precise = torch.promote_types(query.dtype, torch.float32)
    with _full_precision(query.device):
        k = _split(key.to(precise), heads).mT * (key.shape[-1] // heads) ** -0.5  # (n, H, d, T)
        v = _split(value, heads)  # (n, H, T, d)
        nests = [_Nest.build(query, v, subject, heads) for subject in subjects]
        chunks = []
        for at in _chunks(query.shape[1], query.shape[0] * heads * key.shape[1], query.device):
            scores = _split(query[:, at].to(precise), heads) @ k  # (n, H, l, T)
            for nest in nests:
                nest.reweight(scores, at)
            probs = scores.softmax(dim=-1)
            out = probs.to(v.dtype) @ v if text else 0.0  # (n, H, l, d)
            for nest in nests:
                out = out + nest.replacement(probs, at)
            chunks.append(rearrange(out.to(query.dtype), "n h l d -> n l (h d)"))
        return torch.cat(chunks, dim=1)


class _Nest(NamedTuple):
    """One subject's nested layer in rows that all carry it."""

    subject: BoundSubject
    token: Tensor  # (n, K) positions of s*, padded with unmarked ones where rows differ in their number
    marked: Tensor  # (n, K) bool, False at the padding
    text_value: Tensor  # (n, H, K, d), V[s*]
    star: Tensor  # (n, H, L, d), v*_q before regularisation

    @classmethod
    def build(cls, query: Tensor, v: Tensor, subject: BoundSubject, heads: int) -> _Nest:
        count = subject.mask.sum(dim=1)
        token = subject.mask.byte().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        marked = torch.arange(token.shape[1], device=count.device) < count[:, None]
        token, marked = (x.to(query.device, non_blocking=True) for x in (token, marked))
        text_value = v.take_along_dim(token[:, None, :, None], dim=2)
        key, value = (x.to(query.dtype).expand(len(query), -1, -1) for x in (subject.key, subject.value))
        bias = subject.token_bias
        if bias is not None:  # (N,) or (1|n, N) -> (1|n, 1, 1, N), the same for every head and query
            bias = rearrange(torch.atleast_2d(bias.to(query)), "n t -> n 1 1 t")
        star = _split(_attention(query, key, value, heads, bias), heads)
        return cls(subject, token, marked, text_value, star)

    def gate(self, at: slice) -> float | Tensor:
        """g = strength·r, (1|n, 1, l, 1) with a region."""
        region, strength = self.subject.region, self.subject.strength
        return strength if region is None else strength * region[:, None, at, None].to(self.star.device)

    def reweight(self, scores: Tensor, at: slice) -> None:
        """Applies λ and `bounded` to the logits (n, H, l, T), in place."""
        subject = self.subject
        if subject.attention_scale != 1.0:
            # max(x, λ_q·x) = x + (λ_q − 1)·relu(x) for λ_q ≥ 1, and the same is min(x, λ_q·x) for λ_q < 1.
            mask = subject.mask[:, None, None, :].to(scores.device, non_blocking=True)
            scores.addcmul_(scores.relu(), (mask * self.gate(at)).to(scores), value=subject.attention_scale - 1.0)
        if subject.bounded and subject.region is not None:
            region = subject.region[:, None, at, None].to(scores)
            log_region = torch.where(region > 0, region.clamp_min(1e-38).log(), FAR)
            word = subject.mask if subject.word is None else subject.word
            scores.add_(word[:, None, None, :].to(scores.device, non_blocking=True) * log_region)

    def replacement(self, probs: Tensor, at: slice) -> Tensor:
        """Σ P[s*]·g·(v*_q − V[s*]) over the subject's tokens: (n, H, l, T) -> (n, H, l, d)."""
        subject, star = self.subject, self.star[:, :, at]
        weight = probs.take_along_dim(self.token[:, None, None, :], dim=-1)  # (n, H, l, K), P[s*]
        weight = weight * self.marked[:, None, None, :]
        weight = weight * (subject.strength if subject.bounded else self.gate(at))
        pull = weight
        if subject.alpha is not None:
            pull = weight * (subject.alpha * self.norm(self.text_value)).mT  # (n, 1|H, 1, K)
        pull = pull.sum(dim=-1, keepdim=True)  # (n, H, l, 1)
        if subject.alpha is not None:
            pull = pull / self.norm(star).clamp_min(EPSILON)
        return pull * star - weight @ self.text_value.to(weight.dtype)

    def norm(self, x: Tensor) -> Tensor:
        """(n, H, ·, d) -> (n, 1|H, ·, 1): over all heads together, or in each."""
        dims = (1, 3) if self.subject.norm == "inner" else (3,)
        precise = torch.promote_types(x.dtype, torch.float32)
        return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Plain attention, (B, L, H·d) -> (B, L, H·d)."""
    q, k, v = (_split(x, heads) for x in (query, key, value))
    return rearrange(scaled_dot_product_attention(q, k, v, attn_mask=bias), "b h l d -> b l (h d)")


def _split(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b l (h d) -> b h l d", h=heads)


def _chunks(length: int, size: int, device: torch.device) -> Iterator[slice]:
    """Queries in chunks whose logits, `size` a query, stay in a CPU's cache, or in 128 MiB of a device."""
    step = max(1, 2 ** (19 if device.type == "cpu" else 25) // size)
    return (slice(start, start + step) for start in range(0, length, step))


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast from running the logits in half precision."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def _rows_by_subjects(
    subjects: Sequence[BoundSubject], batch: int, tokens: int
) -> list[tuple[list[int], list[BoundSubject]]]:
    """Groups the rows of a batch by the subjects they carry, and narrows those subjects to the rows."""
    active = [subject for subject in subjects if subject.strength]
    for subject in active:
        _check_masks(subject, batch, tokens)
    found = [subject.mask.any(dim=1).tolist() for subject in active]
    groups: dict[tuple[bool, ...], list[int]] = {}
    for row in range(batch):
        groups.setdefault(tuple(rows[row] for rows in found), []).append(row)
    return [
        (rows, [_narrow(subject, rows) for subject, here in zip(active, carried) if here])
        for carried, rows in groups.items()
    ]


def _narrow(subject: BoundSubject, rows: list[int]) -> BoundSubject:
    """The subject in these rows only; what is one row for the whole batch stays so."""
    names = ("key", "value", "mask", "word", "token_bias", "region")
    tensors = {name: getattr(subject, name) for name in names}
    return replace(subject, **{k: x if x is None or x.ndim == 1 else _take(x, rows) for k, x in tensors.items()})


def _take(x: Tensor, rows: list[int]) -> Tensor:
    """x[rows], a view where they are contiguous; a single row stands for every row."""
    if len(x) == 1:
        return x
    if rows == list(range(rows[0], rows[-1] + 1)):
        return x[rows[0] : rows[-1] + 1]
    return x[torch.tensor(rows).to(x.device, non_blocking=True)]


def _put_together(parts: list[tuple[list[int], Tensor]]) -> Tensor:
    order = [row for rows, _ in parts for row in rows]
    out = parts[0][1] if len(parts) == 1 else torch.cat([part for _, part in parts])
    return _take(out, sorted(range(len(order)), key=order.__getitem__))


def check_subjects(subjects: Sequence[BoundSubject], batch: int, tokens: int) -> None:
    """Refuses, with a ValueError, what the layers take for granted; to be called once, where subjects are bound.

    Shapes against (batch, tokens), two subjects on one token, and a token_bias that removes every token.
    """
    taken = torch.zeros(batch, tokens, dtype=torch.bool)
    for index, subject in enumerate(subjects):
        _check_masks(subject, batch, tokens)
        mask = subject.mask.detach().bool().cpu()
        if clash := (taken & mask).nonzero().tolist():
            row, token = clash[0]
            raise ValueError(
                f"Two subjects are bound to one token: row {row}, token {token} of the mask of subject {index} "
                "is marked by an earlier subject as well. Bind each to a word, or to an occurrence, of its own."
            )
        taken |= mask
        bias = subject.token_bias
        if bias is not None and not (bias.isfinite().any(-1).all() and (bias < torch.inf).all()):
            raise ValueError(
                f"The token_bias of subject {index} must have a finite entry in each row, and neither NaN nor "
                "+inf: -inf removes a token, and removing all of them leaves nothing to attend to. Give at "
                "least one image or token a weight above 0, or set strength to 0."
            )


def _check_masks(subject: BoundSubject, batch: int, tokens: int) -> None:
    for name, mask in (("mask", subject.mask), ("word", subject.word)):
        if mask is not None and tuple(mask.shape) != (batch, tokens):
            raise ValueError(
                f"A subject's {name} must be (batch, text tokens) = ({batch}, {tokens}), "
                f"found {tuple(mask.shape)}."
            )
    size = subject.key.shape[1]
    bias = subject.token_bias
    if subject.value.shape != subject.key.shape or (bias is not None and bias.shape[-1] != size):
        raise ValueError(
            "A subject's key, value and token_bias must agree in the number of tokens, found key "
            f"{tuple(subject.key.shape)}, value {tuple(subject.value.shape)}, token_bias "
            f"{None if bias is None else tuple(bias.shape)}."
        )
