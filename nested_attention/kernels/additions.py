"""What anchored subjects add, as the hosts run it: only in rows that carry one, and the word's attention in
chunks of queries.

What it computes is what `anchored.py` says. Letters as there; n of the batch's rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..anchored import AnchoredSubject, attention_to, place_of, shared
from ..attention import BoundSubject, joined, nested_value, text_weights, without_autocast
from .chunks import chunks_of
from .rows import Marks, RowGroup, Rows, take

Carried = Sequence[AnchoredSubject]


def add_anchored(
    out: Tensor, query: Tensor, key: Tensor, subjects: Sequence[BoundSubject], *, heads: int, rows: Rows
) -> Tensor:
    """`out` (B, L, H·d) plus `anchored.anchored_addition` of the anchored ones among the subjects.

    Written into `out` unless gradients are recorded. rows: `read_rows(subjects, …)`.
    """
    out = out.clone() if torch.is_grad_enabled() else out
    for group in rows.groups:
        carried = _carried(group, subjects)
        if carried:
            at = group.rows
            here = out[at]
            _add(here, query[at], key[at], carried, heads)
            if not isinstance(at, slice):
                out[at] = here
    return out


def _carried(group: RowGroup, subjects: Sequence[BoundSubject]) -> Carried:
    """The anchored subjects that a group's rows carry, in these rows."""
    found = []
    for number, marks in group.carried:
        subject = subjects[number]
        if isinstance(subject, AnchoredSubject) and subject.scale:
            found.append(_in_rows(subject, marks))
    return found


def _in_rows(subject: AnchoredSubject, marks: Marks) -> AnchoredSubject:
    """The subject in the rows that carry it."""
    key, value, bias, region = (
        take(x, marks.rows) for x in (subject.key, subject.value, subject.token_bias, subject.region)
    )
    return _with(subject, key, value, marks.mask, bias, region)


@without_autocast
def _add(out: Tensor, q: Tensor, k: Tensor, carried: Carried, heads: int) -> None:
    """Adds Σ w · m · u of subjects that all rows carry to (n, L, H·d)."""
    words = _words(q, k, carried, heads)
    places = [place_of(*word, subject) for word, subject in zip(words, carried, strict=True)]
    for subject, place in zip(carried, shared(places, carried), strict=True):
        addition = joined(nested_value(q, subject, heads=heads)).to(out.dtype)
        out.addcmul_(addition, place[..., None].to(out.dtype), value=subject.scale)


def _words(q: Tensor, k: Tensor, carried: Carried, heads: int) -> list[tuple[Tensor, Tensor]]:
    """P[s*] and P_λ[s*] of each subject, (n, L) each. The text's logits are not in memory as a whole."""
    if all(subject.everywhere for subject in carried):  # nothing is asked of the words
        ones = torch.ones(q.shape[:2], device=q.device)
        return [(ones, ones)] * len(carried)
    parts = []
    for at in chunks_of(q, k, heads):
        plain = text_weights(q[:, at], k, heads=heads)
        parts.append([_word(plain, q[:, at], k, subject, at, heads) for subject in carried])
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)  # of each subject, its pairs in all chunks
    return [(torch.cat([one for one, _ in c], 1), torch.cat([other for _, other in c], 1)) for c in columns]


def _word(
    plain: Tensor, q: Tensor, k: Tensor, subject: AnchoredSubject, at: slice, heads: int
) -> tuple[Tensor, Tensor]:
    word = attention_to(plain, subject.mask)
    if subject.attention_scale == 1:
        return word, word
    region = subject.region
    region = None if region is None else region[:, at]
    here = _with(subject, subject.key, subject.value, subject.mask, subject.token_bias, region)
    return word, attention_to(text_weights(q, k, [here], heads=heads), subject.mask)


def _with(
    subject: AnchoredSubject,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    region: Tensor | None,
) -> AnchoredSubject:
    """With other tensors; compilers cannot follow `dataclasses.replace`."""
    return AnchoredSubject(
        key=key,
        value=value,
        mask=mask,
        token_bias=bias,
        region=region,
        attention_scale=subject.attention_scale,
        strength=subject.strength,
        weight=subject.weight,
        everywhere=subject.everywhere,
        quantile=subject.quantile,
        level=subject.level,
        exponent=subject.exponent,
    )
