"""The mechanism in PyTorch as the hosts run it: only in rows that carry a subject, only at its tokens, and in
chunks of queries.

What it computes is what `attention.py` says. Letters as there; n of the batch's rows, l queries of a chunk,
K tokens that carry a subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from einops import rearrange
from torch import Tensor

from ..attention import (
    EPSILON,
    BoundSubject,
    norm,
    per_head,
    plain_attention,
    text_weights,
    without_autocast,
)
from .rows import Marks, Rows, by_rows, nested_value_in, read_rows, take

CPU_LOGITS, DEVICE_LOGITS = 2**19, 2**25  # logits held at once: what stays near a CPU's cache; 128 MiB
Subjects = Sequence[BoundSubject]
Carried = Sequence[tuple[BoundSubject, Marks]]


def nested(
    query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int,
    rows: Rows | None = None, unmarked: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """`attention.nested_cross_attention`.

    rows: `read_rows(subjects, query.device)`, where several layers have subjects with these masks.
    unmarked: the attention of rows that carry no subject, (q, k, v) → out; plain attention if None.
    """

    def run(carried: Carried, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if carried:
            return _nested(q, k, v, carried, heads).to(q.dtype)
        return unmarked(q, k, v) if unmarked else plain_attention(q, k, v, heads=heads)

    return by_rows(run, subjects, rows, query, key, value)


def correction(
    query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int,
    plain: Tensor | None = None, rows: Rows | None = None,
) -> Tensor:  # fmt: skip
    """`attention.subject_correction`. rows: as in `nested`."""

    def run(carried: Carried, q: Tensor, k: Tensor, v: Tensor, text: Tensor | None = None) -> Tensor:
        return _change(q, k, v, carried, heads, text).to(q.dtype) if carried else torch.zeros_like(q)

    return by_rows(run, subjects, rows, query, key, value, *([] if plain is None else [plain]))


def add_correction(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, subjects: Subjects, *, heads: int,
    plain: bool, rows: Rows | None = None,
) -> Tensor:  # fmt: skip
    """What a host has computed already, plus `correction`. plain: whether `out` is plain attention, and may
    be written over."""
    if torch.is_grad_enabled():  # what is needed for gradients must stay as it is
        text = out if plain else None
        return out + correction(query, key, value, subjects, heads=heads, plain=text, rows=rows).to(out)
    rows = read_rows(subjects, query.device) if rows is None else rows
    out = out if plain else out.clone()
    for group in rows.groups:
        if group.carried:
            carried, at = [(subjects[number], marks) for number, marks in group.carried], group.rows
            here = out[at]
            here += _change(query[at], key[at], value[at], carried, heads, here if plain else None)
            if not isinstance(at, slice):
                out[at] = here
    return out


def _change(q: Tensor, k: Tensor, v: Tensor, carried: Carried, heads: int, plain: Tensor | None) -> Tensor:
    """The correction in rows that carry these subjects, in at least fp32."""
    if not any(subject.reweights for subject, _ in carried):
        return _nested(q, k, v, carried, heads, text=False)  # P is the same, so P V cancels
    text = plain_attention(q, k, v, heads=heads) if plain is None else plain
    return _nested(q, k, v, carried, heads) - text


def _nested(q: Tensor, k: Tensor, v: Tensor, carried: Carried, heads: int, text: bool = True) -> Tensor:
    """Eq. 3 and 4 for rows that carry these subjects; without `text` only Σ P[s*]·g·(v*_q − V[s*])."""
    if q.device.type == "cpu" and len(q) > 1 and q.shape[1] * k.shape[1] * heads > CPU_LOGITS:
        rows = ([(s, marks.row(i)) for s, marks in carried] for i in range(len(q)))  # to stay in the cache
        parts = zip(q.split(1), k.split(1), v.split(1), rows, strict=True)
        return torch.cat([_in_chunks(a, b, c, one, heads, text) for a, b, c, one in parts])
    return _in_chunks(q, k, v, carried, heads, text)


@without_autocast
def _in_chunks(q: Tensor, k: Tensor, v: Tensor, carried: Carried, heads: int, text: bool) -> Tensor:
    device, precise = q.device.type, torch.promote_types(q.dtype, torch.float32)
    values = [_value(q, v, subject, marks, heads) for subject, marks in carried]
    v_text = per_head(v.to(precise) if device == "cpu" and v.dtype == torch.float16 else v, heads)  # slow
    chunks = []
    for at in chunks_of(q, k, heads):
        reweighting = [_here(subject, marks, at) for subject, marks in carried if subject.reweights]
        probs = text_weights(q[:, at], k, reweighting, heads=heads)  # shared by the text and all subjects
        changes = [_of_subject(probs, *one, value, at) for one, value in zip(carried, values, strict=True)]
        if text:
            changes.append((probs.to(v_text.dtype) @ v_text).transpose(1, 2))
        chunks.append(reduce(Tensor.add_, changes).flatten(2))
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1)


def chunks_of(q: Tensor, k: Tensor, heads: int) -> list[slice]:
    """Even chunks of the queries q (n, L, H·d), such that their logits over the text k (n, T, H·d) fit."""
    limit = CPU_LOGITS if q.device.type == "cpu" else DEVICE_LOGITS
    length, size = q.shape[1], len(q) * heads * q.shape[1] * k.shape[1]
    step = -(-length // -(-size // limit))
    return [slice(start, start + step) for start in range(0, length, step)]


def _here(subject: BoundSubject, marks: Marks, at: slice) -> BoundSubject:
    """What changes P, for the subject's rows and a chunk of queries."""
    region = take(subject.region, marks.rows)
    return BoundSubject(
        key=subject.key,
        value=subject.value,
        mask=marks.mask,
        word=marks.word,
        attention_scale=subject.attention_scale,
        strength=subject.strength,
        region=None if region is None else region[:, at],
        bounded=subject.bounded,
    )


def _value(
    q: Tensor, v: Tensor, subject: BoundSubject, marks: Marks, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """From q (n, L, H·d) and the text's v (n, T, H·d): v*_q of Eq. 2 (n, L, H, d), what brings it to its
    length at each s* (n, L, 1|H, K), and V[s*] (n, K, H, d)."""
    star = nested_value_in(q, subject, marks.rows, heads=heads)
    text_value, place = v.unflatten(-1, (heads, -1)), _place(marks)
    if place is None:
        index = marks.tokens[..., None, None].expand(-1, -1, *text_value.shape[2:])
        text_value = text_value.gather(1, index)
    else:
        text_value = text_value[:, place : place + 1]
    if subject.alpha is None:
        return star.transpose(1, 2), star.new_ones(()).expand(len(q), q.shape[1], 1, 1), text_value
    goal = subject.alpha * norm(text_value.transpose(1, 2), subject)  # (n, 1|H, K, 1)
    length = norm(star, subject).clamp_min(EPSILON)  # (n, 1|H, L, 1)
    return star.transpose(1, 2), rearrange(goal.mT / length, "n h l k -> n l h k"), text_value


def _of_subject(
    probs: Tensor, subject: BoundSubject, marks: Marks, value: tuple[Tensor, Tensor, Tensor], at: slice
) -> Tensor:
    """Σ P[s*]·g·(v*_q − V[s*]) over the subject's tokens, (n, l, H, d)."""
    star, factor, text_value = value
    weight = _weight(probs, subject, marks, at)
    pull = weight * factor[:, at]
    change = star[:, at] * (pull if pull.shape[-1] == 1 else pull.sum(dim=-1, keepdim=True))
    for i in range(weight.shape[-1]):
        change.addcmul_(weight[..., i : i + 1], text_value[:, i : i + 1], value=-1)
    return change


def _weight(probs: Tensor, subject: BoundSubject, marks: Marks, at: slice) -> Tensor:
    """g·P[s*] at each of the subject's tokens, (n, l, H, K); g is strength alone if `bounded`."""
    place = _place(marks)
    gate: float | Tensor = subject.strength
    if place is None:
        index = marks.tokens[:, None, None].expand(-1, *probs.shape[1:3], -1)
        weight = probs.gather(-1, index)
        gate = gate * marks.counts[:, None, None].to(probs)  # 0 where a row has fewer tokens
    else:
        weight = probs[..., place : place + 1]
    if subject.region is not None and not subject.bounded:
        gate = gate * take(subject.region, marks.rows)[:, at, None, None].to(probs)
    weight = weight.transpose(1, 2)
    return weight if isinstance(gate, float) and gate == 1 else weight * gate


def _place(marks: Marks) -> int | None:
    """As a number it spares two launches; compiled code would be compiled again for each place."""
    return None if torch.compiler.is_compiling() else marks.place
