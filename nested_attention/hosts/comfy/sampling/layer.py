"""One subject at one cross-attention layer, for one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
from torch import Tensor

from ....attention import BoundSubject
from ....errors import NestedAttentionError
from ....kernels import add_correction, nested
from ....kernels.rows import Rows
from ..prompts.marks import fit
from .applied import AppliedSubject
from .parts import attends_in_parts
from .regions import PassRegion, grid_of


@dataclass(frozen=True, eq=False)
class CarriedSubject:
    """A subject in one forward pass: rows and tokens that carry it, (B, T) bool on the CPU.

    region: where it counts, None for everywhere.
    """

    subject: AppliedSubject
    values: Any
    mask: Tensor
    word: Tensor
    token_bias: Tensor | None
    region: PassRegion | None = None

    @property
    def strength(self) -> float:
        return self.subject.strength

    def word_in(self, tokens: int) -> Tensor:
        """(B, tokens) bool on the CPU: all tokens of the word, in a context of that length."""
        return fit(self.word, tokens)

    def bind(
        self, site: str, query: Tensor, tokens: int, options: Mapping[str, Any] | None = None
    ) -> BoundSubject:
        """options: of the layer, needed with a region only."""
        if len(self.mask) != len(query):
            raise NestedAttentionError(
                f"Nested Attention: {site} runs on {len(query)} pictures at once and the prompts' marks are "
                f"for {len(self.mask)}: another node splits the batch in a way it does not tell. Take it "
                "out, or Apply Subject"
            )
        key, value = self.values(site, query.device)
        region = None
        if self.region is not None and options is not None and self.subject.strength_at(site):
            region = self.region.at(grid_of(site, query.shape[1], options), query.device)
        return self.subject.settings.bind(
            key,
            value,
            fit(self.mask, tokens),
            word=self.word_in(tokens),
            factor=self.subject.factors[site],
            token_bias=self.token_bias,
            region=region,
        )


@dataclass(frozen=True, eq=False)
class NestedLayer:
    """What stands in a layer's slot for one forward pass: what was there before, plus the subjects'
    correction.

    In an empty slot it is the nested attention as a whole, which costs less, where that changes no bit of the
    rows that carry no subject (`attends_in_parts`).

    rows: `read_rows(carried, …)`, so that the layers need not read the masks again; None: they read them.
    """

    previous: Any
    site: str
    carried: Sequence[CarriedSubject]
    rows: Rows | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """(B, L, inner), (B, T, inner), (B, T, inner) → (B, L, inner)"""
        heads, tokens = extra_options["n_heads"], k.shape[1]
        host = {
            "heads": heads,
            "attn_precision": extra_options["attn_precision"],
            "transformer_options": extra_options,
        }
        known = bool(self.carried) and self.carried[0].mask.shape[1] == tokens
        rows = self.rows if known else None  # None: another pack changed the context's length
        if self.previous is None and rows is not None and attends_in_parts(q, k, rows, extra_options):
            subjects = self._bind(q, tokens, extra_options)
            if all(one.region is None for one in subjects):  # outside of one it is the host's to the bit
                attend = partial(comfy_attention.optimized_attention, **host)
                return nested(q, k, v, subjects, heads=heads, rows=rows, unmarked=attend)
        if self.previous is None:
            out = comfy_attention.optimized_attention(q, k, v, **host)
        else:
            out = self.previous(q, k, v, extra_options)
        if not self.carried:
            return out
        # Bound after the attention above: a compiler that breaks off there could not carry them over.
        subjects = self._bind(q, tokens, extra_options)
        return add_correction(out, q, k, v, subjects, heads=heads, plain=self.previous is None, rows=rows)

    def _bind(self, query: Tensor, tokens: int, options: dict[str, Any]) -> list[BoundSubject]:
        return [one.bind(self.site, query, tokens, options) for one in self.carried]
