"""What stands in the attention layers for one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...sites import ComfyAddress
from .layer import CarriedSubject, NestedLayer
from .regions import WatchedLayer
from .self_attention import RegionSelfAttention, SubjectsApart

Slots = dict[str, dict[Any, Any]]


def fill_slots(
    replaced: Mapping[str, dict[Any, Any]],
    addresses: Iterable[tuple[ComfyAddress, str]],
    carried: Sequence[CarriedSubject],
) -> Slots:
    """`patches_replace` with ours on top of what other packs have there; theirs is not changed.

    Cross-attention becomes nested, and in a sampling's first steps watched, where a region is to be found;
    self-attention is kept apart where two subjects with regions meet and one asks for it. A layer that none
    of this concerns is left as it is.
    """
    crossed, own = dict(replaced.get("attn2", {})), dict(replaced.get("attn1", {}))
    watching = [one for one in carried if one.region and one.region.run.watches(one.subject)]
    apart = SubjectsApart.of([one for one in carried if one.region and one not in watching])
    for address, site in addresses:
        if watching or any(one.subject.strength_at(site) for one in carried):
            layer = NestedLayer(_there(crossed, address), site, carried)
            crossed[address] = WatchedLayer(layer, site, watching) if watching else layer
        if apart is not None:
            own[address] = RegionSelfAttention(_there(own, address), apart)
    return {**replaced, "attn2": crossed, **({} if apart is None else {"attn1": own})}


def _there(slots: Mapping[Any, Any], address: ComfyAddress) -> Any:
    """What a layer would call: ComfyUI looks for the layer's own address, then for its block's."""
    return slots.get(address, slots.get(address[:2]))
