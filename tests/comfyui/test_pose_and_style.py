"""The small world's ControlNet and LoRA in ComfyUI's own loaders and nodes, beside Apply Subject."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

TEXT = "a photo of a person wearing a yellow raincoat at the beach"
SEED = 7


@pytest.fixture(scope="module")
def small(comfyui: Any) -> SimpleNamespace:
    """The shipped world with somebody's subject, the ControlNet and the LoRA, as the loaders give them."""
    import comfy.controlnet
    import comfy.utils

    from nested_attention.avatars.comfy.world import load_world
    from nested_attention.avatars.drawing.references import held_out, reference_picture
    from nested_attention.avatars.models import control, lora
    from nested_attention.hosts.comfy import encode_subject, load_encoder_for_comfy
    from nested_attention.paths import SMALL_WORLD

    world = load_world(SMALL_WORLD)
    encoder = load_encoder_for_comfy(SMALL_WORLD / "person_encoder.safetensors")
    identity = held_out("person", SEED)
    reference = torch.from_numpy(reference_picture(identity).astype(np.float32) / 255)[None]
    return SimpleNamespace(
        world=world,
        identity=identity,
        encoder=encoder,
        subject=encode_subject(encoder, world.clip_vision, reference),
        control=comfy.controlnet.load_controlnet(str(control.PATH)),
        lora=comfy.utils.load_torch_file(str(lora.PATH), safe_load=True),
    )


def apply(small: SimpleNamespace, model: Any, clip: Any) -> tuple[Any, Any]:
    from tiny import apply_with

    return apply_with(
        model,
        clip,
        small.encoder,
        small.subject,
        word="person",
        attention_scale=1.0,
        alpha=2.0,
        strength=1.0,
        when_missing="error",
    )


def styled(small: SimpleNamespace, model: Any, clip: Any, strength: float = 1.0) -> tuple[Any, Any]:
    """LoraLoader."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, clip, small.lora, strength, strength)


def posed(small: SimpleNamespace, conds: tuple[Any, Any], x: int, strength: float = 1.0) -> tuple[Any, Any]:
    """ControlNetApplyAdvanced with Demo Pose."""
    from nodes import ControlNetApplyAdvanced

    from nested_attention.avatars.drawing.pose import Pose
    from nested_attention.avatars.drawing.pose_map import pose_picture

    image = torch.from_numpy(pose_picture([Pose(x, 8, 0, "calm")]))[None]
    return ControlNetApplyAdvanced().apply_controlnet(
        *conds, small.control, image, strength, 0.0, 1.0, small.world.vae
    )


def encoded(clip: Any) -> tuple[Any, Any]:
    from tiny import encode

    return encode(clip, TEXT), encode(clip, "")


def sample(model: Any, conds: tuple[Any, Any], steps: int = 8) -> Tensor:
    """KSampler at the settings of the workflows. → latents (2, 12, 16, 16)"""
    import comfy.sample

    noise = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    return comfy.sample.sample(
        model,
        noise,
        steps,
        3.0,
        "euler",
        "simple",
        *conds,
        torch.zeros_like(noise),
        seed=0,
        disable_pbar=True,
    )


def columns(small: SimpleNamespace, latents: Tensor) -> list[int]:
    """Where the person of the subject is found in each picture, in art pixels from the left."""
    from nested_attention.avatars.drawing.picture import Figure
    from nested_attention.avatars.drawing.pose import Pose
    from nested_attention.avatars.figures.pose_and_style import find_pose

    figure = Figure(small.identity, "middle", Pose(16, 8, 0, "calm"))
    shown = small.world.vae.decode(latents)[:, ::4, ::4]  # (2, 32, 32, 3): one pixel an art pixel
    return [find_pose(rgb, figure, "photo")[0] for rgb in (shown * 255).round().byte().numpy()]


def test_the_stock_loader_builds_the_controlnet_that_was_trained(small: SimpleNamespace) -> None:
    """Recognised from its tensors, all of them used: what it adds is what diffusers' network adds."""
    from nested_attention.avatars.drawing.pose import Pose
    from nested_attention.avatars.drawing.pose_map import pose_map
    from nested_attention.avatars.models.control import load_control, to_hint
    from nested_attention.avatars.models.model import CONTEXT, POOLED

    hint = to_hint(pose_map([Pose(8, 8, 1, "calm")])[None]).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    x, context, t = torch.randn(2, 12, 16, 16), torch.randn(2, 77, CONTEXT), torch.tensor([10.0, 900.0])
    down, middle = load_control()(x, t, context, hint, return_dict=False)
    network = small.control.control_model.float()
    ours = network(x=x, hint=hint, timesteps=t, context=context, y=torch.randn(2, POOLED + 6 * 256))
    for one, other in zip((*ours["output"], *ours["middle"]), (*down, middle), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
        assert bool(other.any())


def test_the_stock_loader_puts_every_tensor_of_the_lora_on_the_unet(
    small: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    from nested_attention.avatars.models.lora import lora_applied, lora_sites
    from nested_attention.avatars.models.world import load_world

    model, clip = styled(small, small.world.model, small.world.clip)
    assert "not loaded" not in caplog.text
    unet = load_world().unet
    assert len(model.patches) == len(lora_sites(unet)) == len(small.lora) // 3
    assert clip.patcher.patches == small.world.clip.patcher.patches
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    (patched,) = (key for key in model.patches if key.endswith(name))
    with lora_applied(unet):
        layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
        wanted = layer.weight + layer.get_delta_weight(*layer.active_adapters)
    weight = model.patch_weight_to_device
    with torch.inference_mode(False), torch.no_grad():
        weight(patched)
        try:
            ours = model.model.diffusion_model.get_parameter(name).clone()
        finally:
            model.unpatch_model()
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.composes(
    "ControlNet of a pose (the small world's)",
    order="prompt",
    note="the figure stands where the pose picture has it, the subject is who it is; a prompt that is marked "
    "after Apply ControlNet gives the same picture",
)
def test_the_controlnet_moves_the_subject(small: SimpleNamespace) -> None:
    from tiny import carries, same

    from nested_attention.hosts.comfy import mark_prompt

    model, clip = apply(small, small.world.model, small.world.clip)
    drawn = {x: sample(model, posed(small, encoded(clip), x)) for x in (8, 24)}
    for x, latents in drawn.items():
        assert all(abs(found - x) <= 2 for found in columns(small, latents)), x
    plain = posed(small, encoded(small.world.clip), 8)
    assert same(sample(model, (mark_prompt(plain[0], clip, TEXT), plain[1])), drawn[8])
    assert carries(drawn[8], sample(small.world.model, plain), 0.1)  # somebody else, in the same pose
    assert same(sample(model, posed(small, encoded(clip), 8, 0.0), 2), sample(model, encoded(clip), 2))


@pytest.mark.composes("LoRA of a style (the small world's)", order="both")
def test_the_lora_restyles_the_subject(small: SimpleNamespace) -> None:
    from tiny import carries, same

    from nested_attention.avatars.drawing.ink import PAPER

    both = apply(small, *styled(small, small.world.model, small.world.clip))
    before = sample(both[0], encoded(both[1]))
    other = styled(small, *apply(small, small.world.model, small.world.clip))
    assert same(sample(other[0], encoded(other[1])), before)
    alone = styled(small, small.world.model, small.world.clip)
    assert carries(before, sample(alone[0], encoded(alone[1])), 0.1)
    plain = apply(small, small.world.model, small.world.clip)
    unstyled = sample(plain[0], encoded(plain[1]))
    off = styled(small, *plain, strength=0.0)
    assert same(sample(off[0], encoded(off[1]), 2), sample(plain[0], encoded(plain[1]), 2))

    def paper(latents: Tensor) -> float:
        """Share of the upper corners' pixels that are as light as paper."""
        shown = small.world.vae.decode(latents)[:, ::4, ::4]
        corners = torch.cat([shown[:, :6, :4], shown[:, :6, -4:]], dim=2)
        return float(((corners - torch.from_numpy(PAPER) / 255).abs().amax(-1) < 0.15).float().mean())

    assert paper(before) > 0.6 > 0.2 > paper(unstyled)
