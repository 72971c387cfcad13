"""Graphs of the small world where ComfyUI's layers have no weights until they are loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dynamic import dynamic_memory
from test_nodes import nodes, pack  # noqa: F401  fixtures
from test_pose_and_style import posed, styled
from torch import Tensor


@pytest.fixture(scope="module")
def parts(comfyui: Path) -> SimpleNamespace:
    """The ControlNet and the LoRA of the small world.

    Read without dynamic memory: with it, ComfyUI leaves them in the file's precision and casts each layer as
    it is used, which it does on a card only.
    """
    import comfy.controlnet
    import comfy.utils

    from nested_attention.avatars.models import control, lora

    return SimpleNamespace(
        control=comfy.controlnet.load_controlnet(str(control.PATH)),
        lora=comfy.utils.load_torch_file(str(lora.PATH), safe_load=True),
    )


def picture(ours: dict[str, Any], parts: SimpleNamespace, *, patched: bool) -> Tensor:
    """A whole graph, its models loaded anew → (1, 128, 128, 3).

    Demo World, Load and Encode Subject, LoraLoader, Apply Subject, CLIP Text Encode, Apply ControlNet,
    KSampler, VAE Decode. patched: with the LoRA and the ControlNet.
    """
    from nodes import CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode

    def run(name: str, **settings: Any) -> Any:
        node = ours[f"NestedAttention{name}"]
        defaults = {slot.id: slot.default for slot in node.GET_SCHEMA().inputs if hasattr(slot, "default")}
        return node.execute(**(defaults | settings)).args

    model, clip, vae, vision, person, _ = run("DemoWorld", person=7)
    encoder, _ = run("LoadEncoder", encoder_name="avatars/person_encoder.safetensors")
    (subject,) = run("EncodeSubject", encoder=encoder, clip_vision=vision, image=person)
    if patched:
        model, clip = styled(parts, model, clip)
    model, clip = run("ApplySubject", model=model, clip=clip, encoder=encoder, subject=subject)
    conds = tuple(CLIPTextEncode().encode(clip, text)[0] for text in ("a photo of a person at the beach", ""))
    if patched:
        parts.world = SimpleNamespace(vae=vae)
        conds = posed(parts, conds, x=16)
    (latent,) = EmptyLatentImage().generate(128, 128)
    (sampled,) = KSampler().sample(model, 0, 2, 3.0, "euler", "simple", *conds, latent)
    return VAEDecode().decode(vae, sampled)[0]


@pytest.mark.parametrize("patched", [False, True], ids=["alone", "with LoRA and ControlNet"])
def test_a_graph_draws_what_it_draws_without(
    nodes: dict[str, Any],  # noqa: F811
    parts: SimpleNamespace,
    patched: bool,
) -> None:
    without = picture(nodes, parts, patched=patched)
    with dynamic_memory():
        assert float((picture(nodes, parts, patched=patched) - without).abs().max()) < 1e-5
    assert float(without.std()) > 0.1
