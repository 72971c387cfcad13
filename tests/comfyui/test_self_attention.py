"""Self-attention that is kept apart between the regions of two subjects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_placed_subjects import TWO, draw, left, two
from torch import Tensor

HERE, THERE = {"region": left()}, {"region": 1 - left()}
APART = {"bound_self_attention": True}


def test_it_changes_the_picture_and_one_of_the_two_is_enough(world: Any) -> None:
    from tiny import carries, same

    plain = draw(*two(world, HERE, THERE), TWO)
    apart = draw(*two(world, {**HERE, **APART}, THERE), TWO)
    assert carries(apart, plain)
    assert same(draw(*two(world, {**HERE, **APART}, {**THERE, **APART}), TWO), apart)


@pytest.mark.parametrize(
    ("alice", "bob"),
    [
        ({}, {}),
        (HERE, {}),
        ({"region": torch.zeros(1, 8, 8)}, THERE),
        (HERE, {**THERE, "strength": 0.0, "when_missing": "warn"}),
        ({**HERE, "region_mode": "none"}, THERE),
        (HERE, {**THERE, "start": 1.0}),
    ],
    ids=[
        "no regions",
        "one region",
        "one empty",
        "one at strength 0",
        "one switched off",
        "one not in force",
    ],
)
def test_without_two_regions_it_is_off_to_the_bit(
    world: Any, alice: dict[str, Any], bob: dict[str, Any]
) -> None:
    from tiny import same

    plain = draw(*two(world, alice, bob), TWO)
    assert same(draw(*two(world, {**alice, **APART}, {**bob, **APART}), TWO), plain)


def test_one_subject_a_prompt_is_nothing_to_keep_apart(world: Any) -> None:
    """Two prompts combined, each with its own subject: no pass has both in one picture."""
    from tiny import encode, same, sample

    def combined(settings: dict[str, Any]) -> Tensor:
        model, clip = two(world, {**HERE, **settings}, {**THERE, **settings})
        return sample(model, encode(clip, "<alice>") + encode(clip, "<bob>"), encode(clip, "bad"))

    assert same(combined(APART), combined({}))


def test_rows_without_two_subjects_are_left_alone(world: Any) -> None:
    """A layer: the negative's rows run as they would, the others see nothing of the other region."""
    from comfy.ldm.modules.attention import optimized_attention

    apply_self = layer(world)
    q, k, v = qkv()
    out = apply_self(q, k, v, OPTIONS)
    assert torch.equal(out[:1], optimized_attention(q[:1], k[:1], v[:1], heads=4))
    inside = torch.tensor([True, True, False, False] * 4)
    for side in (inside, ~inside):
        alone = optimized_attention(q[1:, side], k[1:, side], v[1:, side], heads=4)
        torch.testing.assert_close(out[1:, side], alone, rtol=1e-4, atol=1e-4)


def test_rows_that_do_not_lie_together(world: Any) -> None:
    """Two prompts with both subjects, around one without."""
    from nested_attention.hosts.comfy.sampling.self_attention import SubjectsApart

    together, scattered = layer(world), layer(world)
    apart: SubjectsApart = scattered.apart
    where = replace(apart.regions[0].where, pictures=(0,) * 3, parts=apart.regions[0].where.parts[:1] * 3)
    regions = [replace(one, where=where) for one in apart.regions]
    carries = torch.tensor([[True, False, True]] * 2)
    scattered = replace(scattered, apart=replace(apart, regions=regions, carries=carries, rows=(0, 2)))
    q, k, v = qkv()
    order = [1, 0, 1]
    options = {**OPTIONS, "activations_shape": [3, 64, 4, 4]}
    found = scattered(q[order], k[order], v[order], options)
    torch.testing.assert_close(found, together(q, k, v, OPTIONS)[order], rtol=1e-4, atol=1e-4)


def test_other_packs_in_the_slot(world: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    q, k, v = qkv()
    expected = layer(world)(q, k, v, OPTIONS)

    def passes_its_options(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return 0.1 * q + optimized_attention(q, k, v, heads=4, transformer_options=extra_options)

    torch.testing.assert_close(layer(world, passes_its_options)(q, k, v, OPTIONS), expected + 0.1 * q)

    def by_place(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return optimized_attention(q, k, v, 4, None, transformer_options=extra_options)

    torch.testing.assert_close(layer(world, by_place)(q, k, v, OPTIONS), expected)

    def keeps_to_itself(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return v

    assert torch.equal(layer(world, keeps_to_itself)(q, k, v, OPTIONS), v)


def calls_what_it_is_given(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return func(*args, **kwargs)


def by_name(
    func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any
) -> Tensor:
    return func(q, k, v, heads, mask=mask, **kwargs)


def leaves_masks_out(
    _: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kw: Any
) -> Tensor:
    """As SageAttention's do: `sageattn(q, k, v, attn_mask=mask)` reads no attn_mask."""
    from comfy.ldm.modules.attention import attention_basic

    return attention_basic(q, k, v, heads=heads)


def takes_no_masks(_: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any) -> Tensor:
    assert "mask" not in kwargs
    return leaves_masks_out(_, q, k, v, heads)


def a_row_at_a_time(func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.cat([func(q[i : i + 1], k[i : i + 1], v[i : i + 1], *args, **kwargs) for i in range(len(q))])


OVERRIDES = [calls_what_it_is_given, by_name, leaves_masks_out, takes_no_masks, a_row_at_a_time]


@pytest.mark.parametrize("override", OVERRIDES)
def test_it_holds_whatever_attention_override_there_is(world: Any, override: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    def in_the_slot(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return 0.1 * q + optimized_attention(q, k, v, heads=4, transformer_options=extra_options)

    calls: list[Any] = []

    def counted(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(func)
        return override(func, *args, **kwargs)

    q, k, v = qkv()
    expected = layer(world)(q, k, v, OPTIONS)
    overridden = {**OPTIONS, "optimized_attention_override": counted}
    torch.testing.assert_close(layer(world)(q, k, v, overridden), expected)
    assert len(calls) == 2  # the rows with a bias, and those without
    torch.testing.assert_close(layer(world, in_the_slot)(q, k, v, overridden), expected + 0.1 * q)
    assert len(calls) == 3


def test_what_an_override_does_to_the_attention_it_calls_is_kept(world: Any) -> None:
    def halves(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        return 0.5 * func(*args, **kwargs)

    q, k, v = qkv()
    expected = 0.5 * layer(world)(q, k, v, OPTIONS)
    halved = layer(world)(q, k, v, {**OPTIONS, "optimized_attention_override": halves})
    torch.testing.assert_close(halved, expected)


def test_attention_that_another_pack_put_in_comfyuis_place_is_asked_for_no_mask(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.modules.attention as attention

    q, k, v = qkv()
    expected = layer(world)(q, k, v, OPTIONS)
    foreign = attention.wrap_attn(lambda *args, **kwargs: leaves_masks_out(None, *args[:3], kwargs["heads"]))
    monkeypatch.setattr(attention, "optimized_attention", foreign)
    torch.testing.assert_close(layer(world)(q, k, v, OPTIONS), expected)

    def in_the_slot(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        return foreign(q, k, v, heads=4, transformer_options=extra_options)

    torch.testing.assert_close(layer(world, in_the_slot)(q, k, v, OPTIONS), expected)


def test_merged_or_tiled_tokens_are_left_to_the_node_that_does_it(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()
    q, k, v = (x[:, :8] for x in qkv())
    assert torch.equal(layer(world)(q, k, v, OPTIONS), optimized_attention(q, k, v, heads=4))
    assert "self-attention is not kept apart" in caplog.text


@pytest.mark.parametrize("settings", [{}, APART], ids=["regions", "regions kept apart"])
def test_with_pag_sag_hypertile_and_perp_neg(world: Any, settings: dict[str, Any]) -> None:
    import comfy.samplers
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_perpneg import Guider_PerpNeg
    from comfy_extras.nodes_sag import SelfAttentionGuidance
    from tiny import carries, encode, same, sample_with

    model, clip = two(world, {**HERE, **settings}, {**THERE, **settings})
    bare, bare_clip = two(world, {}, {})
    patches = {
        "pag": lambda m: PerturbedAttentionGuidance.execute(m, 3.0)[0],
        "sag": lambda m: SelfAttentionGuidance.execute(m, 0.5, 2.0)[0],
        "hypertile": lambda m: HyperTile.execute(m, 32, 2, 1, False)[0],
    }
    for patch in patches.values():
        ours = draw(patch(model), clip, TWO, size=16)
        assert carries(ours, draw(patch(bare), bare_clip, TWO, size=16))
        assert carries(ours, draw(model, clip, TWO, size=16))
        assert same(draw(patch(model), clip, TWO, size=16), ours)

    def perp(model: Any, clip: Any) -> Tensor:
        guider = Guider_PerpNeg(model)
        guider.set_conds(encode(clip, TWO), encode(clip, "bad"), encode(clip, ""))
        guider.set_cfg(4.0, 1.0)
        return sample_with(guider)

    assert carries(perp(model, clip), perp(bare, bare_clip))
    assert isinstance(Guider_PerpNeg(model), comfy.samplers.CFGGuider)


OPTIONS = {"n_heads": 4, "attn_precision": None, "activations_shape": [2, 64, 4, 4]}


def test_where_an_attention_reads_no_mask_pytorchs_is_taken(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SageAttention's: a mask is one of the arguments that it leaves out."""
    import comfy.ldm.modules.attention as attention

    expected = layer(world)(*qkv(), OPTIONS)

    def without_masks(*args: Any, mask: Any = None, **kwargs: Any) -> Tensor:
        out: Tensor = attention.attention_pytorch(*args, **kwargs)
        return out

    monkeypatch.setattr(attention, "attention_sage", without_masks)
    monkeypatch.setattr(attention, "optimized_attention", without_masks)
    torch.testing.assert_close(layer(world)(*qkv(), OPTIONS), expected)


def qkv() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 16, 64, generator=generator) for _ in range(3)]


def layer(world: Any, previous: Any = None) -> Any:
    """What stands in a self-attention's slot: a row without subjects, and one with two in halves."""
    from nested_attention.hosts.comfy.sampling.carried import carried_in
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.hosts.comfy.sampling.places import Pass
    from nested_attention.hosts.comfy.sampling.run import SamplingRun
    from nested_attention.hosts.comfy.sampling.self_attention import RegionSelfAttention, SubjectsApart

    model, clip = two(world, {**HERE, **APART}, THERE)
    chain = SubjectChain.of(model)
    codes = clip.marks(clip.tokenize(TWO)).codes
    whole = (0, 0, 8, 8, 8, 8)
    run = SamplingRun(chain.subjects, 1, torch.tensor([1.0, 0.0]))
    codes = torch.cat([torch.zeros_like(codes), codes])
    carried = carried_in(
        chain.subjects, codes, codes.device, chain._values(None), run, Pass((0, 0), (whole, whole))
    )
    apart = SubjectsApart.of(carried)
    assert apart is not None and apart.rows == (1,)
    return RegionSelfAttention(previous, apart)
