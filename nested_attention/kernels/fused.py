"""The mechanism as two Triton kernels, for NVIDIA GPUs: nothing of (L, T) or (L, N) is ever in memory.

`attention.py` is the reference, and what runs wherever this file says no. The first kernel has one program a
block of queries and head: text logits under λ, their softmax, P V without s*, P[s*] times the length that
v*_q is to have, and the nested attention. The length of v*_q itself is over all heads, which no program sees,
so it leaves squares behind, and the second kernel adds up. Off until it has been measured on a GPU:
NESTED_ATTENTION_BACKEND=fused switches it on (`kernels/__init__.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import EPSILON, BoundSubject
from .chunks import correction
from .rows import Marks, Rows, read_rows

QUERIES, TOKENS, TEXT = 64, 64, 128  # in a block; shared memory of any recent GPU holds them for heads of 64


def supports(
    query: Tensor, subjects: Sequence[BoundSubject], heads: int, text: Sequence[Tensor] = ()
) -> bool:
    """Whether the kernels can do it: no gradients, no regions, heads of a size that blocks can have, and half
    precision, for fp32 takes more shared memory than most GPUs have."""
    size = query.shape[-1] // heads
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad
        for x in (query, *text, *(x for s in subjects for x in (s.key, s.value, s.token_bias)))
    )
    plain = all(s.region is None for s in subjects)  # `bounded` does nothing without a region
    fits = size in (16, 32, 64, 128) and query.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return plain and fits and not needs_grad and not (query.is_cuda and query.dtype == torch.float32)


def fused_correction(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subjects: Sequence[BoundSubject],
    *,
    heads: int,
    plain: Tensor | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """`subject_correction`, by the kernels where `supports` says so and λ is 1, else by the reference."""
    if not supports(query, subjects, heads, (key, value)) or any(
        s.strength and s.attention_scale != 1 for s in subjects
    ):
        return correction(query, key, value, subjects, heads=heads, plain=plain, rows=rows)
    return _by_rows(query, key, value, subjects, heads, rows, text=False)


def fused_nested(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subjects: Sequence[BoundSubject],
    *,
    heads: int,
    rows: Rows | None = None,
) -> Tensor:
    """`nested_cross_attention` by the kernels. Only where `supports` says so."""
    return _by_rows(query, key, value, subjects, heads, rows, text=True)


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, subjects: Any, heads: int, rows: Rows | None, text: bool
) -> Tensor:
    rows = read_rows(subjects, query.device) if rows is None else rows
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for group in rows.groups:
        q, k, v = (x[group.rows] for x in (query, key, value))
        if not group.carried:
            if text:
                split = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
                attend = torch.nn.functional.scaled_dot_product_attention
                out[group.rows] = attend(*split).transpose(1, 2).flatten(2)
            continue
        carried = [(subjects[number], marks) for number, marks in group.carried]
        out[group.rows] = _group(q, k, v, carried, heads, text)
    return out


def _group(
    q: Tensor, k: Tensor, v: Tensor, carried: Sequence[tuple[BoundSubject, Marks]], heads: int, text: bool
) -> Tensor:
    """Rows that carry the same subjects: (n, L, H·d) → (n, L, H·d)."""
    batch, length, inner = q.shape
    size, tokens = inner // heads, k.shape[1]
    ones = [_one_hot(marks, tokens) for _, marks in carried]  # (n, T) each, 1 at the subject's s*
    gates = [subject.strength * one for (subject, _), one in zip(carried, ones, strict=True)]
    lam = torch.ones_like(ones[0])
    kept = torch.ones_like(ones[0]) if text else torch.zeros_like(ones[0])
    for (subject, _), gate in zip(carried, gates, strict=True):
        lam = lam + (subject.attention_scale - 1) * gate
        kept = kept - gate if text else kept
    out = q.new_zeros(batch, length, inner, dtype=torch.float32)
    star = torch.empty(batch, length, inner, dtype=q.dtype, device=q.device)
    squares = torch.empty(batch, length, heads, dtype=torch.float32, device=q.device)
    pulls = torch.empty_like(squares)
    for number, ((subject, marks), gate) in enumerate(zip(carried, gates, strict=True)):
        coefficient = (kept if number == 0 else torch.zeros_like(kept)) if text else -gate
        goal = _goal(v, subject, gate, heads)  # (n, H, T)
        nested = [_rows_of(x, marks).to(q.dtype) for x in (subject.key, subject.value)]
        nested_key, nested_value = (x.expand(batch, -1, -1) for x in nested)
        bias = None if subject.token_bias is None else _rows_of(subject.token_bias, marks).to(lam)
        bias = lam if bias is None else torch.atleast_2d(bias).expand(batch, -1)
        grid = (triton.cdiv(length, QUERIES), batch * heads)
        _attend[grid](
            q, k, v, nested_key, nested_value, bias, coefficient, goal, lam, out, star, squares, pulls,
            length, tokens, nested_key.shape[1], heads, size**-0.5,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            nested_key.stride(0), nested_key.stride(1), nested_value.stride(0), nested_value.stride(1),
            bias.stride(0), coefficient.stride(0), goal.stride(0), goal.stride(1), lam.stride(0),
            HAS_BIAS=subject.token_bias is not None, SIZE=size, BL=QUERIES, BN=TOKENS, BT=TEXT,
        )  # fmt: skip
        _add[(triton.cdiv(length, QUERIES), batch)](
            out, star, squares, pulls, length, heads, EPSILON,
            REGULAR=subject.alpha is not None, INNER=subject.norm == "inner", SIZE=size, BL=QUERIES,
        )  # fmt: skip
    return out.to(q.dtype)


def _one_hot(marks: Marks, tokens: int) -> Tensor:
    zeros = torch.zeros(len(marks.tokens), tokens, device=marks.tokens.device)
    return zeros.scatter_add(1, marks.tokens, marks.counts)


def _goal(v: Tensor, subject: BoundSubject, gate: Tensor, heads: int) -> Tensor:
    """g·α·|V[s]| at each s*, 0 elsewhere: (n, H, T)."""
    if subject.alpha is None:
        return gate[:, None].expand(-1, heads, -1).contiguous()
    if subject.norm == "inner":
        size = v.float().norm(dim=-1)[:, None].expand(-1, heads, -1)
    else:
        size = v.unflatten(-1, (heads, -1)).float().norm(dim=-1).transpose(1, 2)
    return (subject.alpha * gate[:, None] * size).contiguous()


def _rows_of(x: Tensor, marks: Marks) -> Tensor:
    return x if x.ndim == 1 or len(x) == 1 else x[marks.rows]


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, k, v, nested_key, nested_value, bias, coefficient, goal, lam, out, star, squares, pulls,
    length, tokens, nested, heads, scale,
    q_row, q_at, k_row, k_at, v_row, v_at, nk_row, nk_at, nv_row, nv_at,
    bias_row, coefficient_row, goal_row, goal_head, lam_row,
    HAS_BIAS: tl.constexpr, SIZE: tl.constexpr, BL: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    at = tl.program_id(0) * BL + tl.arange(0, BL)
    d = head * SIZE + tl.arange(0, SIZE)
    real = at < length
    queries = tl.load(q + row * q_row + at[:, None] * q_at + d[None, :], mask=real[:, None], other=0.0)

    # The text: softmax over the tokens seen so far, rescaled as larger logits come.
    top = tl.full([BL], -1e30, tl.float32)
    total = tl.zeros([BL], tl.float32)
    pull = tl.zeros([BL], tl.float32)
    text = tl.zeros([BL, SIZE], tl.float32)
    for start in range(0, tokens, BT):
        t = start + tl.arange(0, BT)
        inside = t < tokens
        keys = tl.load(k + row * k_row + t[None, :] * k_at + d[:, None], mask=inside[None, :], other=0.0)
        x = tl.dot(queries, keys, input_precision="ieee") * scale
        factor = tl.load(lam + row * lam_row + t, mask=inside, other=1.0)[None, :]
        x = tl.where(factor >= 1, tl.maximum(x, factor * x), tl.minimum(x, factor * x))
        x = tl.where(inside[None, :], x, -1e30)
        higher = tl.maximum(top, tl.max(x, 1))
        shrink = tl.exp(top - higher)
        p = tl.exp(x - higher[:, None])
        kept = tl.load(coefficient + row * coefficient_row + t, mask=inside, other=0.0)
        wanted = tl.load(goal + row * goal_row + head * goal_head + t, mask=inside, other=0.0)
        values = tl.load(v + row * v_row + t[:, None] * v_at + d[None, :], mask=inside[:, None], other=0.0)
        mixed = tl.dot((p * kept[None, :]).to(values.dtype), values, input_precision="ieee")
        text = text * shrink[:, None] + mixed
        pull = pull * shrink + tl.sum(p * wanted[None, :], 1)
        total = total * shrink + tl.sum(p, 1)
        top = higher
    base = out + (row * length + at[:, None]) * (heads * SIZE) + d[None, :]
    before = tl.load(base, mask=real[:, None], other=0.0)
    tl.store(base, before + text / total[:, None], mask=real[:, None])
    tl.store(pulls + (row * length + at) * heads + head, pull / total, mask=real)

    # The subject: v*_q.
    top = tl.full([BL], -1e30, tl.float32)
    total = tl.zeros([BL], tl.float32)
    mean = tl.zeros([BL, SIZE], tl.float32)
    for start in range(0, nested, BN):
        n = start + tl.arange(0, BN)
        inside = n < nested
        keys = tl.load(
            nested_key + row * nk_row + n[None, :] * nk_at + d[:, None], mask=inside[None, :], other=0.0
        )
        x = tl.dot(queries, keys, input_precision="ieee") * scale
        if HAS_BIAS:
            x += tl.load(bias + row * bias_row + n, mask=inside, other=0.0)[None, :]
        x = tl.where(inside[None, :], x, float("-inf"))
        higher = tl.maximum(top, tl.max(x, 1))
        shrink = tl.exp(top - higher)
        p = tl.exp(x - higher[:, None])
        values = tl.load(
            nested_value + row * nv_row + n[:, None] * nv_at + d[None, :], mask=inside[:, None], other=0.0
        )
        mean = mean * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(p, 1)
        top = higher
    mean = mean / total[:, None]
    tl.store(squares + (row * length + at) * heads + head, tl.sum(mean * mean, 1), mask=real)
    place = star + (row * length + at[:, None]) * (heads * SIZE) + d[None, :]
    tl.store(place, mean.to(star.dtype.element_ty), mask=real[:, None])


@triton.jit
def _add(  # type: ignore[no-untyped-def]
    out, star, squares, pulls, length, heads, epsilon,
    REGULAR: tl.constexpr, INNER: tl.constexpr, SIZE: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    at = tl.program_id(0) * BL + tl.arange(0, BL)
    real = at < length
    place = (row * length + at) * heads
    whole = tl.zeros([BL], tl.float32)
    for head in range(heads):
        whole += tl.load(squares + place + head, mask=real, other=0.0)
    for head in range(heads):
        factor = tl.load(pulls + place + head, mask=real, other=0.0)
        if REGULAR:
            square = whole if INNER else tl.load(squares + place + head, mask=real, other=0.0)
            factor = factor / tl.maximum(tl.sqrt(square), epsilon)
        cells = (place[:, None] + head) * SIZE + tl.arange(0, SIZE)[None, :]
        nested = tl.load(star + cells, mask=real[:, None], other=0.0).to(tl.float32)
        before = tl.load(out + cells, mask=real[:, None], other=0.0)
        tl.store(out + cells, before + factor[:, None] * nested, mask=real[:, None])
