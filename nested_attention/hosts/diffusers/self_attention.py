"""Self-attention that is kept apart between the regions of the subjects in one picture."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from ...regions import area_mean, bias_in_rows, rows_apart
from .binding import SubjectBinding
from .keywords import name_keywords
from .processors import SubjectSlot


class SelfAttentionSlot:
    """Beside a SubjectSlot: processors in the self-attention of the same blocks.

    They act in rows that carry two subjects with regions, one of which has `bound_self_attention`; everywhere
    else each layer runs its previous processor, bit for bit.
    """

    def __init__(self, slot: SubjectSlot) -> None:
        self._slot = slot
        self._bindings: tuple[SubjectBinding, ...] = ()
        self._biases: dict[Any, tuple[list[int], Tensor] | None] = {}  # by latent size, number of queries

    @classmethod
    def install(cls, slot: SubjectSlot) -> SelfAttentionSlot:
        self = cls(slot)
        for site in slot.sites:
            layer: Any = slot.unet.get_submodule(_beside(site))
            layer.set_processor(RegionSelfAttentionProcessor(site, layer.processor, self))
        return self

    def remove(self) -> None:
        """Puts the previous processors back. Without effect the second time."""
        for site in self._slot.sites:
            layer: Any = self._slot.unet.get_submodule(_beside(site))
            processor = layer.processor
            if isinstance(processor, RegionSelfAttentionProcessor) and processor.slot is self:
                layer.set_processor(processor.previous)

    def bias(self, site: str, queries: int) -> tuple[list[int], Tensor] | None:
        """Rows, and what is added to their logits (rows, L, L); None if nothing is kept apart."""
        if self._bindings is not self._slot.bindings:
            self._bindings, self._biases = self._slot.bindings, {}
        key = self._slot.latent_size, queries
        if key not in self._biases:
            self._biases[key] = self._bias(site, queries)
        return self._biases[key]

    def _bias(self, site: str, queries: int) -> tuple[list[int], Tensor] | None:
        placed = [b for b in self._bindings if b.region is not None]
        if len(placed) < 2:
            return None
        carries = torch.stack([b.mask.any(dim=1).cpu() for b in placed])  # (S, B)
        bounding = torch.tensor([b.settings.bound_self_attention for b in placed])
        rows = rows_apart(carries, bounding)
        if not rows:
            return None
        grid = self._slot.grid(site, queries)
        regions = [area_mean(b.region, grid).flatten(1) for b in placed if b.region is not None]
        return rows, bias_in_rows(regions, carries, bounding, rows)[:, 0]


class RegionSelfAttentionProcessor:
    """The processor of one self-attention layer: the previous one, with a bias where regions are kept apart.

    The bias is an attention mask, which diffusers' processors add to the logits.
    """

    def __init__(self, site: str, previous: Any, slot: SelfAttentionSlot) -> None:
        self.site, self.previous, self.slot = site, previous, slot
        name_keywords(self, previous)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, L, C) → (B, L, C)"""
        if temb is not None:  # SDXL passes none, and not every processor takes one
            kwargs["temb"] = temb

        def run(x: Tensor, mask: Tensor | None) -> Tensor:
            return self.previous(attn, x, encoder_hidden_states, mask, **kwargs)

        found = None
        if encoder_hidden_states is None and attention_mask is None:
            found = self.slot.bias(self.site, hidden_states.shape[1])
        if found is None:
            return run(hidden_states, attention_mask)
        rows, bias = found
        bias = bias.to(hidden_states)
        batch = len(hidden_states)
        if type(self.previous) in (AttnProcessor, AttnProcessor2_0):  # rows do not depend on one another
            others = [row for row in range(batch) if row not in rows]
            parts = [run(hidden_states[rows], bias)]
            parts += [run(hidden_states[others], None)] if others else []
            order = torch.tensor([*rows, *others]).argsort().to(hidden_states.device)
            return torch.cat(parts)[order]
        full = bias.new_zeros(batch, *bias.shape[1:])
        full[rows] = bias
        return run(hidden_states, full)


def _beside(site: str) -> str:
    """The self-attention of a cross-attention layer's block."""
    return site.removesuffix("attn2") + "attn1"
