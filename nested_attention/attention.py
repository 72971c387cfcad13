"""Nested attention: the value of one text token becomes a function of the image query.

    x     = Q Kᵀ / √d                           (B, H, L, T)  text cross-attention
    x[s*] = max(x[s*], λ·x[s*])                               identity–editability control, Section 5.1
    P     = softmax(x)                                        `text_weights`
    v*_q  = softmax(Q K̆ᵀ / √d) V̆                (B, H, L, d)  `nested_value`, Eq. 2
    v*_q  ← α · |V[s*]| · v*_q / |v*_q|                       `regularisation`, Section 3.2
    out_q = Σ_{s≠s*} P[s] V[s] + P[s*] v*_q                   `nested_cross_attention`, Eq. 3 and 4

after Patashnik et al., "Nested Attention: Semantic-aware Attention Values for Concept Personalization",
SIGGRAPH 2025. Only row s* of V depends on the query, so the mixed values (L, T, d) are never built: a subject
is the rank-one correction P[s*]·(v*_q − V[s*]) of P V. Hosts run the faster forms in `kernels/`, which the
tests hold to this file. Letters: B batch, H heads, d head size, L image queries, T text tokens, N subject
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import reduce, wraps
from typing import Concatenate, Literal, ParamSpec, TypeVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

EPSILON = 1e-6  # smallest norm divided by
LOG_ZERO = -1e4  # softmax gives exactly 0 beside any other token, and no NaN where there is none

Norm = Literal["inner", "head"]
"""Over what |V[s*]| and |v*_q| are taken: all heads together, or each head."""

Options = ParamSpec("Options")
Result = TypeVar("Result")


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
    norm: Norm = "inner"

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"A subject's strength must lie in [0, 1], found {self.strength}.")

    @property
    def reweights(self) -> bool:
        """Whether P itself changes, and not only the value at s*."""
        return self.attention_scale != 1 or (self.bounded and self.region is not None)


def without_autocast(
    function: Callable[Concatenate[Tensor, Options], Result],
) -> Callable[Concatenate[Tensor, Options], Result]:
    """Autocast would run the text's logits in half precision; the decorated function chooses precisions."""

    @wraps(function)
    def run(query: Tensor, *args: Options.args, **options: Options.kwargs) -> Result:
        device = query.device.type
        with torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext():
            return function(query, *args, **options)

    return run


@torch.compiler.assume_constant_result  # compilers of some versions cannot follow it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@without_autocast
def nested_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int
) -> Tensor:
    """Text cross-attention with nested values at the marked tokens (Eq. 2 to 4), in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d). Rows that carry no subject are plain attention.
    """
    subjects = [subject for subject in subjects if subject.strength]
    weights = text_weights(query, key, subjects, heads=heads)  # P, (B, H, L, T)
    v = per_head(value, heads).to(weights)
    out = weights @ v
    for subject in subjects:
        share = weights * gate(subject, weights, subject.bounded)  # g·P[s*], and 0 at all other tokens
        star = nested_value(query, subject, heads=heads)  # v*_q, (B, H, L, d)
        length = (share * regularisation(star, v, subject)).sum(dim=-1, keepdim=True)
        out = out + torch.where(carried([subject], v), length * star, 0.0) - share @ v
    plain = plain_attention(query, key, value, heads=heads)
    return torch.where(carried(subjects, v)[:, 0], joined(out).to(query.dtype), plain)


@without_autocast
def subject_correction(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subjects: Sequence[BoundSubject],
    *,
    heads: int,
    plain: Tensor | None = None,
) -> Tensor:
    """The nested output minus the plain text attention, so that a host can add it to whatever it already has.

    `plain` may be passed when the caller has the plain text attention's output (and nothing else) at hand.
    nested_cross_attention(…) == plain + subject_correction(…). Zero in rows that carry no subject.
    """
    nested = nested_cross_attention(query, key, value, subjects, heads=heads)
    plain = plain_attention(query, key, value, heads=heads) if plain is None else plain
    active = [subject for subject in subjects if subject.strength]
    return torch.where(carried(active, query)[:, 0], nested - plain, 0.0).to(query.dtype)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, *, heads: int) -> Tensor:
    """softmax(Q Kᵀ/√d) V: (B, L, H·d), (1|B, T, H·d), (1|B, T, H·d) → (B, L, H·d)."""
    q, k, v = (per_head(x, heads) for x in (query, key, value))
    k, v = (x.expand(len(query), -1, -1, -1) for x in (k, v))
    return joined(scaled_dot_product_attention(q, k, v))


@without_autocast
def text_weights(query: Tensor, key: Tensor, subjects: Sequence[BoundSubject] = (), *, heads: int) -> Tensor:
    """P: what each query attends to of the text, under the subjects' λ and `bounded` (Section 5.1).

    (B, L, H·d), (B, T, H·d) → (B, H, L, T), in at least fp32. Without subjects, the text's own attention.
    """
    q, k = precise(per_head(query, heads)), precise(per_head(key, heads).mT)
    x = q @ (k * q.shape[-1] ** -0.5)  # (B, H, L, T)
    for subject in subjects:
        if subject.attention_scale != 1:
            # max(x, λ_q·x) = x + (λ_q − 1)·relu(x) for λ_q ≥ 1, and for λ_q < 1 that is min(x, λ_q·x).
            x = x + x.relu() * ((subject.attention_scale - 1) * gate(subject, x))
        if subject.bounded and subject.region is not None:
            region = over_queries(subject.region, x)
            log = torch.where(region > 0, region.clamp_min(1e-30).log(), LOG_ZERO)
            word = subject.mask if subject.word is None else subject.word
            x = x + log * at_tokens(word & subject.mask.any(dim=1, keepdim=True), x)
    return x.softmax(dim=-1)


def nested_weights(query: Tensor, subject: BoundSubject, *, heads: int) -> Tensor:
    """softmax(Q K̆ᵀ/√d): what each query attends to of the subject's tokens. (B, L, H·d) → (B, H, L, N)."""
    q, k = precise(per_head(query, heads)), precise(per_head(subject.key, heads).mT)
    x = q @ (k.to(q) * q.shape[-1] ** -0.5)  # (B, H, L, N)
    bias = subject.token_bias
    return (x if bias is None else x + torch.atleast_2d(bias)[:, None, None].to(x)).softmax(dim=-1)


def nested_value(query: Tensor, subject: BoundSubject, *, heads: int) -> Tensor:
    """v*_q of Eq. 2: `nested_weights` @ V̆, which are never in memory. (B, L, H·d) → (B, H, L, d)."""
    k, v = (per_head(x.to(query.dtype), heads) for x in (subject.key, subject.value))
    k, v = (x.expand(len(query), -1, -1, -1) for x in (k, v))
    bias = subject.token_bias  # (N,) or (1|B, N) → (1|B, 1, 1, N)
    bias = None if bias is None else torch.atleast_2d(bias)[:, None, None].to(query)
    return scaled_dot_product_attention(per_head(query, heads), k, v, attn_mask=bias)


def regularisation(star: Tensor, v: Tensor, subject: BoundSubject) -> Tensor:
    """α·|V[s]| / |v*_q|: what gives v*_q the length it has at each token (Section 3.2); 1 without α.

    v*_q (B, H, L, d), V (B, H, T, d) → (B, 1|H, L, T)
    """
    if subject.alpha is None:
        return star.new_ones(())
    return subject.alpha * norm(v, subject).mT / norm(star, subject).clamp_min(EPSILON)


def norm(x: Tensor, subject: BoundSubject) -> Tensor:
    """Over all heads together, or in each: (B, H, ·, d) → (B, 1|H, ·, 1), in at least fp32."""
    dims = -1 if subject.norm == "head" else (1, -1)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)


def onto(x: Tensor, to: torch.device | Tensor) -> Tensor:
    """x on a device, or of another tensor's device and dtype. Without a wait on CUDA alone: a copy from
    ordinary memory has been read there when the call returns, which Apple's GPUs do not promise."""
    device = to.device if isinstance(to, Tensor) else to
    return x.to(to, non_blocking=device.type == "cuda")


def precise(x: Tensor) -> Tensor:
    """In at least fp32; what is cast is laid out anew in the same pass, as products want it."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype, memory_format=torch.contiguous_format)


def gate(subject: BoundSubject, like: Tensor, bounded: bool = False) -> Tensor:
    """g at the subject's tokens and 0 at all others, (1|B, 1, 1|L, T); strength alone if `bounded`."""
    at_mask = subject.strength * at_tokens(subject.mask, like)
    return at_mask if bounded or subject.region is None else at_mask * over_queries(subject.region, like)


def carried(subjects: Sequence[BoundSubject], like: Tensor) -> Tensor:
    """Rows in which some subject has a token, (1|B, 1, 1, 1) bool."""
    rows = [onto(subject.mask.any(dim=1), like.device) for subject in subjects]
    none = torch.zeros(1, dtype=torch.bool, device=like.device)
    return reduce(torch.logical_or, rows, none)[:, None, None, None]


def at_tokens(mask: Tensor, like: Tensor) -> Tensor:
    """(B, T) → (B, 1, 1, T)"""
    return onto(mask[:, None, None], like)


def over_queries(region: Tensor, like: Tensor) -> Tensor:
    """(1|B, L) → (1|B, 1, L, 1)"""
    return onto(region[:, None, :, None], like)


def per_head(x: Tensor, heads: int) -> Tensor:
    """(B, ·, H·d) → (B, H, ·, d)"""
    return rearrange(x, "b l (h d) -> b h l d", h=heads)


def joined(x: Tensor) -> Tensor:
    """(B, H, ·, d) → (B, ·, H·d)"""
    return rearrange(x, "b h l d -> b l (h d)")


def check_subjects(subjects: Sequence[BoundSubject], batch: int, tokens: int) -> None:
    """ValueError for what the layers take for granted; called once, where subjects are bound.

    Masks must be (batch, tokens), two subjects never share a token, a token_bias leaves a token in each row.
    """
    taken = torch.zeros(batch, tokens, dtype=torch.bool)
    for i, subject in enumerate(subjects):
        mask = subject.mask.cpu()
        word = mask if subject.word is None else subject.word
        if not mask.shape == word.shape == taken.shape:
            found = f"found {tuple(mask.shape)} and {tuple(word.shape)}."
            raise ValueError(f"Subject {i}: mask and word must be (batch, tokens) {batch, tokens}, {found}")
        if clash := (taken & mask).nonzero().tolist():
            found = f"{clash} carry another subject already. Give each a word, or an occurrence, of its own."
            raise ValueError(f"Subject {i}: the (row, token) {found}")
        taken |= mask
        if (bias := subject.token_bias) is not None and not bias.amax(-1).isfinite().all():
            found = "a row of token_bias has no finite entry, or NaN or +inf. Keep a token, at a finite bias."
            raise ValueError(f"Subject {i}: {found}")
