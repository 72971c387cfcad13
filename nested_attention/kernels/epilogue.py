"""The mechanism on NVIDIA GPUs: two launches a layer and subject.

PyTorch's `scaled_dot_product_attention` computes v*_q, for nothing does that faster. One Triton kernel does
the rest, on top of the text attention that the host has run: the text's logits once more, their softmax under
λ and `bounded`, P[s*], the norms, and out += (P − P₀) V + Σ P[s*]·g·(v*_q − V[s*]). Nothing of (L, T) or
(L, N) is in memory, and rows without a subject are not touched. `supports` says for which inputs; `chunks.py`
does the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import EPSILON, BoundSubject, joined, without_autocast
from .chunks import correction
from .rows import Marks, Rows, nested_value_in, read_rows, take

QUERIES, COLUMNS = 32, 256  # in a block: image queries, and columns of a norm over all heads
PLAIN, REWEIGHTED = (128, 4), (64, 8)  # text tokens in a block, and warps: what fits a program's registers
HEADS = (5, 4, 3, 2, 1)  # a program runs this many, so that norms over all heads are read a few times only
LARGEST_HEAD = 128


def supports(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], heads: int, rows: Rows
) -> bool:
    """Whether the kernel can do it: no gradients, half precision, heads of up to 128, no gaps within a token,
    and rows that carry the same subjects side by side."""
    text = (query, key, value)
    wanted = (*text, *(x for s in subjects for x in (s.key, s.value, s.token_bias) if x is not None))
    return (
        query.dtype in (torch.float16, torch.bfloat16)  # fp32 would take most of a GPU's shared memory
        and all(x.dtype == query.dtype and x.stride(-1) == 1 for x in text)
        and query.shape[-1] // heads <= LARGEST_HEAD
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in wanted))
        and all(isinstance(group.rows, slice) for group in rows.groups if group.carried)
    )


@without_autocast
def add_correction(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int,
    rows: Rows,
) -> Tensor:  # fmt: skip
    """Adds `attention.subject_correction` to `out` (B, L, H·d) in place. rows: groups that are slices."""
    for group in (group for group in rows.groups if group.carried):
        q, k, v, here = (x[group.rows] for x in (query, key, value, out))
        carried = [(subjects[number], marks) for number, marks in group.carried]
        weights = group.reweighting(subjects, query.shape[1])
        for number, (subject, marks) in enumerate(carried):
            star = joined(nested_value_in(q, subject, group.rows, heads=heads))  # (n, L, H·d)
            with torch.cuda.device(here.device) if here.is_cuda else nullcontext():
                _launch(here, q, k, v, star, subject, marks, weights, heads, text=number == 0)
    return out


def tried(device: torch.device) -> str | None:
    """Runs the kernel's two forms, λ = 1 and another λ, on the shape of an SDXL layer; what is wrong with
    what they give, or None."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, nested_key, nested_value_ = (
        torch.randn(1, number, 640, generator=generator).to(device, torch.float16)
        for number in (64, 77, 77, 16, 16)
    )
    mask = torch.zeros(1, 77, dtype=torch.bool)
    mask[0, 5] = True
    for scale in (1.0, 2.0):
        subject = BoundSubject(key=nested_key, value=nested_value_, mask=mask, attention_scale=scale)
        rows = read_rows([subject], device)
        with torch.no_grad():
            found = add_correction(torch.zeros_like(q), q, k, v, [subject], heads=10, rows=rows)
            expected = correction(q, k, v, [subject], heads=10)
        off = float((found - expected).abs().max() / expected.abs().max())
        if not off < 0.02:
            return f"the kernel is off by {off:.2g} of the largest value at λ = {scale}"
    return None


def _launch(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, star: Tensor, subject: BoundSubject, marks: Marks,
    weights: Tensor | None, heads: int, *, text: bool,
) -> None:  # fmt: skip
    rows, length, inner = q.shape
    size = inner // heads
    together = next(number for number in HEADS if heads % number == 0)
    gated = subject.region is not None and not subject.bounded
    block, warps = PLAIN if weights is None else REWEIGHTED
    region = take(subject.region, marks.rows).contiguous() if gated else marks.counts
    _add_change[(triton.cdiv(length, QUERIES), rows, heads // together)](
        out, q, k, v, star, marks.tokens, marks.counts, region, marks.counts if weights is None else weights,
        length, k.shape[1], marks.tokens.shape[1],
        out.stride(0), out.stride(1), q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        v.stride(0), v.stride(1), star.stride(0), star.stride(1), _step(region, 0),
        *((0, 0, 0) if weights is None else (weights.stride(0), weights.stride(1), _step(weights, 2))),
        size**-0.5, subject.strength, subject.alpha or 0.0, EPSILON,
        REGULAR=subject.alpha is not None, INNER=subject.norm == "inner", GATED=gated,
        REWEIGHTED=weights is not None, TEXT=text and weights is not None,
        SIZE=size, WIDTH=inner, TOGETHER=together, BL=QUERIES, BT=block, BC=COLUMNS,
        BD=max(16, triton.next_power_of_2(size)), BW=triton.next_power_of_2(inner),
        num_warps=warps, num_stages=1,
    )  # fmt: skip


def _step(x: Tensor, dim: int) -> int:
    """The stride, 0 where one entry is for all."""
    return 0 if x.shape[dim] == 1 else x.stride(dim)


@triton.jit
def _add_change(  # type: ignore[no-untyped-def]
    out, q, k, v, star, tokens, counts, region, weights,
    length, text, marked,
    out_row, out_at, q_row, q_at, k_row, k_at, v_row, v_at, star_row, star_at, region_row,
    weights_kind, weights_row, weights_at,
    scale, strength, alpha, epsilon,
    REGULAR: tl.constexpr, INNER: tl.constexpr, GATED: tl.constexpr, REWEIGHTED: tl.constexpr,
    TEXT: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, TOGETHER: tl.constexpr, BL: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """One block of queries in one row, a few heads. tokens, counts: (n, K); region: (1|n, L); weights:
    `RowGroup.reweighting`."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BL + tl.arange(0, BL)
    real = at < length
    column = tl.arange(0, BD)
    inside = real[:, None] & (column < SIZE)[None, :]
    nested = star + row * star_row + at[:, None] * star_at

    square = tl.zeros([BL], tl.float32)  # |v*_q|² over all heads
    if REGULAR and INNER:
        for offset in tl.static_range(0, WIDTH, BC):
            c = offset + tl.arange(0, BC)
            part = tl.load(nested + c[None, :], mask=real[:, None] & (c < WIDTH)[None, :], other=0.0)
            square += tl.sum(part.to(tl.float32) * part.to(tl.float32), 1)
    gate = tl.full([BL], 1.0, tl.float32)
    if GATED:
        gate = tl.load(region + row * region_row + at, mask=real, other=0.0)
    gate *= strength

    for number in range(TOGETHER):
        first = (tl.program_id(2) * TOGETHER + number) * SIZE
        d = first + column
        queries = tl.load(q + row * q_row + at[:, None] * q_at + d[None, :], mask=inside, other=0.0)

        # The text: P, and P₀ without λ and `bounded`, over the tokens seen so far, as larger logits come.
        top = tl.full([BL], -1e30, tl.float32)
        total = tl.zeros([BL], tl.float32)
        mixed = tl.zeros([BL, BD], tl.float32)
        plain_top = top
        plain_total = total
        plain_mixed = mixed
        for start in range(0, text, BT):
            t = start + tl.arange(0, BT)
            there = t < text
            known = (column < SIZE)[:, None] & there[None, :]
            keys = tl.load(k + row * k_row + t[None, :] * k_at + d[:, None], mask=known, other=0.0)
            x = tl.dot(queries, keys, input_precision="ieee") * scale
            x = tl.where(there[None, :], x, -1e30)
            if TEXT:
                values = tl.load(
                    v + row * v_row + t[:, None] * v_at + d[None, :],
                    mask=there[:, None] & (column < SIZE)[None, :], other=0.0,
                )  # fmt: skip
                higher = tl.maximum(plain_top, tl.max(x, 1))
                p = tl.exp(x - higher[:, None])
                shrink = tl.exp(plain_top - higher)
                plain_mixed = plain_mixed * shrink[:, None]
                plain_mixed += tl.dot(p.to(values.dtype), values, input_precision="ieee")
                plain_total = plain_total * shrink + tl.sum(p, 1)
                plain_top = higher
            if REWEIGHTED:
                cells = real[:, None] & there[None, :]
                place = weights + row * weights_row + at[:, None] * weights_at + t[None, :]
                x += tl.load(place, mask=cells, other=0.0)
                gain = tl.load(place + weights_kind, mask=cells, other=0.0)
                x += gain * tl.maximum(x, 0.0) + tl.load(place + 2 * weights_kind, mask=cells, other=0.0)
                x = tl.where(there[None, :], x, -1e30)
            higher = tl.maximum(top, tl.max(x, 1))
            p = tl.exp(x - higher[:, None])
            shrink = tl.exp(top - higher)
            if TEXT:
                mixed = mixed * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
            total = total * shrink + tl.sum(p, 1)
            top = higher

        # The subject: what v*_q is multiplied by, and what V[s*] loses.
        mean = tl.load(nested + d[None, :], mask=inside, other=0.0).to(tl.float32)
        if REGULAR and not INNER:
            square = tl.sum(mean * mean, 1)
        change = tl.zeros([BL, BD], tl.float32)
        pull = tl.zeros([BL], tl.float32)
        for number_of_token in range(marked):
            entry = row * marked + number_of_token
            s = tl.load(tokens + entry)
            key = tl.load(k + row * k_row + s * k_at + d, mask=column < SIZE, other=0.0).to(tl.float32)
            x = tl.sum(queries.to(tl.float32) * key[None, :], 1) * scale
            if REWEIGHTED:
                place = weights + row * weights_row + at * weights_at + s
                x += tl.load(place, mask=real, other=0.0)
                gain = tl.load(place + weights_kind, mask=real, other=0.0)
                x += gain * tl.maximum(x, 0.0) + tl.load(place + 2 * weights_kind, mask=real, other=0.0)
            share = tl.exp(x - top) / total * gate * tl.load(counts + entry)
            value = tl.load(v + row * v_row + s * v_at + d, mask=column < SIZE, other=0.0).to(tl.float32)
            change -= share[:, None] * value[None, :]
            if REGULAR:
                if INNER:
                    w = tl.arange(0, BW)
                    whole = tl.load(v + row * v_row + s * v_at + w, mask=w < WIDTH, other=0.0).to(tl.float32)
                    share *= alpha * tl.sqrt(tl.sum(whole * whole, 0))
                else:
                    share *= alpha * tl.sqrt(tl.sum(value * value, 0))
            pull += share
        if REGULAR:
            pull = pull / tl.maximum(tl.sqrt(square), epsilon)
        change += pull[:, None] * mean
        if TEXT:
            change += mixed / total[:, None] - plain_mixed / plain_total[:, None]

        place = out + row * out_row + at[:, None] * out_at + d[None, :]
        earlier = tl.load(place, mask=inside, other=0.0)
        tl.store(place, (earlier.to(tl.float32) + change).to(out.dtype.element_ty), mask=inside)
