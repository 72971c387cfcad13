"""What stands in the attention layers for one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ....kernels.rows import Rows, read_rows
from ....sites import ComfyAddress
from .carried import CarriedSubject
from .coupled import CoupledRows
from .layer import NestedLayer
from .self_attention import RegionSelfAttention, SubjectsApart
from .watching import WatchedLayer

Slots = dict[str, dict[Any, Any]]


def fill_slots(
    replaced: Mapping[str, dict[Any, Any]],
    addresses: Iterable[tuple[ComfyAddress, str]],
    carried: Sequence[CarriedSubject],
    device: torch.device,
    coupled: CoupledRows | None = None,
) -> Slots:
    """`patches_replace` with ours on top of what other packs have there; theirs is not changed.

    Cross-attention becomes nested, and in a sampling's first steps watched, where a region is to be found;
    self-attention is kept apart where two subjects with regions meet and one asks for it. A layer that none
    of this concerns is left as it is. What the subjects' masks say is read here, once for all layers.
    """
    crossed, own = dict(replaced.get("attn2", {})), dict(replaced.get("attn1", {}))
    watching = [one for one in carried if one.region and one.region.run.watches(one.subject)]
    apart = SubjectsApart.of([one for one in carried if one.region and one not in watching])
    rows: dict[tuple[int, ...], Rows] = {}  # by which subjects count in a layer
    for address, site in addresses:
        counting = tuple(i for i, one in enumerate(carried) if one.subject.strength_at(site))
        if watching or counting or coupled is not None:
            here = [carried[i] for i in counting]
            if counting not in rows:
                rows[counting] = read_rows(here, device)
            layer = NestedLayer(_there(crossed, address), site, here, rows[counting], coupled)
            crossed[address] = WatchedLayer(layer, site, watching) if watching else layer
        if apart is not None:
            own[address] = RegionSelfAttention(_there(own, address), apart)
    return {**replaced, "attn2": crossed, **({} if apart is None else {"attn1": own})}


def _there(slots: Mapping[Any, Any], address: ComfyAddress) -> Any:
    """What a layer would call: ComfyUI looks for the layer's own address, then for its block's."""
    return slots.get(address, slots.get(address[:2]))
