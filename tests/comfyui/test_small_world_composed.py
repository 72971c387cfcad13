"""The small world as it is shipped, with a subject and with prompts by region, guiders, passes and sizes.

test_compatibility.py and test_composition.py show more of each, on a model of random weights; here the model
has learned to draw, and the subject is a person whom it is shown.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_compatibility import loaded_in_part
from test_small_world_patched import PROMPT, applied, shipped  # noqa: F401  a fixture
from torch import Tensor

THERE, NOT_THERE = 0.02, 1e-4
"""Of the largest latent: what a person changes at least, and what rounding does at most."""


def sampled(
    model: Any,
    positive: list[Any],
    negative: list[Any],
    start: Tensor | None = None,
    *,
    batch: int = 1,
    size: tuple[int, int] = (16, 16),
    steps: int = 2,
    cfg: float = 3.0,
    **settings: Any,
) -> Tensor:
    """KSampler, on an empty latent or on one that is there."""
    import comfy.sample

    if start is None:
        start = comfy.sample.fix_empty_latent_channels(model, torch.zeros(batch, 4, *size))
    noise = comfy.sample.prepare_noise(start, 0)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "simple", positive, negative, start, seed=0, disable_pbar=True,
        **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(shipped: SimpleNamespace) -> tuple[SimpleNamespace, SimpleNamespace]:  # noqa: F811
    """MODEL, CLIP and the encoded prompts: with the person, and without."""
    from tiny import encode

    def graph(model: Any, clip: Any) -> SimpleNamespace:
        bad = encode(clip, "a mosaic of a person in the forest")
        return SimpleNamespace(model=model, clip=clip, positive=encode(clip, PROMPT), negative=bad)

    with torch.inference_mode():
        return graph(*applied(shipped, shipped.model)), graph(shipped.model, shipped.clip)


def pictures(both: Any, **settings: Any) -> list[Tensor]:
    return [sampled(one.model, one.positive, one.negative, **settings) for one in both]


def half(side: str) -> Tensor:
    """A mask (1, 16, 16) of the left or right half."""
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    return mask if side == "left" else 1 - mask


def test_the_person_stays_in_a_prompt_s_mask(both: Any) -> None:
    from nodes import ConditioningCombine, ConditioningSetMask
    from tiny import carries, encode

    def picture(one: Any) -> Tensor:
        house = encode(one.clip, "a photo of a forest")
        prompts = [
            ConditioningSetMask().append(what, half(side), "default", 1.0)[0]
            for what, side in ((one.positive, "left"), (house, "right"))
        ]
        positive = ConditioningCombine().combine(*prompts)[0]
        return sampled(one.model, positive, one.negative, steps=1)

    ours, plain = map(picture, both)
    assert carries(ours[..., :8], plain[..., :8], THERE)
    assert not carries(ours[..., 8:], plain[..., 8:], NOT_THERE)


def test_the_person_stays_in_a_prompt_s_area(both: Any) -> None:
    from nodes import ConditioningCombine, ConditioningSetArea
    from tiny import carries, encode

    def picture(one: Any) -> Tensor:
        (area,) = ConditioningSetArea().append(one.positive, 64, 128, 0, 0, 1.0)
        positive = ConditioningCombine().combine(area, encode(one.clip, "a photo of a forest"))[0]
        return sampled(one.model, positive, one.negative, steps=1)

    ours, plain = map(picture, both)
    assert carries(ours[..., :8], plain[..., :8], THERE)
    assert not carries(ours[..., 8:], plain[..., 8:], NOT_THERE)


@pytest.mark.parametrize("kind", ["Basic", "CFG", "DualCFG", "PerpNeg"])
def test_every_guider_draws_the_person(both: Any, kind: str) -> None:
    """The person is in the positive only: where it stands in the negative, nothing of ours is read."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg
    from tiny import carries, encode

    def picture(one: Any, negative: Any) -> Tensor:
        guider: Any
        if kind == "Basic":
            guider = Guider_Basic(one.model)
            guider.set_conds(one.positive)
        elif kind == "CFG":
            guider = comfy.samplers.CFGGuider(one.model)
            guider.set_conds(one.positive, negative)
            guider.set_cfg(3.0)
        elif kind == "DualCFG":
            guider = Guider_DualCFG(one.model)
            guider.set_conds(one.positive, one.positive, negative)
            guider.set_cfg(3.0, 2.0)
        else:
            guider = Guider_PerpNeg(one.model)
            guider.set_conds(one.positive, negative, encode(one.clip, ""))
            guider.set_cfg(3.0, 1.0)
        noise = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0))
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 2)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)

    ours, plain = (picture(one, one.negative) for one in both)
    assert carries(ours, plain, THERE)
    assert not carries(picture(both[0], both[1].negative), ours, NOT_THERE)


def test_a_batch_off_square_sizes_and_no_guidance(both: Any) -> None:
    from tiny import carries

    ours, plain = pictures(both, batch=3)
    assert all(carries(one, other, THERE) for one, other in zip(ours, plain, strict=True))
    for size in ((12, 20), (17, 15)):
        ours, plain = pictures(both, size=size, steps=1)
        assert ours.shape[-2:] == size
        assert carries(ours, plain, THERE)
    ours, plain = pictures(both, cfg=1.0)
    assert carries(ours, plain, THERE)


def test_over_a_picture_into_a_picture_and_in_two_passes(both: Any) -> None:
    """img2img, inpainting with a hard and a soft mask, and hires fix, all from one picture of nobody."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
    from nodes import LatentUpscaleBy
    from tiny import carries

    _, start = pictures(both)
    kept = start.clone()
    ours, plain = pictures(both, start=start, denoise=0.6)
    assert carries(ours, plain, THERE)
    ours, plain = pictures(both, start=start, noise_mask=half("left"))
    assert carries(ours[..., :8], plain[..., :8], THERE)
    torch.testing.assert_close(ours[..., 8:], start[..., 8:], rtol=1e-4, atol=1e-4)
    soft = [
        SimpleNamespace(**{**vars(one), "model": DifferentialDiffusion.execute(one.model)[0]}) for one in both
    ]
    ours, plain = pictures(soft, start=start, noise_mask=half("left"))
    assert carries(ours[..., :8], plain[..., :8], THERE)
    larger = LatentUpscaleBy().upscale({"samples": start}, "nearest-exact", 1.5)[0]["samples"]
    ours, plain = pictures(both, start=larger, denoise=0.6)
    assert ours.shape[-2:] == (24, 24)
    assert carries(ours, plain, THERE)
    assert torch.equal(start, kept)  # what came in is as it was


def test_loaded_in_part(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny import carries

    expected, plain = pictures(both, steps=1)
    with loaded_in_part(monkeypatch):
        (found,) = pictures(both[:1], steps=1)
        assert both[0].model.model.model_lowvram
    assert not carries(found, expected, NOT_THERE)
    assert carries(found, plain, THERE)


def test_compiled(both: Any) -> None:
    """With the eager backend: traced as it is for any other."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from tiny import carries

    def compiled(one: Any) -> SimpleNamespace:
        model = one.model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return SimpleNamespace(**{**vars(one), "model": model})

    torch._dynamo.reset()
    (expected,) = pictures(both[:1], steps=1)
    (found,) = pictures([compiled(both[0])], steps=1)
    assert not carries(found, expected, NOT_THERE)
