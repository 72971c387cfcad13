"""What a subject does at one layer, computed with the pieces of `attention.py`. Letters as there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..anchored import AnchoredSubject, place_of, shared, word_attentions
from ..attention import (
    BoundSubject,
    at_tokens,
    gate,
    nested_value,
    nested_weights,
    per_head,
    regularisation,
    text_weights,
    without_autocast,
)
from ..kernels.rows import take
from ..subject import Subject

COLOURS = 3

Carried = TypeVar("Carried", bound=BoundSubject)


@dataclass(frozen=True, eq=False)
class Measured:
    """What one subject does in one row of the batch, at each of L queries, in fp32.

    word: P[s*], summed over its tokens s* and averaged over heads, (L,). change: ‖Σ P[s*]·g·(v*_q − V[s*])‖,
    over all heads together, (L,); of an anchored subject ‖w · m_q · u_q‖. place: in [0, 1], the region r of a
    nested subject and m_q of an anchored one, (L,). nested: the nested attention's weights, averaged over
    heads, (L, N).
    """

    word: Tensor
    change: Tensor
    place: Tensor
    nested: Tensor


def measure(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], number: int, *, heads: int,
    columns: int, weights: int,
) -> Iterator[tuple[slice, Measured]]:  # fmt: skip
    """One row of the batch, (1, L, H·d), (1, T, H·d), (1, T, H·d), with all of its subjects → what subject
    `number` does at some queries after others, and which these are.

    columns: of the queries' grid, whose rows stay whole. weights: about how many attention weights, of all
    heads together, are in memory at once.
    """
    queries, tokens = query.shape[1], max(key.shape[1], subjects[number].key.shape[1])
    step = columns * max(1, weights // (heads * tokens * columns))
    chunks = [slice(start, min(start + step, queries)) for start in range(0, queries, step)]
    place = _place(query, key, subjects, number, heads, chunks)
    for at in chunks:
        here = [_at(one, at) for one in subjects]
        yield at, _chunk(query[:, at], key, value, here, number, heads, place[at])


def _at(subject: Carried, at: slice) -> Carried:
    """The subject at some of the queries."""
    return subject if subject.region is None else replace(subject, region=subject.region[:, at])


@without_autocast
def _place(
    query: Tensor,
    key: Tensor,
    subjects: Sequence[BoundSubject],
    number: int,
    heads: int,
    chunks: Sequence[slice],
) -> Tensor:
    """Where the subject is, over all queries: an anchored one's m_q depends on what all of them attend to."""
    subject = subjects[number]
    if isinstance(subject, AnchoredSubject):
        anchored = [one for one in subjects if isinstance(one, AnchoredSubject) and one.scale]
        places = shared([_anchor(query, key, one, heads, chunks) for one in anchored], anchored)
        return next(place for place, one in zip(places, anchored, strict=True) if one is subject)[0]
    whole = query.new_ones(query.shape[1], dtype=torch.float32)
    return whole if subject.region is None else subject.region[0].to(whole)


def _anchor(
    query: Tensor, key: Tensor, subject: AnchoredSubject, heads: int, chunks: Sequence[slice]
) -> Tensor:
    """`anchored.anchor` in a row that carries the subject, with the text's logits of a chunk at a time."""
    words = [word_attentions(query[:, at], key, _at(subject, at), heads=heads) for at in chunks]
    word, scaled = (torch.cat(parts, dim=1) for parts in zip(*words, strict=True))
    return place_of(word, scaled, subject)


@without_autocast
def _chunk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    subjects: Sequence[BoundSubject],
    number: int,
    heads: int,
    place: Tensor,
) -> Measured:
    subject = subjects[number]
    reweighting = [one for one in subjects if not isinstance(one, AnchoredSubject)]  # those leave P alone
    probs = text_weights(query, key, reweighting, heads=heads)  # P, (1, H, L, T)
    word = (probs * at_tokens(subject.mask, probs)).sum(dim=-1)  # (1, H, L)
    star = nested_value(query, subject, heads=heads)  # v*_q or u_q, (1, H, L, d)
    nested = nested_weights(query, subject, heads=heads)  # (1, H, L, N)
    if isinstance(subject, AnchoredSubject):
        change = subject.scale * place[:, None].to(probs) * star  # w · m · u, as in `anchored_addition`
    else:
        v = per_head(value, heads).to(probs)
        share = probs * gate(subject, probs, subject.bounded)  # g·P[s*], and 0 at all other tokens
        regular = (share * regularisation(star, v, subject)).sum(dim=-1, keepdim=True)
        change = regular * star - share @ v  # Σ P[s*]·g·(v*_q − V[s*]), as in `nested_cross_attention`
    length = change[0].square().sum(dim=(0, 2)).sqrt()
    return Measured(word[0].mean(dim=0), length, place, nested[0].mean(dim=0))


def in_row(subject: BoundSubject, row: int) -> BoundSubject:
    """The subject in one row of the batch, (1, …) each."""
    at = slice(row, row + 1)
    word, key, value, bias, region = (
        take(x, at) for x in (subject.word, subject.key, subject.value, subject.token_bias, subject.region)
    )
    mask = take(subject.mask, at)
    return replace(subject, mask=mask, word=word, key=key, value=value, token_bias=bias, region=region)


def token_colours(subject: Subject) -> Tensor:
    """Each token's place on the three main axes of the subject's tokens: (N, 3), in fp32 on the CPU.

    The nested value of a head is linear in the tokens, v*_q = (Σ_n a_n t_n) W, so what the query chooses is
    the point Σ a_n t_n among the tokens. These axes are the same in all layers, heads and steps, where values
    themselves lie in spaces that differ from layer to layer. Tokens count by their weight; the axes are
    scaled to a standard deviation of one, and their signs are fixed.
    """
    tokens = subject.tokens.detach().float().cpu()
    weights = subject.token_bias.detach().float().cpu().exp()[:, None]
    centred = tokens - (weights * tokens).sum(dim=0) / weights.sum()
    _, _, axes = torch.linalg.svd(weights.sqrt() * centred, full_matrices=False)
    places = centred @ axes[:COLOURS].mT  # (N, ≤ 3)
    places = torch.nn.functional.pad(places, (0, COLOURS - places.shape[1]))
    places = places * torch.where((places**3).sum(dim=0) < 0, -1.0, 1.0)  # a longer tail is positive
    spread = (weights * places.square()).sum(dim=0) / weights.sum()
    return places / spread.sqrt().clamp_min(1e-6)
