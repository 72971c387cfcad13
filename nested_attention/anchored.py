"""Anchored attention: an adapter trained as decoupled cross-attention, kept to the place of one word.

    u_q   = softmax(Q K_ipᵀ / √d) V_ip                                  `attention.nested_value`
    m_q   = k · min(1, P_λ[s*] / (c · a high quantile of P[s*] over q))^e    `anchor`
    out_q = softmax(Q Kᵀ / √d) V + w · m_q · u_q                        `anchored_attention`

and of several subjects i, each on a word of its own, m_i · m_i / Σ_j m_j in place of m: `shared`.

IP-Adapter (Ye et al., arXiv 2308.06721) adds u everywhere, m ≡ 1, with a weight w. The paper calls nested
attention "an IP-Adapter that anchors the subject's encoding to a single textual token"; this anchors an
adapter that was not trained for it. P[s*] is the word's attention in the mean over heads, P_λ the same under
λ: the text's own attention stays as it is, and λ > 1 makes the subject's place larger. A region multiplies m.
Letters as in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import (
    BoundSubject,
    joined,
    nested_value,
    onto,
    plain_attention,
    text_weights,
    without_autocast,
)

QUANTILE, LEVEL, EXPONENT = 0.95, 0.65, 2.0
BACKGROUND, FLAT, CLEAR = 0.05, 0.8, 0.6
"""k, the same at all queries, is 0 where the word has no place in the picture: where a low quantile of P[s*],
BACKGROUND, is FLAT times the high one or more. It is 1 where it is CLEAR times that or less, and rises in
between."""

TINY = 1e-6  # smallest attention divided by


@dataclass(frozen=True, eq=False, kw_only=True)
class AnchoredSubject(BoundSubject):
    """A subject of a decoupled adapter, bound to tokens of the text at one cross-attention layer.

    key, value: K_ip and V_ip. mask: the tokens s* whose attention is the place. strength: a factor on w.
    attention_scale: λ. alpha, norm, word and bounded: not used. ValueError as for BoundSubject.
    """

    weight: float = 1.0  # w
    everywhere: bool = False  # m ≡ 1 in the rows that carry the subject, as IP-Adapter has it
    quantile: float = QUANTILE  # of P[s*] over the queries: what the word is attended to in its own place
    level: float = LEVEL  # c: the share of that from which on a query belongs to the word fully
    exponent: float = EXPONENT  # e: the higher, the less where it is attended less than that

    @property
    def scale(self) -> float:
        """w · strength"""
        return self.weight * self.strength


@without_autocast
def anchored_attention(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[AnchoredSubject], *, heads: int
) -> Tensor:
    """Text cross-attention plus what each subject adds at its place, in the query's dtype.

    (B, L, H·d), (B, T, H·d), (B, T, H·d) → (B, L, H·d). Rows that carry no subject are plain attention.
    """
    plain = plain_attention(query, key, value, heads=heads)
    return plain + anchored_addition(query, key, subjects, heads=heads)


@without_autocast
def anchored_addition(
    query: Tensor, key: Tensor, subjects: Sequence[AnchoredSubject], *, heads: int
) -> Tensor:
    """Σ w · m · u over the subjects, (B, L, H·d) in the query's dtype. Zero in rows that carry no subject."""
    subjects = [subject for subject in subjects if subject.scale]
    places = shared([anchor(query, key, subject, heads=heads) for subject in subjects], subjects)
    added = torch.zeros_like(query)
    for subject, place in zip(subjects, places, strict=True):
        addition = joined(nested_value(query, subject, heads=heads))  # u, (B, L, H·d)
        added = added + (subject.scale * place[..., None] * addition).to(query.dtype)
    return added


def anchor(query: Tensor, key: Tensor, subject: AnchoredSubject, *, heads: int) -> Tensor:
    """m: how much each query belongs to the subject's word, (B, L) in [0, 1], in at least fp32."""
    word, scaled = word_attentions(query, key, subject, heads=heads)
    rows = subject.mask.any(dim=1, keepdim=True).to(word)  # (B, 1): those that carry the subject
    return place_of(word, scaled, subject) * rows


def word_attentions(
    query: Tensor, key: Tensor, subject: AnchoredSubject, *, heads: int
) -> tuple[Tensor, Tensor]:
    """P[s*] and P_λ[s*], (B, L) each."""
    word = attention_to(text_weights(query, key, heads=heads), subject.mask)
    if subject.attention_scale == 1:
        return word, word
    return word, attention_to(text_weights(query, key, [subject], heads=heads), subject.mask)


def attention_to(probs: Tensor, mask: Tensor) -> Tensor:
    """P[s*] in the mean over heads: (B, H, L, T), (B, T) bool → (B, L)"""
    return (probs.mean(dim=1) @ onto(mask, probs)[..., None])[..., 0]


def place_of(word: Tensor, scaled: Tensor, subject: AnchoredSubject) -> Tensor:
    """m from P[s*] and P_λ[s*], (B, L) each, over all queries of a picture."""
    if subject.everywhere:
        place = torch.ones_like(word)
    else:
        ordered = word.sort(dim=1).values
        high, low = quantile(ordered, subject.quantile).clamp_min(TINY), quantile(ordered, BACKGROUND)
        place = (scaled / (subject.level * high)).clamp(0, 1) ** subject.exponent
        place = place * ((FLAT - low / high) / (FLAT - CLEAR)).clamp(0, 1)
    region = subject.region
    return place if region is None else place * onto(region, place)


def quantile(ordered: Tensor, share: float) -> Tensor:
    """`torch.quantile` over dimension 1, in which values ascend: (B, L) → (B, 1). In one operation, where it
    takes some twenty, and for any number of values."""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    near = ordered[:, below : below + 2]
    return near[:, :1].lerp(near[:, -1:], place - below)


def shared(places: Sequence[Tensor], subjects: Sequence[AnchoredSubject]) -> list[Tensor]:
    """Each subject's m times its share of all of them there: a place is mostly one's, and the sum is at most
    1. Those that are everywhere stay as they are, and count for nothing."""
    both = list(zip(places, subjects, strict=True))
    kept = [place for place, subject in both if not subject.everywhere]
    if len(kept) < 2:
        return list(places)
    whole = torch.stack(kept).sum(dim=0).clamp_min(TINY)
    return [place if subject.everywhere else place * place / whole for place, subject in both]
