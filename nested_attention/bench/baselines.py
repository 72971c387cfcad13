"""What is timed side by side: nested attention, its floor, and other ways to the same or a similar end.

Every form gets the same projected queries and text, and gives a layer's output before `to_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..anchored import AnchoredSubject
from ..attention import BoundSubject, plain_attention, text_weights
from ..kernels import add_correction
from ..kernels import nested as nested_form
from ..kernels.rows import Rows, read_rows
from .shapes import TEXT_TOKENS, TEXT_WIDTH, LayerShape

ADAPTER_TOKENS = 16  # IP-Adapter Plus
SCALE = 0.6  # of a decoupled adapter; its size costs nothing
FIRST, APART = 5, 3  # subjects' places in the prompt
MOST_SUBJECTS = len(range(FIRST, TEXT_TOKENS, APART))


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """Of one layer. `rows` are read before, as a host does once a forward pass."""

    heads: int
    query: Tensor  # (B, L, inner)
    key: Tensor  # (B, T, inner)
    value: Tensor  # (B, T, inner)
    subjects: tuple[BoundSubject, ...]
    rows: Rows
    image_tokens: Tensor  # (1, 16, context width), of a decoupled adapter
    image_weight: Tensor  # (inner, context width), of its projections


def make_inputs(
    shape: LayerShape,
    *,
    tokens: int,
    subjects: int = 1,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    guided: bool = False,
    seed: int = 0,
) -> Inputs:
    """Random inputs. guided: as many unmarked rows come before the `batch` marked ones (CFG)."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    rows = batch * (2 if guided else 1)
    bound = []
    for number in range(subjects):
        mask = torch.zeros(rows, TEXT_TOKENS, dtype=torch.bool)
        mask[rows - batch :, FIRST + APART * number] = True
        key, value = randn(1, tokens, shape.inner), randn(1, tokens, shape.inner)
        bound.append(BoundSubject(key=key, value=value, mask=mask))
    return Inputs(
        heads=shape.heads,
        query=randn(rows, shape.queries, shape.inner),
        key=randn(rows, TEXT_TOKENS, shape.inner),
        value=randn(rows, TEXT_TOKENS, shape.inner),
        subjects=tuple(bound),
        rows=read_rows(bound, torch.device(device)),
        image_tokens=randn(1, ADAPTER_TOKENS, TEXT_WIDTH),
        image_weight=randn(shape.inner, TEXT_WIDTH),
    )


def plain(x: Inputs) -> Tensor:
    """The layer without any subject."""
    return plain_attention(x.query, x.key, x.value, heads=x.heads)


def floor(x: Inputs) -> Tensor:
    """The attention over the subjects' tokens alone, in the rows that carry them: what nothing can avoid."""
    out = x.query
    for group in x.rows.groups:
        for number, _ in group.carried:
            out = plain_attention(
                x.query[group.rows], x.subjects[number].key, x.subjects[number].value, heads=x.heads
            )
    return out


def nested(x: Inputs) -> Tensor:
    """Ours, the whole layer: as in diffusers."""
    return nested_form(x.query, x.key, x.value, x.subjects, heads=x.heads, rows=x.rows)


def corrected(x: Inputs) -> Tensor:
    """Ours, on top of whatever attention the host runs: as in ComfyUI."""
    out = plain(x)
    return add_correction(out, x.query, x.key, x.value, x.subjects, heads=x.heads, plain=True, rows=x.rows)


def explicit(x: Inputs) -> Tensor:
    """Eq. 3 as it is written: a value of its own for each query, (B, L, T, inner), as public code does it."""
    batch, length, inner = x.query.shape
    mixed = x.value[:, None].repeat(1, length, 1, 1)  # (B, L, T, inner)
    for subject in x.subjects:
        star = plain_attention(x.query, subject.key, subject.value, heads=x.heads)  # (B, L, inner)
        for row, token in subject.mask.nonzero().tolist():
            goal = 2.0 * x.value[row, token].norm()
            mixed[row, :, token] = goal * star[row] / star[row].norm(dim=-1, keepdim=True)
    probs = text_weights(x.query, x.key, heads=x.heads).to(x.query)  # (B, H, L, T)
    values = mixed.view(batch, length, -1, x.heads, inner // x.heads).permute(0, 3, 1, 2, 4)
    out = probs[..., None, :] @ values  # (B, H, L, 1, d)
    return out.squeeze(-2).transpose(1, 2).flatten(2)


def decoupled(x: Inputs) -> Tensor:
    """Decoupled cross-attention with 16 tokens in all rows, keys and values kept."""
    keys = x.subjects[0].key[:, :ADAPTER_TOKENS]
    return plain(x) + SCALE * plain_attention(x.query, keys, keys, heads=x.heads)


def decoupled_projected(x: Inputs) -> Tensor:
    """The same with its keys and values projected anew, as IPAdapter_plus does at every step."""
    key, value = linear(x.image_tokens, x.image_weight), linear(x.image_tokens, x.image_weight)
    return plain(x) + SCALE * plain_attention(x.query, key, value, heads=x.heads)


def decoupled_as_many(x: Inputs) -> Tensor:
    """Decoupled cross-attention in the same rows with as many tokens as ours, keys and values kept."""
    out = plain(x)
    for group in x.rows.groups:
        for number, _ in group.carried:
            subject = x.subjects[number]
            out[group.rows] += SCALE * plain_attention(
                x.query[group.rows], subject.key, subject.value, heads=x.heads
            )
    return out


def anchored(x: Inputs) -> Tensor:
    """An adapter of 16 tokens anchored to the subjects' words, on top of the attention that the host runs."""
    subjects = [
        AnchoredSubject(
            key=one.key[:, :ADAPTER_TOKENS], value=one.value[:, :ADAPTER_TOKENS], mask=one.mask, weight=SCALE
        )
        for one in x.subjects
    ]
    out = plain(x)
    return add_correction(out, x.query, x.key, x.value, subjects, heads=x.heads, plain=True, rows=x.rows)


FORMS: dict[str, Callable[[Inputs], Tensor]] = {
    "plain": plain,
    "floor": floor,
    "nested": nested,
    "corrected": corrected,
    "explicit": explicit,
    "decoupled": decoupled,
    "decoupled projected": decoupled_projected,
    "decoupled as many": decoupled_as_many,
    "anchored": anchored,
}
