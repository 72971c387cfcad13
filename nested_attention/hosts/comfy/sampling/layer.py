"""The subjects at one cross-attention layer, for one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
from torch import Tensor

from ....anchored import AnchoredSubject
from ....attention import BoundSubject
from ....errors import NestedAttentionError
from ....kernels import add_correction, nested
from ....kernels.rows import Rows
from .carried import CarriedSubject
from .coupled import CoupledRows
from .parts import attends_in_parts


@dataclass(frozen=True, eq=False)
class NestedLayer:
    """What stands in a layer's slot for one forward pass: what was there before, plus the subjects'
    correction.

    In an empty slot it is the nested attention as a whole, which costs less, where that changes no bit of the
    rows that carry no subject (`attends_in_parts`).

    rows: `read_rows(carried, …)`, so that the layers need not read the masks again; None: they read them.
    coupled: who is carried where another pack has changed the rows of the pass.
    """

    previous: Any
    site: str
    carried: Sequence[CarriedSubject]
    rows: Rows | None = None
    coupled: CoupledRows | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """(B, L, inner), (B, T, inner), (B, T, inner) → (B, L, inner)"""
        heads, tokens = extra_options["n_heads"], k.shape[1]
        host = {
            "heads": heads,
            "attn_precision": extra_options["attn_precision"],
            "transformer_options": extra_options,
        }
        carried = self._carried(q, k, v)
        known = carried is self.carried and len(carried) > 0 and carried[0].mask.shape[1] == tokens
        rows = self.rows if known else None  # None: another pack changed the context's length
        if self.previous is None and rows is not None and attends_in_parts(q, k, rows, extra_options):
            subjects = self._bind(carried, q, tokens, extra_options)
            # Outside of a region, and beside an addition, it is the host's to the bit.
            if not any(isinstance(one, AnchoredSubject) or one.region is not None for one in subjects):
                attend = partial(comfy_attention.optimized_attention, **host)
                return nested(q, k, v, subjects, heads=heads, rows=rows, unmarked=attend)
        if self.previous is None:
            out = comfy_attention.optimized_attention(q, k, v, **host)
        else:
            out = self.previous(q, k, v, extra_options)
        if not carried:
            return out
        # Bound after the attention above: a compiler that breaks off there could not carry them over.
        subjects = self._bind(carried, q, tokens, extra_options)
        return add_correction(out, q, k, v, subjects, heads=heads, plain=self.previous is None, rows=rows)

    def _carried(self, q: Tensor, k: Tensor, v: Tensor) -> Sequence[CarriedSubject]:
        """Who is carried in these rows. Raises NestedAttentionError if that cannot be told."""
        if not len(q) == len(k) == len(v):
            raise NestedAttentionError(
                f"Nested Attention: {self.site} has queries for {len(q)} prompts and keys for {len(k)}: "
                "another node adds rows of its own to the text context and attends to them in a way that "
                "leaves no room for subjects, as the sampler of ComfyUI-NAG does. Take it out (the NAG of "
                "sd-perturbed-attention, which patches the MODEL, works), or Apply Subject"
            )
        if self.coupled is not None:
            found = self.coupled.carried(len(q), k.shape[1])
            if found is not None:
                return [one for one in found if one.subject.strength_at(self.site)]
        batch = len(self.carried[0].mask) if self.carried else len(q)
        if len(q) != batch:
            raise NestedAttentionError(
                f"Nested Attention: {self.site} runs on {len(q)} pictures at once and the prompts' marks are "
                f"for {batch}: another node {'adds rows to' if len(q) > batch else 'splits'} the batch in a "
                "way it does not tell. Take it out, or Apply Subject"
            )
        return self.carried

    def _bind(
        self, carried: Sequence[CarriedSubject], query: Tensor, tokens: int, options: dict[str, Any]
    ) -> list[BoundSubject]:
        return [one.bind(self.site, query, tokens, options) for one in carried]
