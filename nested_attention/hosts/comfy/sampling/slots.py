"""What stands in the attention layers for one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....kernels.rows import Rows, read_rows
from ....sites import ComfyAddress
from .carried import CarriedSubject
from .coupled import CoupledRows
from .layer import NestedLayer
from .observing import ObservedPass, ObservedSlot
from .self_attention import RegionSelfAttention, SubjectsApart

Slots = dict[str, dict[Any, Any]]


@dataclass(frozen=True, eq=False)
class SubjectsOfPass:
    """Who is carried where in a forward pass, and what the layers read of that: the same for every pass with
    the same prompts.

    by_layer: address and name of each cross-attention layer, the subjects that count there, and what their
    masks say. apart: who is kept apart in self-attention: nobody whose region is still being found.
    """

    carried: tuple[CarriedSubject, ...]
    by_layer: tuple[tuple[ComfyAddress, str, tuple[CarriedSubject, ...], Rows], ...]
    apart: SubjectsApart | None

    @classmethod
    def of(
        cls,
        carried: Sequence[CarriedSubject],
        addresses: Iterable[tuple[ComfyAddress, str]],
        device: torch.device,
    ) -> SubjectsOfPass:
        """device: of the layers. Masks are read here, and nowhere else."""
        apart = SubjectsApart.of(
            [one for one in carried if one.region and not one.region.of_run.watches(one.subject)]
        )
        rows: dict[tuple[CarriedSubject, ...], Rows] = {}
        by_layer = []
        for address, site in addresses:
            here = tuple(one for one in carried if one.subject.strength_at(site))
            if here not in rows:
                rows[here] = read_rows(here, device)
            by_layer.append((address, site, here, rows[here]))
        return cls(tuple(carried), tuple(by_layer), apart)

    def slots(
        self,
        replaced: Mapping[str, dict[Any, Any]],
        coupled: CoupledRows | None = None,
        observed: ObservedPass | None = None,
    ) -> Slots:
        """`patches_replace` with ours on top of what other packs have there; theirs is not changed.

        Cross-attention becomes nested, and is shown to the run's observers, if there are any;
        self-attention is kept apart where two subjects with regions meet and one asks for it. A layer that
        none of this concerns is left as it is.
        """
        crossed, own = dict(replaced.get("attn2", {})), dict(replaced.get("attn1", {}))
        for address, site, here, rows in self.by_layer:
            shown = observed if observed and observed.run.watched(site) else None
            if here or shown or coupled is not None:
                layer = NestedLayer(_there(crossed, address), site, here, rows, coupled)
                crossed[address] = ObservedSlot(layer, self.carried, shown) if shown else layer
            if self.apart is not None:
                own[address] = RegionSelfAttention(_there(own, address), self.apart)
        return {**replaced, "attn2": crossed, **({} if self.apart is None else {"attn1": own})}


def _there(slots: Mapping[Any, Any], address: ComfyAddress) -> Any:
    """What a layer would call: ComfyUI looks for the layer's own address, then for its block's."""
    return slots.get(address, slots.get(address[:2]))
