"""Regions, bounded words, separate self-attention, blocks and found regions mean the same in both hosts."""

# ruff: noqa: F811  the fixture is imported by its name

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_hosts_agree import RELATIVE, TEXT, agree, binding, in_diffusers
from test_hosts_agree import both as hosts  # noqa: F401  a fixture
from torch import Tensor

WORDS = ("person", "pet")


def masks() -> dict[str, Tensor]:
    """Feathered, overlapping, of a size that no grid divides."""
    ramp = torch.linspace(-1, 2, 23).clamp(0, 1).expand(19, -1)
    return {"person": ramp[None], "pet": 1 - 0.8 * ramp[None]}


def passes(
    hosts: SimpleNamespace, settings: dict[str, dict[str, Any]]
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """What ComfyUI's UNet was given at each of three steps, and what it returned."""
    from comfy.patcher_extension import WrappersMP
    from tiny import apply_with, encode, sample

    calls: list[tuple[dict[str, Tensor], Tensor]] = []

    def record(
        executor: Any, x: Tensor, t: Tensor, context: Tensor, y: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        out = executor(x, t, context, y, *args, **kwargs)
        calls.append(({"x": x, "t": t, "context": context, "y": y}, out))
        return out

    model, clip = hosts.model, hosts.clip
    for word in WORDS:
        model, clip = apply_with(
            model, clip, *getattr(hosts, word), word=word, attention_scale=2.0, alpha=6.0, strength=0.9,
            when_missing="error", **settings[word],
        )  # fmt: skip
    model = model.clone()
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, record)
    sample(model, encode(clip, TEXT), encode(clip, "bad"), batch=2)
    assert [len(given["x"]) for given, _ in calls] == [4, 4, 4]
    return calls


def bindings(hosts: SimpleNamespace, **settings: Any) -> list[Any]:
    found = [binding(hosts, word, word, 2.0) for word in WORDS]
    return [replace(one, settings=replace(one.settings, strength=0.9, **settings)) for one in found]


@pytest.mark.parametrize("bounded", [False, True], ids=["gated", "bounded"])
@pytest.mark.parametrize("apart", [False, True], ids=["", "self-attention apart"])
def test_masks(hosts: SimpleNamespace, bounded: bool, apart: bool) -> None:
    from nested_attention.hosts.diffusers import SelfAttentionSlot, SubjectSlot

    extra = {"bounded": bounded, "bound_self_attention": apart}
    given, ours = passes(hosts, {word: {"region": masks()[word], **extra} for word in WORDS})[1]
    slot = SubjectSlot.install(hosts.unet)
    beside = SelfAttentionSlot.install(slot)
    bound = [
        replace(one, region=masks()[word]) for word, one in zip(WORDS, bindings(hosts, **extra), strict=True)
    ]
    with slot.bind(*bound):
        agree(ours, in_diffusers(hosts.unet, given))
    with slot.bind(*bindings(hosts)):
        everywhere = in_diffusers(hosts.unet, given)
    beside.remove()
    slot.remove()
    assert float((ours - everywhere).abs().max()) > 20 * RELATIVE * float(ours.abs().max())


def test_blocks(hosts: SimpleNamespace) -> None:
    from nested_attention.hosts.diffusers import SubjectSlot

    text = "all:0.5, up:1, down:0"
    given, ours = passes(hosts, {word: {"blocks": text} for word in WORDS})[1]
    slot = SubjectSlot.install(hosts.unet)
    with slot.bind(*bindings(hosts, blocks=text)):
        agree(ours, in_diffusers(hosts.unet, given))
    slot.remove()


@pytest.mark.parametrize("extra", [{}, {"bounded": True, "bound_self_attention": True}], ids=["", "apart"])
def test_found_regions(hosts: SimpleNamespace, extra: dict[str, Any]) -> None:
    from nested_attention.hosts.diffusers import AutomaticRegions, SelfAttentionSlot, SubjectSlot

    calls = passes(hosts, {word: {"region_mode": "auto", **extra} for word in WORDS})
    slot = SubjectSlot.install(hosts.unet)
    beside = SelfAttentionSlot.install(slot)
    regions = AutomaticRegions(slot, bindings(hosts, region_mode="auto", **extra), steps=len(calls))
    for step, (given, ours) in enumerate(calls):
        with slot.bind(*regions.at(step)):
            agree(ours, in_diffusers(hosts.unet, given))
        assert regions.watching == (step == 0)
    with slot.bind(*bindings(hosts)):
        everywhere = in_diffusers(hosts.unet, calls[2][0])
    beside.remove()
    slot.remove()
    assert float((calls[2][1] - everywhere).abs().max()) > 20 * RELATIVE * float(everywhere.abs().max())
