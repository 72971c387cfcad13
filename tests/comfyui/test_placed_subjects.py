"""Subjects that count in a part of the picture: masks, bounded words, regions found while sampling."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

TWO = "<alice> and <bob:man> on the beach"


def left(height: int = 64, width: int = 64) -> Tensor:
    """A MASK of the left half."""
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = 1
    return mask


def two(world: Any, alice: dict[str, Any], bob: dict[str, Any]) -> tuple[Any, Any]:
    chain = world.apply(world.model, world.clip, name="alice", **alice)
    return world.apply(*chain, world.bob, name="bob", **bob)


def draw(
    model: Any, clip: Any, prompt: str = "a photo of a person", negative: str = "bad", **options: Any
) -> Tensor:
    from tiny import encode, sample

    return sample(model, encode(clip, prompt), encode(clip, negative), **options)


def draw_sized(model: Any, clip: Any, height: int, width: int, steps: int = 2) -> Tensor:
    import comfy.sample
    from tiny import encode

    noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    conds = encode(clip, "a photo of a person"), encode(clip, "bad")
    zero = torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, steps, 4.0, "euler", "normal", *conds, zero, seed=0)


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (7, 5), (1, 1), (300, 200)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_region_zero_is_the_base_model_and_region_one_no_region_to_the_bit(
    world: Any, size: tuple[int, int], scale: float
) -> None:
    from tiny import carries, same

    base = draw(world.model, world.clip)
    everywhere = draw(*world.apply(world.model, world.clip, attention_scale=scale))
    nowhere = world.apply(world.model, world.clip, attention_scale=scale, region=torch.zeros(1, *size))
    assert same(draw(*nowhere), base)
    for bounded in (False, True):
        ones = torch.ones(2, *size)
        model, clip = world.apply(
            world.model, world.clip, attention_scale=scale, region=ones, bounded=bounded
        )
        assert same(draw(model, clip), everywhere)
    if size[1] > 1:
        half = draw(*world.apply(world.model, world.clip, attention_scale=scale, region=left(*size)))
        assert carries(half, base) and carries(half, everywhere)


def test_only_queries_inside_the_region_change_in_a_layer(world: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    from nested_attention.hosts.comfy.sampling.carried import carried_in
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.hosts.comfy.sampling.layer import NestedLayer
    from nested_attention.hosts.comfy.sampling.places import Pass
    from nested_attention.hosts.comfy.sampling.run import SamplingRun

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 64, generator=generator) for n in (16, 77, 77))
    whole = (0, 0, 8, 8, 8, 8)
    options = {"n_heads": 4, "attn_precision": None, "activations_shape": [2, 64, 4, 4]}

    def layer(settings: dict[str, Any], options: dict[str, Any] = options) -> Tensor:
        model, clip = world.apply(world.model, world.clip, **settings)
        chain = SubjectChain.of(model)
        codes = clip.marks(clip.tokenize("a person")).codes
        run = SamplingRun(chain.subjects, 1, torch.tensor([1.0, 0.0]))
        carried = carried_in(
            chain.subjects,
            torch.cat([torch.zeros_like(codes), codes]),
            q.device,
            chain._values(None),
            run,
            Pass((0, 0), (whole, whole)),
        )
        return NestedLayer(None, chain.addresses[0][1], carried)(q, k, v, options)

    plain, full = optimized_attention(q, k, v, heads=4), layer({})
    half = layer({"region": left()})
    inside = torch.tensor([True, True, False, False] * 4)
    torch.testing.assert_close(half[1, inside], full[1, inside], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(half[1, ~inside], plain[1, ~inside], rtol=1e-5, atol=1e-5)
    assert torch.equal(half[0], plain[0])
    assert not torch.allclose(layer({"region": left(), "bounded": True})[1, ~inside], plain[1, ~inside])
    feathered = layer({"region": 0.5 * torch.ones(1, 3, 3), "attention_scale": 1.0})
    full = layer({"attention_scale": 1.0})
    torch.testing.assert_close(feathered, (plain + full) / 2, rtol=1e-4, atol=1e-4)
    from nested_attention.errors import NestedAttentionError

    with pytest.raises(NestedAttentionError, match="16 queries for 3 × 4 cells.*merges or tiles"):
        layer({"region": left()}, {**options, "activations_shape": [2, 64, 3, 4]})


def test_regions_are_made_once_and_only_the_last_are_kept(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many windows of a batch there are."""
    from nested_attention.hosts.comfy.sampling import regions
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.hosts.comfy.sampling.places import Pass

    monkeypatch.setattr(regions, "KEPT", 2)
    model, _ = world.apply(world.model, world.clip, region=left())
    (subject,) = SubjectChain.of(model).subjects
    of_run = regions.RegionsOfRun([subject], 3, 1)

    def region(picture: int) -> Tensor:
        where = Pass((picture,), ((0, 0, 8, 8, 8, 8),))
        found = of_run.region(subject, where, (4, 4), torch.device("cpu"))
        assert found is not None and not bool(of_run.empty(subject, where).any())
        return found

    first, *others = (region(picture) for picture in range(3))
    assert all(region(picture) is one for picture, one in enumerate(others, 1))
    assert region(0) is not first and torch.equal(region(0), first)


def test_bounded_without_a_region_does_nothing(world: Any) -> None:
    from tiny import same

    plain = draw(*world.apply(world.model, world.clip))
    assert same(draw(*world.apply(world.model, world.clip, bounded=True)), plain)
    assert same(
        draw(*world.apply(world.model, world.clip, bounded=True, region=left(), region_mode="none")), plain
    )


def test_off_square_sizes_and_deep_shrink(world: Any) -> None:
    """912×1144 has odd numbers of cells at every level, and deep shrink other ones again."""
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
    from tiny import carries, same

    mask = left(912, 1144)
    region, base = world.apply(world.model, world.clip, region=mask), (world.model, world.clip)
    plain = draw_sized(*base, 912, 1144)
    found = draw_sized(*region, 912, 1144)
    assert carries(found, plain) and carries(found, draw_sized(*world.apply(*base), 912, 1144))
    nowhere = world.apply(*base, region=torch.zeros(1, 912, 1144))
    assert same(draw_sized(*nowhere, 912, 1144), plain)
    shrink = PatchModelAddDownscale.execute(region[0], 2, 2.0, 0.0, 0.5, True, "bicubic", "bicubic")[0]
    assert carries(draw_sized(shrink, region[1], 152, 232), draw_sized(*region, 152, 232))


def test_a_batch_of_masks_goes_with_the_pictures_and_begins_again(world: Any) -> None:
    from tiny import carries

    masks = torch.cat([left(), 1 - left()])
    both = draw(*world.apply(world.model, world.clip, region=masks), batch=3)
    one, other = (draw(*world.apply(world.model, world.clip, region=m), batch=3) for m in masks.split(1))
    for row, expected in ((0, one), (1, other), (2, one)):
        torch.testing.assert_close(both[row], expected[row], rtol=1e-4, atol=1e-4)
    assert carries(one[1], other[1])


def test_a_mask_is_laid_on_each_grid_once_a_sampling(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nested_attention.hosts.comfy.sampling import regions

    calls: list[Any] = []
    original = regions.area_mean
    monkeypatch.setattr(
        regions, "area_mean", lambda mask, grid, part: calls.append(grid) or original(mask, grid, part)
    )
    draw(*world.apply(world.model, world.clip, region=left()), steps=4, batch=2)
    assert sorted(calls) == [(1, 1), (2, 2), (4, 4)]  # is it empty? and two grids, for four rows


def test_a_region_is_cut_to_the_area_of_its_prompt(world: Any) -> None:
    """A prompt in the right half, and a region that is the right half: everywhere for that prompt."""
    import nodes
    from tiny import carries, encode, same, sample

    def in_area(model: Any, clip: Any) -> Tensor:
        positive = nodes.ConditioningSetArea().append(encode(clip, "a person"), 64, 128, 64, 0, 1.0)[0]
        return sample(model, positive + encode(clip, "a house"), encode(clip, "bad"), size=16)

    everywhere = in_area(*world.apply(world.model, world.clip))
    right = torch.zeros(1, 128, 128)
    right[..., 64:] = 1
    assert same(in_area(*world.apply(world.model, world.clip, region=right)), everywhere)
    assert carries(in_area(*world.apply(world.model, world.clip, region=left(128, 128))), everywhere)


def test_passes_together_or_apart_and_in_both_orders(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.samplers

    settings = [
        {"region": left(), "bounded": True, "bound_self_attention": True},
        {"region": 1 - left(), "bounded": True},
    ]
    model, clip = two(world, *settings)
    together = draw(model, clip, TWO, batch=2)
    seen: list[list[int]] = []
    original = comfy.samplers.cond_cat
    monkeypatch.setattr(comfy.samplers, "cond_cat", lambda c: seen.append([len(c)]) or original(c))
    monkeypatch.setattr(world.model.model, "memory_required", lambda *args, **kwargs: 1e20)
    torch.testing.assert_close(draw(model, clip, TWO, batch=2), together, rtol=1e-4, atol=1e-4)
    assert {n for (n,) in seen} == {1}


def test_regions_keep_two_people_apart_and_order_and_repetition_do_not_matter(world: Any) -> None:
    from tiny import carries, same

    here = {"region": left(), "bounded": True}
    there = {"region": 1 - left(), "bounded": True}
    pictures = [draw(*two(world, here, there), TWO) for _ in range(3)]
    assert same(pictures[0], pictures[1]) and same(pictures[0], pictures[2])
    bare = draw(*two(world, {}, {}), TWO)
    assert carries(pictures[0], bare)
    first = world.apply(world.model, world.clip, world.bob, name="bob", **there)
    swapped = world.apply(*first, name="alice", **here)
    assert not carries(draw(*swapped, TWO), pictures[0], threshold=2e-5)
    assert same(draw(*two(world, {}, {}), TWO), bare)


class TestFound:
    """region_mode auto."""

    AUTO = {"region_mode": "auto", "bounded": True}

    def steps(self, model: Any, clip: Any, prompt: str = TWO, steps: int = 6, **options: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        draw(
            model, clip, prompt, steps=steps, callback=lambda i, x0, x, n: seen.append(x0.clone()), **options
        )
        return seen

    def test_the_first_steps_are_watched_and_the_others_held(self, world: Any) -> None:
        from tiny import carries, same

        plain, found = (self.steps(*two(world, s, s)) for s in ({}, self.AUTO))
        assert same(found[0], plain[0]) and same(found[1], plain[1])  # 30 % of 6 steps
        assert carries(found[2], plain[2])
        assert same(self.steps(*two(world, self.AUTO, self.AUTO))[-1], found[-1])

    def test_alone_or_with_a_mask_it_changes_nothing(self, world: Any) -> None:
        from tiny import carries, same

        plain = self.steps(*world.apply(world.model, world.clip), "a person")
        alone = self.steps(*world.apply(world.model, world.clip, region_mode="auto"), "a person")
        assert not carries(alone[-1], plain[-1], threshold=2e-5)
        masked = self.steps(*world.apply(world.model, world.clip, region=left()), "a person")
        given = world.apply(world.model, world.clip, region=left(), region_mode="auto")
        assert same(self.steps(*given, "a person")[-1], masked[-1])

    def test_pictures_of_a_batch_have_regions_of_their_own(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, clip = two(world, self.AUTO, self.AUTO)
        together = self.steps(model, clip, batch=2)[-1]
        monkeypatch.setattr(world.model.model, "memory_required", lambda *args, **kwargs: 1e20)
        torch.testing.assert_close(self.steps(model, clip, batch=2)[-1], together, rtol=1e-3, atol=1e-3)
        alone = self.steps(model, clip)[-1]  # the first of the two has the same noise only if it is alone
        assert together.shape[0] == 2 and alone.shape[0] == 1

    def test_the_last_part_of_a_sampling_has_first_steps_too(self, world: Any) -> None:
        """Image to image: the fraction is of the steps that are run."""
        from tiny import carries

        options = {"denoise": 0.4}
        plain, found = (self.steps(*two(world, s, s), steps=4, **options) for s in ({}, self.AUTO))
        assert torch.equal(found[0], plain[0]) and carries(found[-1], plain[-1])

    def test_samplers_that_evaluate_a_step_twice_and_cfg_1(self, world: Any) -> None:
        from comfy.samplers import CFGGuider
        from tiny import carries, encode

        def heun(model: Any, clip: Any) -> Tensor:
            import comfy.samplers

            guider = CFGGuider(model)
            guider.set_conds(encode(clip, TWO), encode(clip, "bad"))
            guider.set_cfg(1.0)
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 4)
            sampler = comfy.samplers.sampler_object("heun")
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

        assert carries(heun(*two(world, self.AUTO, self.AUTO)), heun(*two(world, {}, {})))

    def test_a_negative_prompt_has_no_say_in_where_a_region_is(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Watched in the first of 3 steps, whose latents are the same."""
        from nested_attention.regions import RegionFinder

        found: list[Tensor] = []
        settle = RegionFinder.settle
        monkeypatch.setattr(RegionFinder, "settle", lambda self: found.append(settle(self)) or found[-1])
        for apart in (False, True):
            if apart:
                monkeypatch.setattr(world.model.model, "memory_required", lambda *args, **kwargs: 1e20)
            for applied in (False, True):
                both = two(world, {**self.AUTO, "apply_to_negative": applied}, self.AUTO)
                self.steps(*both, steps=3, negative="<alice> <alice>")
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)

    def test_a_region_that_cannot_be_found_is_said(
        self, world: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        from nested_attention.hosts.comfy.notices import warn_once

        warn_once.cache_clear()
        draw(*two(world, self.AUTO, {**self.AUTO, "start": 0.6}), TWO, steps=4)
        assert "Apply Subject: no region was found for 'bob'" in caplog.text
        assert "'alice'" not in caplog.text

    def test_a_sampling_too_short_to_find_regions_in_is_told_of(
        self, world: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tiny import same

        from nested_attention.hosts.comfy.notices import warn_once

        warn_once.cache_clear()
        two_auto = two(world, self.AUTO, self.AUTO)
        for steps in (2, 1):
            assert not caplog.messages
            picture = draw(*two_auto, TWO, steps=steps)
        draw(*two_auto, TWO, steps=1)
        (told,) = caplog.messages
        assert told.startswith("Apply Subject: ") and "too few steps" in told and "'alice', 'bob'" in told
        assert same(picture, draw(*two(world, {}, {}), TWO, steps=1))

    def test_pictures_that_grow_while_they_are_sampled(self, world: Any) -> None:
        """SamplerLCMUpscale, while regions are looked for and after that."""
        import comfy.samplers
        from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
        from tiny import encode

        model, clip = two(world, self.AUTO, self.AUTO)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 7)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(encode(clip, TWO), encode(clip, "bad"))
        guider.set_cfg(4.0)
        sampler = SamplerLCMUpscale.execute(2.0, -1, "bilinear")[0]
        grown = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
        assert grown.shape == (1, 4, 16, 16) and bool(grown.isfinite().all())

    def test_what_is_found_ends_with_the_sampling(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from nested_attention.hosts.comfy.sampling import chain as hosts_model

        runs: list[Any] = []

        class Noted(hosts_model.SamplingRun):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                runs.append(weakref.ref(self))

        monkeypatch.setattr(hosts_model, "SamplingRun", Noted)
        model, clip = two(world, self.AUTO, self.AUTO)
        draw(model, clip, TWO)
        draw(model, clip, TWO)
        gc.collect()
        assert len(runs) == 2 and [run() for run in runs] == [None, None]
        assert model.model_options["transformer_options"] == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": torch.ones(4)}, r"the region has shape \(4,\); expected a MASK"),
        ({"region": "a mask"}, "the region has str; expected a MASK"),
        ({"region": torch.ones(0, 4, 4)}, r"shape \(0, 4, 4\)"),
        ({"region": 2 * torch.ones(1, 4, 4)}, "values go from 2 to 2; expected 0"),
        ({"region": torch.full((1, 4, 4), torch.nan)}, "values go from nan"),
        ({"region_mode": "automatic"}, "region_mode is 'automatic'; expected one of 'mask', 'auto', 'none'"),
        ({"blocks": "dwn:1"}, "Apply Subject: blocks: 'dwn' is no block of this model; it has all, down"),
    ],
)
def test_bad_regions_and_blocks_are_refused(world: Any, settings: dict[str, Any], message: str) -> None:
    from nested_attention.errors import NestedAttentionError

    with pytest.raises(NestedAttentionError, match=message):
        world.apply(world.model, world.clip, **settings)


def test_an_empty_region_is_the_base_model_with_a_warning(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from tiny import same

    from nested_attention.hosts.comfy.notices import warn_once

    warn_once.cache_clear()
    base = draw(world.model, world.clip)
    assert same(draw(*world.apply(world.model, world.clip, region=torch.zeros(1, 8, 8))), base)
    assert "Apply Subject: the region of 'person' is empty" in caplog.text


def test_blocks(world: Any) -> None:
    from tiny import carries, same

    base, full = draw(world.model, world.clip), draw(*world.apply(world.model, world.clip))
    assert same(draw(*world.apply(world.model, world.clip, blocks="all:0")), base)
    assert same(draw(*world.apply(world.model, world.clip, blocks="down, mid:1, up:1.0")), full)
    halves = [
        draw(*world.apply(world.model, world.clip, blocks=b)) for b in ("up:0", "all:0, up:1", "up:0.5")
    ]
    for half in halves:
        assert carries(half, base) and carries(half, full)
    weak = draw(*world.apply(world.model, world.clip, strength=0.5))
    assert same(draw(*world.apply(world.model, world.clip, blocks="all:0.5")), weak)
    off, _ = world.apply(world.model, world.clip, blocks="all:0")
    assert not off.get_nested_additional_models()  # off takes no memory either


def test_a_node_that_drops_the_places_is_told_off(world: Any) -> None:
    from nested_attention.errors import NestedAttentionError

    def drop(apply_model: Any, args: dict[str, Any]) -> Tensor:
        c = {name: value for name, value in args["c"].items() if "places" not in name}
        return apply_model(args["input"], args["timestep"], **c)

    model, clip = world.apply(world.model, world.clip, region=left())
    model.set_model_unet_function_wrapper(drop)
    with pytest.raises(NestedAttentionError, match="differs from picture to picture or place to place"):
        draw(model, clip)
