"""Graphs of the small world where ComfyUI's layers have no weights until they are loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
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


def picture(
    ours: dict[str, Any], parts: SimpleNamespace, *, patched: bool = False, hooked: bool = False
) -> Tensor:
    """A whole graph, its models loaded anew → (1, 128, 128, 3).

    Demo World, Load and Encode Subject, LoraLoader, Apply Subject, CLIP Text Encode, Apply ControlNet,
    KSampler, VAE Decode. patched: with the LoRA and the ControlNet. hooked: with the LoRA as a hook, of the
    CLIP (Set CLIP Hooks) and so of its prompts.
    """
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks
    from nodes import CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode

    def run(name: str, **settings: Any) -> Any:
        node = ours[f"NestedAttention{name}"]
        defaults = {slot.id: slot.default for slot in node.GET_SCHEMA().inputs if hasattr(slot, "default")}
        return node.execute(**(defaults | settings)).args

    model, clip, vae, vision, person, *_ = run("DemoWorld", person=7)
    encoder, _ = run("LoadEncoder", encoder_name="avatars/person_encoder.safetensors")
    (subject,) = run("EncodeSubject", encoder=encoder, clip_vision=vision, image=person)
    if patched:
        model, clip = styled(parts, model, clip)
    model, clip = run("ApplySubject", model=model, clip=clip, encoder=encoder, subject=subject)
    if hooked:
        (clip,) = SetClipHooks().apply_hooks(
            clip, False, True, comfy.hooks.create_hook_lora(parts.lora, 1.0, 1.0)
        )
    conds = tuple(CLIPTextEncode().encode(clip, text)[0] for text in ("a photo of a person at the beach", ""))
    if patched:
        parts.world = SimpleNamespace(vae=vae)
        conds = posed(parts, conds, x=16)
    (latent,) = EmptyLatentImage().generate(128, 128)
    (sampled,) = KSampler().sample(model, 0, 2, 3.0, "euler", "simple", *conds, latent)
    return VAEDecode().decode(vae, sampled)[0]


@pytest.mark.parametrize(
    ("managed", "settings"),
    [(False, {}), (False, {"patched": True}), (True, {}), (True, {"hooked": True})],
    ids=["alone", "with LoRA and ControlNet", "managed", "managed, with a LoRA as a hook"],
)
def test_a_graph_draws_what_it_draws_without(
    nodes: dict[str, Any],  # noqa: F811
    parts: SimpleNamespace,
    managed: bool,
    settings: dict[str, bool],
) -> None:
    without = picture(nodes, parts, **settings)
    with dynamic_memory(managed=managed):
        assert float((picture(nodes, parts, **settings) - without).abs().max()) < 1e-5
    assert float(without.std()) > 0.1


@pytest.mark.parametrize("managed", [False, True], ids=["the older kind", "managed"])
def test_a_model_that_is_managed_makes_no_other_leave(comfyui: Path, managed: bool) -> None:
    """When ComfyUI makes room for a model that it loads as it is used, ours stay as its own do."""
    import comfy.model_management
    from test_small_world_patched import applied, drawn

    from nested_attention.avatars.comfy.world import load_world
    from nested_attention.hosts.comfy import load_encoder_for_comfy
    from nested_attention.paths import SMALL_WORLD
    from nested_attention.subject import Subject

    def loaded() -> set[str]:
        here = [one.model.model for one in comfy.model_management.current_loaded_models]
        (values,) = model.get_additional_models_with_key("nested_attention")
        ours = {"MODEL": model.model, "encoder": encoder.encoder, "values": values.model}
        return {name for name, module in ours.items() if any(module is one for one in here)}

    with dynamic_memory(managed=managed):
        world = load_world(SMALL_WORLD)
        encoder = load_encoder_for_comfy(SMALL_WORLD / "person_encoder.safetensors")
        subject = Subject.from_images(encoder.encoder, torch.randn(1, 26, encoder.config.vision_dim))
        graph = SimpleNamespace(clip=world.clip, encoder=encoder, subject=subject)
        model, clip = applied(graph, world.model)
        drawn(model, clip)
        assert loaded() == {"MODEL", "encoder", "values"}
        with torch.inference_mode(False):
            comfy.model_management.free_memory(1e30, torch.device("cpu"), for_dynamic=True)
        assert loaded() == ({"MODEL", "encoder", "values"} if managed else set())
