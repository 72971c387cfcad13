"""The diffusers host: processors on a UNet, and pipelines of SDXL's kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from explicit import explicit_nested_attention
from tiny_sdxl import STEPS, TEXT_WIDTHS, make_encoder, make_pipeline, make_subject, make_unet
from torch import Tensor

from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import (
    AppliedSubject,
    SelfAttentionSlot,
    SubjectBinding,
    SubjectSlot,
    personalize,
    processors,
)
from nested_attention.hosts.diffusers.binding import PAPER
from nested_attention.settings import SubjectSettings
from nested_attention.sites import diffusers_sites

TOKENS = 9


@pytest.fixture(scope="module")
def bare_unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def unet(bare_unet: UNet2DConditionModel) -> Iterator[UNet2DConditionModel]:
    before = bare_unet.attn_processors
    yield bare_unet
    assert all(bare_unet.attn_processors[name] is processor for name, processor in before.items())
    assert not bare_unet._forward_pre_hooks


def run(
    unet: UNet2DConditionModel,
    batch: int = 3,
    size: tuple[int, int] = (16, 16),
    rows: Any = slice(None),
    timestep: int = 500,
) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)[rows]

    sample, text = randn(4, *size), randn(TOKENS, sum(TEXT_WIDTHS))
    added = {"text_embeds": randn(TEXT_WIDTHS[1]), "time_ids": randn(6)}
    return unet(sample, timestep, text, added_cond_kwargs=added).sample


def project(unet: UNet2DConditionModel, rows: int = 1, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def leaf(inner: int, size: float) -> Tensor:
        return (size * torch.randn(rows, 6, inner, generator=generator)).requires_grad_()

    sites = diffusers_sites(unet)
    return {site.name: (leaf(site.inner_dim, 1.0), leaf(site.inner_dim, 5.0)) for site in sites}


def paper(**settings: Any) -> SubjectSettings:
    """As the paper trains, but for these."""
    return replace(PAPER, **settings)


def mark(*tokens: tuple[int, int], batch: int = 3) -> Tensor:
    mask = torch.zeros(batch, TOKENS, dtype=torch.bool)
    for row, token in tokens:
        mask[row, token] = True
    return mask


class TestSlot:
    def test_only_cross_attention_is_touched_and_everything_is_put_back(
        self, unet: UNet2DConditionModel
    ) -> None:
        before = unet.attn_processors
        slot = SubjectSlot.install(unet)
        after = unet.attn_processors
        assert {name for name in before if after[name] is not before[name]} == {
            f"{site.name}.processor" for site in diffusers_sites(unet)
        }
        slot.remove()
        slot.remove()
        assert all(unet.attn_processors[name] is before[name] for name in before)

    @torch.no_grad()
    def test_nothing_bound_nothing_marked_and_strength_zero_are_bit_identical(
        self, unet: UNet2DConditionModel
    ) -> None:
        base, projections = run(unet), project(unet)
        slot = SubjectSlot.install(unet)
        assert torch.equal(run(unet), base)
        with slot.bind(SubjectBinding(projections=projections, mask=mark())):
            assert torch.equal(run(unet), base)
        off = SubjectBinding(
            projections=projections, mask=mark((1, 4)), settings=paper(strength=0.0, attention_scale=4.0)
        )
        with slot.bind(off):
            assert torch.equal(run(unet), base)
        with slot.bind(SubjectBinding(projections=projections, mask=mark((1, 4)))):
            assert not torch.equal(run(unet), base)
        assert torch.equal(run(unet), base)
        slot.remove()

    @torch.no_grad()
    def test_a_layer_computes_the_equations(self, unet: UNet2DConditionModel) -> None:
        site = diffusers_sites(unet)[2]
        layer: Any = unet.get_submodule(site.name)
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(3, 64, site.inner_dim, generator=generator)
        text = torch.randn(3, TOKENS, site.context_dim, generator=generator)
        binding = SubjectBinding(
            projections=project(unet),
            mask=mark((1, 4), (2, 2), (2, 3)),
            settings=paper(attention_scale=2.0, strength=0.7),
        )
        slot = SubjectSlot.install(unet)
        with slot.bind(binding):
            found = layer(hidden, text)
        slot.remove()
        mixed = explicit_nested_attention(
            layer.to_q(hidden), layer.to_k(text), layer.to_v(text), [binding.at(site.name)], heads=site.heads
        )
        expected = layer.to_out[0](mixed.float())
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    @torch.no_grad()
    def test_each_row_has_its_own_subject_and_rows_without_one_are_untouched(
        self, unet: UNet2DConditionModel
    ) -> None:
        base, projections = run(unet), project(unet, rows=3)
        slot = SubjectSlot.install(unet)
        with slot.bind(SubjectBinding(projections=projections, mask=mark((0, 4), (2, 6)))):
            together = run(unet)
        assert torch.equal(together[1], base[1])
        for row, token in ((0, 4), (2, 6)):
            alone = {site: (k[row : row + 1], v[row : row + 1]) for site, (k, v) in projections.items()}
            with slot.bind(SubjectBinding(projections=alone, mask=mark((0, token), batch=1))):
                assert torch.allclose(run(unet, rows=[row])[0], together[row], atol=1e-5)
        slot.remove()

    def test_gradients_reach_every_layer(self, unet: UNet2DConditionModel) -> None:
        projections = project(unet)
        slot = SubjectSlot.install(unet)
        with slot.bind(SubjectBinding(projections=projections, mask=mark((1, 4)))):
            run(unet).square().sum().backward()
        slot.remove()
        for key, value in projections.values():
            assert key.grad is not None
            assert value.grad is not None
            assert key.grad.any()
            assert value.grad.any()

    def test_gradient_checkpointing_gives_the_same_gradients(self) -> None:
        found = []
        for checkpointing in (False, True):
            unet = make_unet().train().requires_grad_(False)
            if checkpointing:
                unet.enable_gradient_checkpointing()
            projections = project(unet)
            slot = SubjectSlot.install(unet)
            with slot.bind(SubjectBinding(projections=projections, mask=mark((0, 1), (1, 4)))):
                run(unet).square().sum().backward()
            found.append([x.grad for pair in projections.values() for x in pair])
        for plain, checkpointed in zip(*found, strict=True):
            assert torch.allclose(plain, checkpointed, atol=1e-6 * float(plain.abs().max()))

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 9)])
    def test_regions_follow_each_layer_s_grid(
        self, unet: UNet2DConditionModel, size: tuple[int, int]
    ) -> None:
        base, projections = run(unet, size=size), project(unet)
        slot = SubjectSlot.install(unet)

        def with_region(region: Tensor | None, bounded: bool = False) -> Tensor:
            binding = SubjectBinding(
                projections=projections,
                mask=mark((1, 4)),
                region=region,
                settings=paper(bounded=bounded, attention_scale=2.0),
            )
            with slot.bind(binding):
                return run(unet, size=size)

        everywhere = with_region(None)
        assert torch.allclose(with_region(torch.ones(1, 64, 48)), everywhere, atol=1e-5)
        assert torch.allclose(with_region(torch.zeros(3, 7, 5)), base, atol=1e-5)
        left = torch.zeros(1, 32, 32)
        left[..., :16] = 1
        half = with_region(left)
        assert not torch.allclose(half, base, atol=1e-3)
        assert not torch.allclose(half, everywhere, atol=1e-3)
        assert not torch.allclose(with_region(left, bounded=True), half, atol=1e-3)
        slot.remove()

    @torch.no_grad()
    def test_what_another_processor_adds_is_kept(self, unet: UNet2DConditionModel) -> None:
        class Adding(AttnProcessor2_0):
            """Stands for IP-Adapter: the text's attention, and something on top."""

            def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                return super().__call__(attn, hidden_states, *args, **kwargs) + 0.1 * hidden_states

        site = diffusers_sites(unet)[0]
        layer: Any = unet.get_submodule(site.name)
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(3, 64, site.inner_dim, generator=generator)
        text = torch.randn(3, TOKENS, site.context_dim, generator=generator)
        binding = SubjectBinding(
            projections=project(unet), mask=mark((1, 4)), settings=paper(attention_scale=2.0)
        )
        stock, outputs = layer.processor, []
        for processor in (stock, Adding()):
            layer.set_processor(processor)
            slot = SubjectSlot.install(unet)
            with slot.bind(binding):
                outputs.append(layer(hidden, text))
            slot.remove()
            assert layer.processor is processor
        layer.set_processor(stock)
        assert torch.allclose(outputs[1], outputs[0] + 0.1 * hidden, atol=1e-5)

    @torch.no_grad()
    def test_keywords_of_another_processor_reach_it(self, unet: UNet2DConditionModel) -> None:
        """diffusers passes on those that a processor's signature names, such as the masks of IP-Adapter."""

        class Louder(AttnProcessor2_0):
            def __call__(
                self, attn: Any, hidden_states: Tensor, *args: Any, gain: float = 1.0, **kwargs: Any
            ) -> Tensor:
                return gain * super().__call__(attn, hidden_states, *args, **kwargs)

        site = diffusers_sites(unet)[0]
        cross: Any = unet.get_submodule(site.name)
        own: Any = unet.get_submodule(site.name.removesuffix("attn2") + "attn1")
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(3, 64, site.inner_dim, generator=generator)
        text = torch.randn(3, TOKENS, site.context_dim, generator=generator)
        images = torch.randn(3, 1, 4, site.context_dim, generator=generator)
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :4] = 1
        adapter = IPAdapterAttnProcessor2_0(site.inner_dim, site.context_dim)
        binding = SubjectBinding(projections=project(unet), mask=mark((1, 4)))
        for layer, processor, given, keywords in (
            (cross, adapter, ((text, [images]),), {"ip_adapter_masks": [mask]}),
            (cross, Louder(), (text,), {"gain": 2.0}),
            (own, Louder(), (), {"gain": 2.0}),
        ):
            stock = layer.processor
            layer.set_processor(processor)
            without, expected = layer(hidden, *given), layer(hidden, *given, **keywords)
            assert not torch.allclose(without, expected)
            slot = SubjectSlot.install(unet)
            apart = SelfAttentionSlot.install(slot)
            assert torch.equal(layer(hidden, *given, **keywords), expected)
            with slot.bind(binding):
                change = layer(hidden, *given, **keywords) - layer(hidden, *given)
            assert torch.allclose(change, expected - without, atol=1e-5)
            apart.remove()
            slot.remove()
            layer.set_processor(stock)

    @torch.no_grad()
    def test_weights_of_another_processor_stay_the_unets(self, unet: UNet2DConditionModel) -> None:
        """IP-Adapter's: they move with it, and are as they were when the slot is gone."""
        layers: list[Any] = [unet.get_submodule(site.name) for site in diffusers_sites(unet)]
        stock = [layer.processor for layer in layers]
        theirs = [
            IPAdapterAttnProcessor2_0(site.inner_dim, site.context_dim, num_tokens=(4,), scale=0.5)
            for site in diffusers_sites(unet)
        ]
        try:
            for layer, processor in zip(layers, theirs, strict=True):
                layer.set_processor(processor)
            number = len(list(unet.parameters()))
            slot = SubjectSlot.install(unet)
            assert len(list(unet.parameters())) == number
            unet.to(torch.float64)
            assert {p.dtype for processor in theirs for p in processor.parameters()} == {torch.float64}
            with slot.previous_processors():
                assert [layer.processor for layer in layers] == theirs
            assert all(layer.processor.slot is slot for layer in layers)
            slot.remove()
            assert [layer.processor for layer in layers] == theirs
        finally:
            unet.to(torch.float32)
            for layer, processor in zip(layers, stock, strict=True):
                layer.set_processor(processor)

    @torch.no_grad()
    def test_masks_are_read_once_for_all_layers_and_steps(
        self, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        original = processors.read_rows
        monkeypatch.setattr(processors, "read_rows", lambda *args: calls.append(args) or original(*args))
        slot = SubjectSlot.install(unet)
        with slot.bind(SubjectBinding(projections=project(unet), mask=mark((1, 4)))):
            run(unet)
            run(unet)
        assert len(calls) == 1
        with slot.bind(SubjectBinding(projections=project(unet), mask=mark((1, 5)))):
            run(unet)
        assert len(calls) == 2
        slot.remove()

    def test_refusals(self, unet: UNet2DConditionModel) -> None:
        projections = project(unet)
        name = next(iter(projections))
        slot = SubjectSlot.install(unet)
        with pytest.raises(NestedAttentionError, match=f"{name} carries subjects already"):
            SubjectSlot.install(unet)
        fewer = {site: pair for site, pair in projections.items() if site != name}
        with pytest.raises(NestedAttentionError, match=f"the UNet has 7; without a counterpart: {name}"):
            slot.set(SubjectBinding(projections=fewer, mask=mark((0, 1))))
        narrow = {site: (key[..., :8], value[..., :8]) for site, (key, value) in projections.items()}
        with pytest.raises(NestedAttentionError, match=r"expected \(1 or batch, tokens, 32\)"):
            slot.set(SubjectBinding(projections=narrow, mask=mark((0, 1))))
        with pytest.raises(ValueError, match="another subject already"):
            slot.set(*[SubjectBinding(projections=projections, mask=mark((0, 1)))] * 2)
        with pytest.raises(ValueError, match="strength"):
            slot.set(SubjectBinding(projections=projections, mask=mark((0, 1)), settings=paper(strength=2.0)))
        with (
            slot.bind(SubjectBinding(projections=projections, mask=mark((0, 1), batch=2))),
            pytest.raises(
                NestedAttentionError,
                match=r"\(batch, text tokens\) = \(3, 9\), and a subject's mask is for \(2, 9\)",
            ),
        ):
            run(unet)
        layer: Any = unet.get_submodule(name)
        with (
            slot.bind(SubjectBinding(projections=projections, mask=mark((0, 1)))),
            pytest.raises(NestedAttentionError, match="encoder_attention_mask"),
        ):
            layer(torch.zeros(3, 4, 32), torch.zeros(3, TOKENS, 48), attention_mask=torch.zeros(3, 1, TOKENS))
        slot.remove()


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def encoder(pipeline: StableDiffusionXLPipeline) -> SubjectEncoder:
    return make_encoder(pipeline.unet)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The subjects' masks at the first layer of every step; empty where a step has no subject."""
    seen: list[list[Tensor]] = []
    original = processors.SubjectSlot.at

    def spy(self: SubjectSlot, site: str, queries: int) -> Any:
        found = original(self, site, queries)
        if site == next(iter(self.sites)):
            seen.append([subject.mask for subject in found])
        return found

    monkeypatch.setattr(processors.SubjectSlot, "at", spy)
    return seen


PROMPT = "a photo of a person on the beach"  # token 5 of 77 is the word, after the start token
WORD = 5


def draw(pipeline: StableDiffusionXLPipeline, prompt: Any = PROMPT, **options: Any) -> Tensor:
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "height": 32, "width": 32, **options}
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, generator=generator, output_type="latent", **options).images


class TestPersonalize:
    def test_the_word_carries_the_subject_and_nothing_stays_behind(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        base, before = draw(pipeline), pipeline.unet.attn_processors
        pictures = []
        for seed in (0, 1):
            with personalize(pipeline, [AppliedSubject(make_subject(encoder, seed), encoder)]):
                pictures.append(draw(pipeline))
        assert not torch.allclose(pictures[0], base)
        assert not torch.allclose(pictures[0], pictures[1])
        assert torch.equal(draw(pipeline), base)
        assert "encode_prompt" not in vars(pipeline)
        assert all(pipeline.unet.attn_processors[name] is before[name] for name in before)
        assert not pipeline.unet._forward_pre_hooks

    def test_what_a_call_binds_ends_with_it(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        """Another pipeline on the same UNet, and the UNet by itself, draw without the subject."""
        other = StableDiffusionXLPipeline(**pipeline.components, add_watermarker=False)
        other.set_progress_bar_config(disable=True)
        base = draw(pipeline)

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder)]):
            assert isinstance(pipeline, StableDiffusionXLPipeline)
            subject = draw(pipeline)
            assert torch.equal(draw(other), base)
            with pytest.raises(KeyboardInterrupt):
                draw(pipeline, callback_on_step_end=stop)
            assert torch.equal(draw(other), base)
            assert torch.equal(draw(pipeline), subject)
        assert type(pipeline) is StableDiffusionXLPipeline
        assert not torch.equal(subject, base)

    def test_a_prompt_that_is_encoded_by_itself_carries_no_subject(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its embeddings do not say at which tokens the words are. The pipeline refuses them."""
        other = StableDiffusionXLPipeline(**pipeline.components, add_watermarker=False)
        other.set_progress_bar_config(disable=True)
        base = draw(other)
        plain = pipeline.encode_prompt(PROMPT)
        names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds"
        names = *names, "negative_pooled_prompt_embeds"
        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder, name="alice")]):
            encoded = pipeline.encode_prompt("a photo of a <alice> on the beach")
            assert torch.equal(draw(other), base)
            assert all(torch.equal(x, y) for x, y in zip(encoded, plain, strict=True))
            (told,) = caplog.messages
            assert "called by itself, and what it returns carries no subject" in told
            pipeline.encode_prompt("a house")
            assert len(caplog.messages) == 1
            embeds = dict(zip(names, encoded, strict=True))
            assert torch.equal(draw(other, None, **embeds), base)
            with pytest.raises(NestedAttentionError, match="prompt instead of prompt_embeds"):
                draw(pipeline, None, **embeds)
            assert not torch.equal(draw(pipeline), base)

    @pytest.mark.parametrize("start", [0.0, 0.5])
    def test_processors_that_are_exchanged_within_are_refused(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, start: float
    ) -> None:
        """Before the first pass that carries a subject, which may be the only one."""
        base = draw(pipeline)
        passed: list[int] = []

        def count(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            passed.append(step)
            return {}

        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder, start=start)]):
            pipeline.unet.set_attn_processor(AttnProcessor2_0())
            with pytest.raises(
                NestedAttentionError, match="attn2 runs AttnProcessor2_0, which was set after"
            ):
                draw(pipeline, callback_on_step_end=count)
        assert passed == ([] if start == 0 else [0])
        assert torch.equal(draw(pipeline), base)

    def test_sliced_attention_carries_subjects(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        """diffusers' processor for little memory takes no time embedding."""
        region = torch.ones(1, 4, 4)
        subject = AppliedSubject(make_subject(encoder), encoder, region=region, bound_self_attention=True)
        with personalize(pipeline, [subject]):
            expected = draw(pipeline)
        pipeline.enable_attention_slicing()
        try:
            with personalize(pipeline, [subject]):
                found = draw(pipeline)
        finally:
            pipeline.disable_attention_slicing()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def test_the_scale_of_an_ip_adapter_may_change_within(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        layers: list[Any] = [pipeline.unet.get_submodule(s.name) for s in diffusers_sites(pipeline.unet)]
        stock = [layer.processor for layer in layers]
        try:
            for layer, site in zip(layers, diffusers_sites(pipeline.unet), strict=True):
                layer.set_processor(IPAdapterAttnProcessor2_0(site.inner_dim, site.context_dim))
            with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder)]):
                pipeline.set_ip_adapter_scale(0.25)
                assert all(layer.processor.previous.scale == [0.25] for layer in layers)
        finally:
            for layer, processor in zip(layers, stock, strict=True):
                layer.set_processor(processor)

    @pytest.mark.parametrize("method", ["load_ip_adapter", "unload_ip_adapter"])
    def test_an_ip_adapter_comes_and_goes_outside(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, method: str
    ) -> None:
        """Nothing is loaded or unloaded by halves."""
        subjects = [AppliedSubject(make_subject(encoder), encoder, bound_self_attention=True)]
        with personalize(pipeline, subjects):
            within = pipeline.unet.attn_processors
            with pytest.raises(NestedAttentionError, match=f"{method} exchanges .* leave the context first"):
                getattr(pipeline, method)()
            assert pipeline.unet.attn_processors == within
        pipeline.unload_ip_adapter()

    def test_what_fails_on_entering_leaves_nothing_behind(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subjects = [AppliedSubject(make_subject(encoder), encoder, bound_self_attention=True)]
        before = pipeline.unet.attn_processors
        with monkeypatch.context() as patch:
            patch.setattr(SelfAttentionSlot, "install", lambda slot: 1 / 0)
            with pytest.raises(ZeroDivisionError), personalize(pipeline, subjects):
                pass
        assert all(pipeline.unet.attn_processors[name] is before[name] for name in before)
        with personalize(pipeline, subjects):
            draw(pipeline)

    def test_a_compiled_unet_carries_subjects(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        applied = [AppliedSubject(make_subject(encoder), encoder)]
        with personalize(pipeline, applied):
            expected = draw(pipeline)
        plain, pipeline.unet = pipeline.unet, torch.compile(pipeline.unet, backend="eager")
        try:
            with personalize(pipeline, applied):
                compiled = draw(pipeline)
        finally:
            pipeline.unet = plain
            torch.compiler.reset()
        torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
    @pytest.mark.parametrize(
        "off",
        [{"strength": 0.0, "attention_scale": 4.0}, {"start": 0.5, "end": 0.55}],
        ids=["strength", "range"],
    )
    def test_off_is_bit_identical(
        self,
        pipeline: StableDiffusionXLPipeline,
        encoder: SubjectEncoder,
        off: dict[str, float],
        guidance_scale: float,
    ) -> None:
        base = draw(pipeline, guidance_scale=guidance_scale)
        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder, **off)]):
            assert torch.equal(draw(pipeline, guidance_scale=guidance_scale), base)

    @pytest.mark.parametrize(
        ("span", "steps"),
        [((0.0, 0.5), [0]), ((0.5, 1.0), [1, 2]), ((0.4, 0.7), [1]), ((0.0, 1.0), [0, 1, 2])],
    )
    def test_it_counts_between_start_and_end(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]],
        span: tuple[float, float], steps: list[int],
    ) -> None:  # fmt: skip
        """Leading timesteps of three steps: 667, 334 and 1 of 999."""
        applied = AppliedSubject(make_subject(encoder), encoder, start=span[0], end=span[1])
        with personalize(pipeline, [applied]):
            draw(pipeline)
        assert [i for i, found in enumerate(masks) if found] == steps
        assert len(masks) == STEPS

    def test_a_subject_that_counts_in_no_step_is_told(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Image to image with strength 0.3 runs the last part of the model's schedule."""
        again = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
        again.set_progress_bar_config(disable=True)
        options = {"image": torch.zeros(1, 3, 32, 32), "strength": 0.3, "num_inference_steps": 20}
        options |= {"height": None, "width": None}

        def told(prompt: str, pipe: Any = again, **settings: Any) -> list[str]:
            caplog.clear()
            subject = AppliedSubject(make_subject(encoder), encoder, when_missing="warn", **settings)
            with personalize(pipe, [subject]):
                draw(pipe, prompt, **(options if pipe is again else {}))
            return [record.message for record in caplog.records if record.name == "nested_attention"]

        (message,) = told(PROMPT, end=0.6)
        assert "'person' does not count in this picture" in message
        assert "between start 0 and end 0.6" in message and "whole schedule" in message
        assert not told(PROMPT, end=0.8) and not told(PROMPT, pipeline, end=0.6)
        assert not told(PROMPT, end=0.6, strength=0.0)
        (missing,) = told("a house", end=0.6)
        assert "no prompt carries" in missing
        options["denoising_end"] = 0.9
        assert not told(PROMPT, end=0.6)  # another pipeline goes on

    def test_only_positive_rows_are_marked(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        prompts = [PROMPT, "the beach", "a person and a person"]
        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder)]):
            draw(pipeline, prompts, negative_prompt=["a person", "person", "person"], num_images_per_prompt=2)
        found = [row.nonzero().flatten().tolist() for row in masks[0][0]]
        assert found == [[]] * 6 + [[WORD]] * 2 + [[]] * 2 + [[2, 5]] * 2

    def test_a_negative_prompt_carries_what_is_applied_to_it(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        subject = make_subject(encoder)
        with personalize(pipeline, [AppliedSubject(subject, encoder, apply_to_negative=True)]):
            draw(pipeline, negative_prompt="a bad person")
        assert masks[0][0].nonzero().tolist() == [[0, 3], [1, WORD]]
        with personalize(pipeline, [AppliedSubject(subject, encoder)]):
            draw(pipeline, negative_prompt="a bad person")
        assert masks[-1][0].nonzero().tolist() == [[1, WORD]]

    def test_a_word_of_a_negative_prompt_is_claimed_by_what_is_applied_to_it(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        subject, prompt = make_subject(encoder), "<alice> and <bob>"
        alice = AppliedSubject(subject, encoder, name="alice", apply_to_negative=True)
        bob = AppliedSubject(subject, encoder, name="bob")
        with personalize(pipeline, [alice, bob]):
            for negative, word in (("a blurry person", 3), ("<bob>, a blurry person", 5)):
                draw(pipeline, prompt, negative_prompt=negative)
                assert [m.nonzero().tolist() for m in masks[-1]] == [[[0, word], [1, 1]], [[1, 3]]]
            with pytest.raises(NestedAttentionError, match="did you mean <bob>"):
                draw(pipeline, prompt, negative_prompt="<bop>, a blurry person")
        both = [alice, replace(bob, apply_to_negative=True)]
        with personalize(pipeline, both), pytest.raises(NestedAttentionError, match="'alice' and 'bob'"):
            draw(pipeline, prompt, negative_prompt="a blurry person")

    def test_a_missing_word_may_be_a_warning(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        base = draw(pipeline, "a house")
        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder, when_missing="warn")]):
            assert torch.equal(draw(pipeline, "a house"), base)
        assert "no prompt carries the subject 'person'" in caplog.text

    def test_without_guidance_every_row_is_positive(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder)]):
            draw(pipeline, guidance_scale=1.0)
        assert masks[0][0].nonzero().tolist() == [[0, WORD]]

    def test_guidance_that_ends_between_steps(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        def stop(pipe: Any, step: int, t: Any, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
            pipe._guidance_scale = 0.0
            return {name: x[-1:] for name, x in kwargs.items() if name != "latents"}

        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder)]):
            draw(
                pipeline,
                callback_on_step_end=stop,
                callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds", "add_time_ids"],
            )
        assert [found[0].nonzero().tolist() for found in masks] == [[[1, WORD]], [[0, WORD]], [[0, WORD]]]

    def test_a_placeholder_is_its_word(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        subject = make_subject(encoder)
        with personalize(pipeline, [AppliedSubject(subject, encoder)]):
            bare = draw(pipeline)
        with personalize(pipeline, [AppliedSubject(subject, encoder, name="Alice")]):
            assert torch.equal(draw(pipeline, "a photo of a <alice> on the beach"), bare)
            assert not torch.equal(draw(pipeline, "a photo of a <alice:child> on the beach"), bare)
        with personalize(pipeline, [AppliedSubject(subject, encoder, word="child")]):
            child = draw(pipeline, "a photo of a child on the beach")
        with personalize(pipeline, [AppliedSubject(subject, encoder, name="Alice")]):
            assert torch.equal(draw(pipeline, "a photo of a <alice:child> on the beach"), child)

    def test_two_subjects_stay_apart_and_their_order_does_not_matter(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        pets = make_encoder(pipeline.unet, seed=1, word="pet")
        person = AppliedSubject(make_subject(encoder), encoder, attention_scale=2.0)
        pet = AppliedSubject(make_subject(pets, 1), pets, alpha=None)
        pictures = []
        for subjects in ([person, pet], [pet, person]):
            with personalize(pipeline, subjects):
                pictures.append(draw(pipeline, "a person and a pet"))
        assert [m.nonzero().tolist() for m in masks[0]] == [[[1, 2]], [[1, 5]]]
        assert torch.allclose(pictures[0], pictures[1], atol=1e-4)
        with personalize(pipeline, [person]):
            assert not torch.allclose(draw(pipeline, "a person and a pet"), pictures[0], atol=1e-3)

    def test_tokens_are_projected_once(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[Tensor] = []
        original: Callable[..., Any] = SubjectEncoder.project
        monkeypatch.setattr(SubjectEncoder, "project", lambda self, x: calls.append(x) or original(self, x))
        with personalize(pipeline, [AppliedSubject(make_subject(encoder), encoder)]):
            first, again = draw(pipeline), draw(pipeline)
        assert len(calls) == 1
        assert torch.equal(first, again)

    def test_weights_of_pictures_count(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        def picture(weights: list[float]) -> Tensor:
            with personalize(pipeline, [AppliedSubject(make_subject(encoder, 0, 2, weights), encoder)]):
                return draw(pipeline)

        even, uneven = picture([1, 1]), picture([1, 3])
        assert torch.equal(even, picture([2, 2]))
        assert not torch.allclose(even, uneven)

    def test_region_and_different_texts_for_the_two_text_encoders(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder, masks: list[list[Tensor]]
    ) -> None:
        subject = make_subject(encoder)
        base = draw(pipeline)
        with personalize(pipeline, [AppliedSubject(subject, encoder, region=torch.zeros(4, 4))]):
            assert torch.allclose(draw(pipeline), base, atol=1e-4)
        with personalize(pipeline, [AppliedSubject(subject, encoder)]):
            draw(pipeline, prompt_2="person")
        assert masks[-1][0].nonzero().tolist() == [[1, 1], [1, WORD]]

    def test_a_missing_word_is_refused_by_name(
        self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder
    ) -> None:
        applied = AppliedSubject(make_subject(encoder), encoder, name="alice")
        with personalize(pipeline, [applied]):
            with pytest.raises(NestedAttentionError) as caught:
                draw(pipeline, "a dog on the beach", negative_prompt="a person")
            for part in ("'alice'", "'person'", "<alice>", "a, dog, on, the, beach"):
                assert part in str(caught.value)
            with pytest.raises(NestedAttentionError, match="'alice'"):
                draw(pipeline, "very " * 90 + "person")  # cut off by the tokenizer
            with pytest.raises(NestedAttentionError, match="did you mean <alice>"):
                draw(pipeline, "a photo of <alise>")
            with pytest.raises(NestedAttentionError, match="prompt instead of prompt_embeds"):
                embeds = torch.zeros(1, 77, 48)
                draw(
                    pipeline,
                    None,
                    prompt_embeds=embeds,
                    pooled_prompt_embeds=embeds[:, 0, :32],
                    guidance_scale=1.0,
                )

    def test_refusals(self, pipeline: StableDiffusionXLPipeline, encoder: SubjectEncoder) -> None:
        subject = make_subject(encoder)
        for options, message in (
            ({"attention_scale": 0.0}, "attention_scale"),
            ({"alpha": -1.0}, "alpha is -1"),
            ({"strength": 1.5}, "strength is 1.5"),
            ({"start": 0.8, "end": 0.2}, "start is 0.8 and end is 0.2"),
            ({"region": torch.ones(1, 2, 4, 4)}, r"region has shape \(1, 2, 4, 4\)"),
            ({"word": "<alice>"}, "<alice>"),
        ):
            with pytest.raises(NestedAttentionError, match=message):
                AppliedSubject(subject, encoder, **options)
        other = make_encoder(pipeline.unet, seed=5)
        with pytest.raises(NestedAttentionError, match="made with another encoder"):
            AppliedSubject(subject, other)
        twice = [AppliedSubject(subject, encoder), AppliedSubject(subject, encoder)]
        with (
            pytest.raises(NestedAttentionError, match="2 subjects are called 'person'"),
            personalize(pipeline, twice),
        ):
            pass
        same_word = [AppliedSubject(subject, encoder, name=name) for name in ("alice", "bob")]
        with personalize(pipeline, same_word), pytest.raises(NestedAttentionError, match="'alice' and 'bob'"):
            draw(pipeline)
        narrow = make_encoder(
            UNet2DConditionModel(**{**pipeline.unet.config, "block_out_channels": (32, 32, 32)})
        )
        wrong = AppliedSubject(make_subject(narrow), narrow)
        with (
            pytest.raises(NestedAttentionError, match="does not fit this UNet"),
            personalize(pipeline, [wrong]),
        ):
            pass
        assert not pipeline.unet._forward_pre_hooks
        assert all(type(p) is AttnProcessor2_0 for p in pipeline.unet.attn_processors.values())
