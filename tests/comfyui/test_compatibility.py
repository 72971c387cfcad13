"""Apply Subject together with what ComfyUI's users wire around it: patches, prompts by region, passes, sizes.

Each test says in `composes` what it shows; docs/compatibility.md is written from that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

composes = pytest.mark.composes

PROMPT = "a photo of a person by the sea"
Patch = Callable[[Any], Any]


def perturbed(model: Any) -> Any:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, 3.0)[0]


def hypertile(model: Any) -> Any:
    from comfy_extras.nodes_hypertile import HyperTile

    return HyperTile.execute(model, 32, 1, 1, False)[0]


def free_u(model: Any) -> Any:
    from comfy_extras.nodes_freelunch import FreeU

    return FreeU().patch(model, 1.3, 1.4, 0.9, 0.2)[0]


def free_u_2(model: Any) -> Any:
    from comfy_extras.nodes_freelunch import FreeU_V2

    return FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0]


def rescaled_cfg(model: Any) -> Any:
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, 0.7)[0]


def deep_shrink(model: Any) -> Any:
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    return PatchModelAddDownscale.execute(model, 2, 2.0, 0.0, 0.5, True, "bicubic", "bicubic")[0]


def self_attention_guidance(model: Any) -> Any:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    return SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


def other_attention(model: Any) -> Any:
    """As packs do that bring an attention kernel of their own."""

    def override(attention: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return 0.9 * attention(*args, **kwargs)

    model = model.clone()
    options = model.model_options["transformer_options"] = {**model.model_options["transformer_options"]}
    options["optimized_attention_override"] = override
    return model


def drawn(model: Any, clip: Any, **settings: Any) -> Tensor:
    """Some patches draw random numbers of their own."""
    from tiny import encode, sample

    torch.manual_seed(0)
    return sample(model, encode(clip, PROMPT), encode(clip, "bad"), size=16, steps=2, **settings)


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(perturbed, marks=composes("PAG (Perturbed Attention Guidance)", order="both")),
        pytest.param(self_attention_guidance, marks=composes("SAG (Self-Attention Guidance)", order="both")),
        pytest.param(rescaled_cfg, marks=composes("RescaleCFG", order="both")),
        pytest.param(hypertile, marks=composes("HyperTile", order="both")),
        pytest.param(free_u, marks=composes("FreeU", order="both")),
        pytest.param(free_u_2, marks=composes("FreeU V2", order="both")),
        pytest.param(deep_shrink, marks=composes("Deep shrink (Kohya)", order="both")),
        pytest.param(
            other_attention,
            marks=composes(
                "Attention overrides (SageAttention and others)",
                order="both",
                note="the override runs the text's attention; the subject's correction is added to it",
            ),
        ),
    ],
)
def test_a_patched_model_before_and_after(world: Any, patch: Patch) -> None:
    """The same picture in both orders, the subject in it, the patch's effect too; strength 0 is the patch
    alone."""
    from tiny import carries, same

    applied, clip = world.apply(world.model, world.clip)
    after = drawn(patch(applied), clip)
    before = drawn(world.apply(patch(world.model), world.clip)[0], clip)
    assert same(before, after)
    assert same(drawn(patch(applied), clip), after)
    alone = drawn(patch(world.model), world.clip)
    assert carries(after, alone)
    assert carries(after, drawn(applied, clip))
    off, off_clip = world.apply(patch(world.model), world.clip, strength=0.0)
    assert same(drawn(off, off_clip), alone)


@composes("torch.compile (TorchCompileModel)", order="either", note="shown with its eager backend")
def test_a_compiled_model_before_and_after(world: Any) -> None:
    """The UNet is traced with the subject's layers in it; a small one, as tracing takes long."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from tiny import apply_with, carries, encode, make_encoder, make_model, make_subject, sample

    unet = {
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [0, 1],
        "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1,
    }
    model = make_model(**unet)
    encoder = make_encoder(model, seed=1)
    subject = make_subject(encoder, seed=3)
    settings = {"attention_scale": 3.0, "alpha": 6.0, "strength": 1.0}

    def applied(model: Any) -> Any:
        return apply_with(
            model,
            world.clip,
            encoder,
            subject,
            word="person",
            when_missing="error",
            **settings,
        )

    def compiled(model: Any) -> Any:
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return model

    def picture(model: Any, clip: Any) -> Tensor:
        return sample(model, encode(clip, PROMPT), encode(clip, "bad"), steps=1)

    torch._dynamo.reset()
    subjected, clip = applied(model)
    expected = picture(subjected, clip)
    assert carries(expected, picture(model, world.clip))
    assert not carries(picture(compiled(subjected), clip), expected, threshold=1e-4)
    assert not carries(picture(applied(compiled(model))[0], clip), expected, threshold=1e-4)


@composes(
    "ToMe (TomePatchModel)",
    order="both",
    note="it merges tokens of self-attention at the size of the latent, where SDXL has no attention",
)
def test_merged_tokens(world: Any) -> None:
    """A UNet with attention at the size of the latent, so that there is something to merge."""
    from comfy_extras.nodes_tomesd import TomePatchModel
    from tiny import apply_with, carries, make_encoder, make_model, make_subject, same

    everywhere = {
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
    }
    model = make_model(**everywhere)
    encoder = make_encoder(model, seed=1)
    settings = {"attention_scale": 3.0, "alpha": 6.0, "strength": 1.0}
    settings |= {"word": "person", "when_missing": "error"}

    def applied(model: Any) -> Any:
        return apply_with(model, world.clip, encoder, make_subject(encoder, seed=3), **settings)

    def merged(model: Any) -> Any:
        return TomePatchModel.execute(model, 0.5)[0]

    subjected, clip = applied(model)
    after = drawn(merged(subjected), clip)
    assert same(drawn(applied(merged(model))[0], clip), after)
    assert carries(after, drawn(merged(model), world.clip))
    assert carries(after, drawn(subjected, clip))


@contextmanager
def loaded_in_part(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever there is room for, one byte of its weights is loaded and the rest cast at each use."""
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher, wipe_lowvram_weight

    load = ModelPatcher.load

    def partly(self: Any, device_to: Any = None, force_patch_weights: bool = False, **_: Any) -> Any:
        # On a CPU, ComfyUI loads as a whole what this loads in part. Marks of an earlier load are left in the
        # layers then, by which newer versions would take a LoRA for applied already.
        for layer in self.model.modules():
            wipe_lowvram_weight(layer)
        return load(self, device_to, 1, force_patch_weights, False)

    with torch.inference_mode(False):
        comfy.model_management.unload_all_models()
    with monkeypatch.context() as patched:
        patched.setattr(ModelPatcher, "load", partly)
        yield
        with torch.inference_mode(False):
            comfy.model_management.unload_all_models()


@composes(
    "Partial loading (--lowvram)",
    order="either",
    note="weights of the UNet, of a LoRA on it and of the subject may all stay offloaded",
)
def test_a_model_that_is_loaded_in_part(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sd
    from test_text_nodes import lora_for
    from tiny import carries

    with_lora = comfy.sd.load_lora_for_models(
        world.model, world.clip, lora_for(world.model, world.clip), 1, 1
    )
    model, clip = world.apply(*with_lora)

    def small() -> Tensor:
        from tiny import encode, sample

        return sample(model, encode(clip, PROMPT), encode(clip, "bad"), steps=2)

    expected = small()
    with loaded_in_part(monkeypatch):
        picture = small()
        assert world.model.model.model_lowvram
    assert not carries(picture, expected, threshold=1e-4)
    assert not carries(small(), expected, threshold=2e-5)


def half(side: str) -> Tensor:
    """A mask (1, 8, 8) of the left or right half."""
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    return mask if side == "left" else 1 - mask


def masked(conditioning: Any, side: str) -> Any:
    from nodes import ConditioningSetMask

    return ConditioningSetMask().append(conditioning, half(side), "default", 1.0)[0]


def combined(one: Any, other: Any) -> Any:
    from nodes import ConditioningCombine

    return ConditioningCombine().combine(one, other)[0]


@composes("Conditioning (Set Mask)", order="prompt", note="the subject stays inside the mask")
def test_a_prompt_in_a_mask(world: Any) -> None:
    from tiny import carries, encode, same, sample

    model, clip = world.apply(world.model, world.clip)

    def picture(model: Any, clip: Any) -> Tensor:
        positive = combined(masked(encode(clip, PROMPT), "left"), masked(encode(clip, "a house"), "right"))
        return sample(model, positive, encode(clip, "bad"), steps=1)

    ours, plain = picture(model, clip), picture(world.model, world.clip)
    assert carries(ours[..., :4], plain[..., :4])
    assert same(ours[..., 4:], plain[..., 4:])


@composes("Conditioning (Set Area)", order="prompt", note="the subject stays inside the area")
def test_a_prompt_in_an_area(world: Any) -> None:
    from nodes import ConditioningSetArea
    from tiny import carries, encode, same, sample

    model, clip = world.apply(world.model, world.clip)

    def picture(model: Any, clip: Any) -> Tensor:
        (area,) = ConditioningSetArea().append(encode(clip, PROMPT), 64, 64, 64, 0, 1.0)
        return sample(model, combined(area, encode(clip, "a house")), encode(clip, "bad"), size=16, steps=1)

    ours, plain = picture(model, clip), picture(world.model, world.clip)
    assert carries(ours[..., :8, 8:], plain[..., :8, 8:])
    assert same(ours[..., 8:, :], plain[..., 8:, :])
    assert same(ours[..., :8], plain[..., :8])


@composes("Conditioning (Combine)", order="prompt", note="each prompt carries its own subjects")
def test_two_people_in_two_prompts(world: Any) -> None:
    from tiny import carries, encode, sample

    chain = world.apply(world.model, world.clip, name="alice", when_missing="warn")
    model, clip = world.apply(*chain, world.bob, name="bob", when_missing="warn")

    def picture(left: str, right: str) -> Tensor:
        positive = combined(masked(encode(clip, left), "left"), masked(encode(clip, right), "right"))
        return sample(model, positive, encode(clip, "bad"), steps=1)

    alice, bob, nobody = "<alice> by the sea", "<bob> by the sea", "a house by the sea"
    both = picture(alice, bob)
    # Not to the bit: which rows are computed together depends on who is in them.
    assert not carries(both[..., :4], picture(alice, nobody)[..., :4], threshold=1e-5)
    assert not carries(both[..., 4:], picture(nobody, bob)[..., 4:], threshold=1e-5)
    swapped = picture(bob, alice)
    assert carries(both[..., :4], swapped[..., :4])
    assert carries(both[..., 4:], swapped[..., 4:])


@pytest.mark.parametrize(
    "merge",
    [
        pytest.param(
            "Concat",
            marks=composes(
                "Conditioning (Concat)",
                order="prompt",
                note="words of conditioning_to carry subjects, those of conditioning_from do not (a warning "
                "says so)",
            ),
        ),
        pytest.param(
            "Average",
            marks=composes(
                "Conditioning (Average)",
                order="prompt",
                note="words of conditioning_to carry subjects, those of conditioning_from do not (a warning "
                "says so)",
            ),
        ),
    ],
)
def test_merged_prompts_say_what_they_lose(world: Any, caplog: pytest.LogCaptureFixture, merge: str) -> None:
    import nodes
    from tiny import carries, encode, sample, tokens_marked

    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy.notices import warn_once

    def merged(to: Any, other: Any) -> Any:
        if merge == "Concat":
            return nodes.ConditioningConcat().concat(to, other)[0]
        return nodes.ConditioningAverage().addWeighted(to, other, 0.8)[0]

    warn_once.cache_clear()
    model, clip = world.apply(world.model, world.clip)
    to, other = encode(clip, PROMPT), encode(clip, "the old house of a person")
    negative = encode(world.clip, "bad")
    with caplog.at_level(logging.WARNING, "nested_attention"):
        sample(model, to, negative, steps=1)
        assert not caplog.records  # a prompt as it was encoded
        ours = [sample(model, merged(to, other), negative, steps=1) for _ in range(2)]
    assert [f"Conditioning ({merge})" in record.getMessage() for record in caplog.records] == [True]
    assert tokens_marked(merged(to, other)) == tokens_marked(to)
    plain = merged(encode(world.clip, PROMPT), encode(world.clip, "the old house of a person"))
    assert carries(ours[0], sample(world.model, plain, negative, steps=1))
    with pytest.raises(NestedAttentionError, match="no prompt carries"):
        sample(model, merged(encode(clip, "a house"), other), negative, steps=1)


def resampled(model: Any, clip: Any, latent: Tensor, *, denoise: float, mask: Tensor | None = None) -> Tensor:
    """KSampler on a picture that exists."""
    import comfy.sample
    from tiny import encode

    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    return comfy.sample.sample(
        model,
        noise,
        4,
        4.0,
        "euler",
        "normal",
        encode(clip, PROMPT),
        encode(clip, "bad"),
        latent,
        denoise=denoise,
        noise_mask=mask,
        seed=1,
        disable_pbar=True,
    )


def latent(side: int = 8) -> Tensor:
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(2))


@composes("img2img (denoise below 1)", order="sampler")
def test_a_picture_drawn_over(world: Any) -> None:
    from tiny import carries

    model, clip = world.apply(world.model, world.clip)
    start = latent()
    ours, plain = (resampled(m, c, start, denoise=0.5) for m, c in ((model, clip), (world.model, world.clip)))
    assert carries(ours, plain)
    assert not torch.equal(start, ours)
    assert torch.equal(start, latent())  # what came in is as it was


@pytest.mark.parametrize(
    "soft",
    [
        pytest.param(False, marks=composes("Inpainting (Set Latent Noise Mask)", order="sampler")),
        pytest.param(True, marks=composes("Differential Diffusion", order="both")),
    ],
)
def test_a_subject_drawn_into_a_picture(world: Any, soft: bool) -> None:
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
    from tiny import carries, same

    def patched(model: Any) -> Any:
        return DifferentialDiffusion.execute(model)[0] if soft else model

    applied, clip = world.apply(world.model, world.clip)
    start, mask = latent(), half("left")
    ours = resampled(patched(applied), clip, start, denoise=1.0, mask=mask)
    before = world.apply(patched(world.model), world.clip)[0]
    assert same(resampled(before, clip, start, denoise=1.0, mask=mask), ours)
    plain = resampled(patched(world.model), world.clip, start, denoise=1.0, mask=mask)
    assert carries(ours[..., :4], plain[..., :4])
    if not soft:  # the soft one draws over everything in its last step
        torch.testing.assert_close(ours[..., 4:], start[..., 4:], rtol=1e-4, atol=1e-4)


@composes("Hires fix (a second pass on the enlarged latent)", order="sampler")
def test_two_passes_of_two_sizes(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nodes import LatentUpscaleBy
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    monkeypatch.setattr(type(world.person.encoder), "project", None)  # nothing is computed anew

    def larger(first: Tensor) -> Tensor:
        return LatentUpscaleBy().upscale({"samples": first}, "nearest-exact", 1.5)[0]["samples"]

    first = sample(model, encode(clip, PROMPT), encode(clip, "bad"))
    second = resampled(model, clip, larger(first), denoise=0.5)
    assert second.shape == (1, 4, 12, 12)
    assert carries(second, resampled(world.model, world.clip, larger(first), denoise=0.5))


@composes("Batches", order="sampler", note="every picture of the batch carries the subject")
@pytest.mark.parametrize("cfg", [4.0, pytest.param(1.0, marks=composes("cfg 1", order="sampler"))])
def test_a_batch_is_its_pictures(world: Any, cfg: float) -> None:
    from tiny import carries, encode, sample

    model, clip = world.apply(world.model, world.clip)
    batch = sample(model, encode(clip, PROMPT), encode(clip, "bad"), batch=3, cfg=cfg)
    plain = sample(world.model, encode(world.clip, PROMPT), encode(world.clip, "bad"), batch=3, cfg=cfg)
    assert all(carries(one, other) for one, other in zip(batch, plain, strict=True))
    alone = sample(model, encode(clip, PROMPT), encode(clip, "bad"), cfg=cfg)
    assert not carries(batch[:1], alone, threshold=2e-5)


@composes("Off-square and odd sizes", order="sampler", note="among them 912 × 1144")
@pytest.mark.parametrize(("height", "width"), [(1144 // 8, 912 // 8), (14, 18), (18, 14), (7, 13), (9, 5)])
def test_sizes(world: Any, height: int, width: int) -> None:
    import comfy.sample
    from tiny import carries, encode

    def picture(model: Any, clip: Any) -> Tensor:
        noise = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
        conds = encode(clip, PROMPT), encode(clip, "bad")
        empty = torch.zeros_like(noise)
        return comfy.sample.sample(
            model, noise, 1, 4.0, "euler", "normal", *conds, empty, seed=0, disable_pbar=True
        )

    ours, plain = picture(*world.apply(world.model, world.clip)), picture(world.model, world.clip)
    assert ours.shape == (1, 4, height, width)
    assert bool(ours.isfinite().all())
    assert carries(ours, plain)


@composes(
    "Style-prompt nodes",
    order="prompt",
    note="text built by other nodes, before or around the prompt, and encoded with Apply Subject's CLIP",
)
@pytest.mark.parametrize("prompt", ["a person by the sea", "<person> by the sea", "<person:woman>"])
def test_text_built_elsewhere(world: Any, prompt: str) -> None:
    """A template with the prompt in its middle, and tokens whose weights a node changes by itself."""
    from tiny import carries, encode, sample, tokens_marked

    model, clip = world.apply(world.model, world.clip)
    styled = f"cinematic still of {prompt}, (film grain:1.1), highly detailed, \\(35mm\\)"
    positive = encode(clip, styled)
    assert len(tokens_marked(positive)) == 1
    word = "woman" if "woman" in prompt else "person"
    plain = encode(world.clip, styled.replace("<person:woman>", word).replace("<person>", word))
    negative = encode(world.clip, "bad")
    assert torch.equal(positive[0][0], plain[0][0])
    ours = sample(model, positive, negative)
    assert carries(ours, sample(world.model, plain, negative))

    weighted = {
        tower: [[(token, 1.2 * weight) for token, weight in chunk] for chunk in chunks]
        for tower, chunks in clip.tokenize(styled).items()
    }
    own_way = clip.encode_from_tokens_scheduled(weighted)
    assert tokens_marked(own_way) == tokens_marked(positive)
    assert carries(sample(model, own_way, negative), ours)
