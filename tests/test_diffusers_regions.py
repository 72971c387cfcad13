"""Several subjects in a diffusers pipeline: regions, self-attention, blocks, a subject a picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler, StableDiffusionXLPipeline
from tiny_sdxl import STEPS, make_encoder, make_pipeline, make_subject
from torch import Tensor

from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import AppliedSubject, SubjectBinding, SubjectSlot, personalize
from nested_attention.hosts.diffusers.regions import AutomaticRegions
from nested_attention.hosts.diffusers.self_attention import RegionSelfAttentionProcessor
from nested_attention.regions import RegionFinder
from nested_attention.settings import SubjectSettings
from nested_attention.subject_batch import SubjectBatch

PROMPT = "a photo of <alice> and <bob:man>"
LEFT = torch.tensor([[1.0, 0.0]])
NEEDED = ("prompt_embeds", "add_text_embeds", "add_time_ids")


def stop_guiding(at: int) -> Any:
    """A callback that switches guidance off after a step, which halves the batch."""

    def stop(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step != at:
            return {}
        pipe._guidance_scale = 1.0
        return {name: kwargs[name].chunk(2)[-1] for name in NEEDED}

    return stop


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def encoder(pipeline: StableDiffusionXLPipeline) -> SubjectEncoder:
    return make_encoder(pipeline.unet)


def draw(pipeline: StableDiffusionXLPipeline, subjects: list[AppliedSubject], **options: Any) -> Tensor:
    settings = {"prompt": PROMPT, "num_inference_steps": STEPS, "height": 32, "width": 32, **options}
    generator = torch.Generator().manual_seed(0)
    with personalize(pipeline, subjects):
        return pipeline(**settings, generator=generator, output_type="latent").images


def two(encoder: SubjectEncoder, alice: dict[str, Any], bob: dict[str, Any]) -> list[AppliedSubject]:
    strong = {"attention_scale": 3.0, "alpha": 6.0}
    return [
        AppliedSubject(make_subject(encoder, seed=seed), encoder, name=name, **{**strong, **settings})
        for seed, (name, settings) in enumerate((("alice", alice), ("bob", bob)))
    ]


def differ(one: Tensor, other: Tensor, threshold: float = 1e-3) -> bool:
    return float((one - other).abs().max()) > threshold * float(other.abs().max())


def test_regions_and_self_attention(pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder) -> None:
    bare = draw(pipeline, two(encoder, {}, {}))
    here, there = {"region": LEFT, "bounded": True}, {"region": 1 - LEFT, "bounded": True}
    placed = draw(pipeline, two(encoder, here, there))
    apart = draw(pipeline, two(encoder, {**here, "bound_self_attention": True}, there))
    assert differ(placed, bare) and differ(apart, placed)
    assert torch.equal(
        draw(pipeline, two(encoder, {**here, "bound_self_attention": True}, {})),
        draw(pipeline, two(encoder, here, {})),
    )
    assert not any(
        isinstance(p, RegionSelfAttentionProcessor) for p in pipeline.unet.attn_processors.values()
    )
    assert torch.equal(draw(pipeline, two(encoder, {}, {})), bare)


def test_found_regions(pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder) -> None:
    def steps(settings: dict[str, Any], **options: Any) -> list[Tensor]:
        seen: list[Tensor] = []

        def note(_: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            seen.append(kwargs["latents"].clone())
            return {}

        draw(
            pipeline,
            two(encoder, settings, settings),
            num_inference_steps=4,
            callback_on_step_end=note,
            **options,
        )
        return seen

    auto = {"region_mode": "auto", "bounded": True}
    plain, found = steps({}), steps(auto)
    assert torch.equal(found[0], plain[0])  # 30 % of 4 steps are watched
    assert differ(found[1], plain[1], 2e-5)  # in a random UNet both words are attended much alike
    assert torch.equal(steps(auto)[-1], found[-1])
    late, late_plain = steps({**auto, "start": 0.5}), steps({"start": 0.5})
    assert torch.equal(late[0], late_plain[0])
    # Not in force while regions are found, they have the whole picture.
    assert not differ(late[-1], late_plain[-1], 2e-5)
    early, early_plain = steps({**auto, "end": 0.6}), steps({"end": 0.6})
    assert differ(early[-1], early_plain[-1], 2e-5) and differ(early[-1], found[-1], 2e-5)


@pytest.mark.parametrize("guided_to", [0, 8])
def test_a_negative_prompt_has_no_say_in_where_a_region_is(
    pipeline: StableDiffusionXLPipeline,
    encoder: SubjectEncoder,
    monkeypatch: pytest.MonkeyPatch,
    guided_to: int,
) -> None:
    """It holds the picture's region all the same."""
    found: list[Tensor] = []
    settle = RegionFinder.settle

    def noted(self: RegionFinder) -> Tensor | None:
        regions = settle(self)
        found.append(regions)
        return regions

    monkeypatch.setattr(RegionFinder, "settle", noted)
    held: list[Tensor] = []
    at = AutomaticRegions.at

    def bound(self: AutomaticRegions, step: int, active: Any = None) -> Any:
        bindings = at(self, step, active)
        held.append(bindings[0].region)
        return bindings

    monkeypatch.setattr(AutomaticRegions, "at", bound)
    auto = {"region_mode": "auto"}

    for applied in (False, True):
        draw(
            pipeline,
            two(encoder, {**auto, "apply_to_negative": applied}, auto),
            negative_prompt="<alice> <alice>",
            num_inference_steps=4,
            callback_on_step_end=stop_guiding(guided_to),
            callback_on_step_end_tensor_inputs=list(NEEDED),
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert len(held[-1]) == (1 if guided_to == 0 else 2) and torch.equal(held[-1][-1], found[1][0, 0])
    assert torch.equal(held[-1][0], found[1][0, 0])


def test_what_finds_no_region_is_told(
    pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    auto = {"region_mode": "auto"}
    draw(pipeline, two(encoder, auto, auto), num_inference_steps=8)
    assert not caplog.messages
    draw(pipeline, two(encoder, {**auto, "start": 0.6}, auto), num_inference_steps=8)
    (told,) = caplog.messages
    assert "no region was found for 'alice'" in told and "(start=0)" in told


def test_schedulers_that_visit_a_timestep_twice_watch_as_many_steps(
    pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    before_step = AutomaticRegions.at

    def noted(self: AutomaticRegions, step: int, active: Any = None) -> Any:
        found = before_step(self, step, active)
        held.append(not self.watching)
        return found

    monkeypatch.setattr(AutomaticRegions, "at", noted)
    auto = {"region_mode": "auto"}
    usual, heun = pipeline.scheduler, HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    calls = []
    try:
        for scheduler in (usual, heun):
            pipeline.scheduler = scheduler
            held.clear()
            draw(pipeline, two(encoder, auto, auto), num_inference_steps=10)
            calls.append((held.index(True), len(held)))
    finally:
        pipeline.scheduler = usual
    assert calls == [(3, 10), (5, 19)]  # the first timestep is visited once, the others twice


def test_guidance_may_end_without_any_subject(pipeline: StableDiffusionXLPipeline) -> None:
    draw(
        pipeline,
        [],
        prompt="a house",
        callback_on_step_end=stop_guiding(0),
        callback_on_step_end_tensor_inputs=list(NEEDED),
    )


@pytest.mark.parametrize("at", [0, 2])
def test_found_regions_outlive_guidance(
    pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A callback that switches guidance off halves the batch, before regions are found or after."""
    held: list[list[Any]] = []
    set_bindings = SubjectSlot.set

    def noted(self: SubjectSlot, *bindings: Any) -> None:
        if bindings:  # the call's end binds nothing
            held.append([b.region for b in bindings])
        set_bindings(self, *bindings)

    monkeypatch.setattr(SubjectSlot, "set", noted)

    auto = {"region_mode": "auto", "bounded": True}
    draw(
        pipeline,
        two(encoder, auto, auto),
        num_inference_steps=8,
        callback_on_step_end=stop_guiding(at),
        callback_on_step_end_tensor_inputs=list(NEEDED),
    )
    placed = [regions for regions in held if all(r is not None for r in regions)]
    assert placed and held[-1] == placed[-1]
    assert {len(r) for r in held[-1]} == {1}  # of the positive prompt alone
    if at == 2:
        assert len(placed) == 2  # with guidance and, the same maps, without
        for before, after in zip(*placed, strict=True):
            assert torch.equal(before[-1:], after)


def test_another_aspect_ratio_is_kept_apart_anew(
    pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
) -> None:
    """Latents of 4 × 8 and 8 × 4 cells have as many queries, and their halves lie elsewhere."""
    from types import SimpleNamespace

    from nested_attention.hosts.diffusers.self_attention import SelfAttentionSlot

    half = torch.tensor([[[1.0, 0.0]]])
    bounding = SubjectSettings(bound_self_attention=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    bindings = tuple(
        SubjectBinding(projections={}, mask=mask, region=region, settings=bounding)
        for region in (half, 1 - half)
    )
    slot = SimpleNamespace(bindings=bindings, latent_size=(4, 8), grid=lambda site, queries: slot.latent_size)
    kept = SelfAttentionSlot(slot)  # type: ignore[arg-type]
    wide = kept.bias("site", 32)
    slot.latent_size = (8, 4)
    high = kept.bias("site", 32)
    fresh = SelfAttentionSlot(slot).bias("site", 32)  # type: ignore[arg-type]
    assert wide is not None and high is not None and fresh is not None
    assert torch.equal(high[1], fresh[1]) and not torch.equal(high[1], wide[1])


def test_masks_and_subjects_go_with_the_pictures(
    pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
) -> None:
    prompt = ["a photo of a person"] * 3
    subjects = [make_subject(encoder, seed=seed, images=1 + seed) for seed in range(2)]
    strong = {"attention_scale": 3.0, "alpha": 6.0}

    def one(subject: Any, **settings: Any) -> Tensor:
        return draw(pipeline, [AppliedSubject(subject, encoder, **strong, **settings)], prompt=prompt)

    alone = [one(subject) for subject in subjects]
    together = one(SubjectBatch(tuple(subjects)))
    for row, expected in enumerate((alone[0], alone[1], alone[0])):
        assert torch.allclose(together[row], expected[row], rtol=1e-3, atol=1e-3)
    assert differ(alone[0][1], alone[1][1])
    masks = torch.stack([LEFT, 1 - LEFT])
    sides = [one(subjects[0], region=mask) for mask in masks]
    both = one(subjects[0], region=masks)
    for row, expected in enumerate((sides[0], sides[1], sides[0])):
        assert torch.allclose(both[row], expected[row], rtol=1e-3, atol=1e-3)


def test_blocks(pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder) -> None:
    subject, options = make_subject(encoder), {"prompt": "a photo of a person"}

    def one(**settings: Any) -> Tensor:
        return draw(pipeline, [AppliedSubject(subject, encoder, alpha=6.0, **settings)], **options)

    base = draw(pipeline, [], **options)
    assert torch.equal(one(blocks="all:0"), base)
    assert torch.equal(one(blocks="all:0.5"), one(strength=0.5))
    assert differ(one(blocks="all:0, up:1"), base) and differ(one(blocks="up:0"), one())
    with pytest.raises(NestedAttentionError, match="'person': blocks: 'middle' is no block of this model"):
        one(blocks="middle:1")
