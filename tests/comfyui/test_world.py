"""The small world in ComfyUI computes what its diffusers and transformers modules compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dynamic import dynamic_memory
from safetensors.torch import save_file
from torch import Tensor, nn

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "vision")
TEXT = "a photo of a person on the beach"


@pytest.fixture(
    scope="module",
    params=[(True, False), (False, False), (True, True)],
    ids=["vae attends", "vae without attention", "dynamic memory"],
)
def both(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Any]:
    """The small world with random weights: its own modules, its files, and the same files loaded in
    ComfyUI."""
    from nested_attention.avatars.comfy.world import load_world
    from nested_attention.avatars.models import model
    from nested_attention.avatars.models.vocabulary import compact

    attends, dynamic = request.param
    torch.manual_seed(0)
    vae_config = {**model.VAE, "scaling_factor": 0.7, "mid_block_add_attention": attends}
    modules = dict(
        zip(
            PARTS,
            (
                model.new_unet(),
                model.new_vae(vae_config),
                model.new_text_l(),
                model.new_text_g(),
                model.new_vision(),
            ),
            strict=True,
        )
    )
    configs = dict(
        zip(PARTS, (model.UNET, vae_config, model.TEXT_L, model.TEXT_G, model.VISION), strict=True)
    )
    folder = tmp_path_factory.mktemp("world")
    for name, module in modules.items():
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dim() < 2:  # biases and norms, which start as zeros and ones
                parameter.add_(0.1 * torch.randn(parameter.shape))
        module.half().float()  # as the files are: ComfyUI holds a vision model in half precision on the CPU
        if name.startswith("text"):
            compact(module, [49406, 49407, 0, 320, 1125, 539, 2533, 525, 518, 2117])
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(configs[name]))
    with dynamic_memory(dynamic):
        yield SimpleNamespace(**modules, folder=folder, world=load_world(folder), design=model)


@torch.no_grad()
def agree(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def test_vae_works_on_the_enlarged_picture(both: Any) -> None:
    picture = torch.rand(2, 128, 128, 3)
    art = nn.functional.avg_pool2d(picture.movedim(-1, 1), 4)  # (B, 3, 32, 32)
    latent = both.world.vae.encode(picture)
    agree(latent, both.vae.encode(art * 2 - 1).latent_dist.mode())
    shown = both.world.vae.decode(latent)
    decoded = (both.vae.decode(latent).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    for offset in (0, 3):  # all 4×4 picture pixels of an art pixel show it
        agree(shown[:, offset::4, offset::4], decoded)


def test_vae_in_tiles_is_the_vae(both: Any) -> None:
    vae = both.world.vae
    picture = torch.rand(1, 256, 256, 3).round()
    with torch.inference_mode():
        tiled = vae.encode_tiled(picture, tile_x=128, tile_y=128, overlap=32)
        latent = vae.encode(picture)
        assert tiled.shape == latent.shape == (1, 12, 32, 32)
        assert vae.decode_tiled(latent, tile_x=16, tile_y=16, overlap=4).shape == (1, 256, 256, 3)


def test_text_encoders(both: Any) -> None:
    tokens = both.world.clip.tokenize(TEXT)
    context, pooled = both.world.clip.encode_from_tokens(tokens, return_pooled=True)
    ids = {tower: torch.tensor([[entry[0] for entry in tokens[tower][0]]]) for tower in ("l", "g")}
    expected, expected_pooled = both.design.encode_text(
        both.text_encoder, both.text_encoder_2, ids["l"], ids["g"]
    )
    agree(context, expected)
    agree(pooled, expected_pooled)


def test_vision_encoder(both: Any) -> None:
    size = both.design.VISION_SIZE
    picture = (torch.rand(2, size, size, 3) * 255).round() / 255
    out = both.world.clip_vision.encode_image(picture)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    expected = both.vision(((picture - mean) / std).movedim(-1, 1), output_hidden_states=True)
    agree(out.last_hidden_state, expected.last_hidden_state)
    agree(out.penultimate_hidden_states, expected.hidden_states[-2])


def test_unet_schedule_and_size_conditioning(both: Any) -> None:
    design, base = both.design, both.world.model.model
    latent, context = torch.randn(2, 12, 16, 16), torch.randn(2, 77, design.CONTEXT)
    pooled, timestep = torch.randn(2, design.POOLED), torch.tensor([10, 900])
    sizes = torch.tensor([design.TIME_IDS] * 2).float()
    expected = both.unet(
        latent,
        timestep,
        encoder_hidden_states=context,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
    ).sample
    y = base.encode_adm(pooled_output=pooled, width=128, height=128)
    agree(base.diffusion_model(latent, timestep.float(), context=context, y=y), expected)
    kept = design.new_scheduler().alphas_cumprod
    sigmas = ((1 - kept) / kept).sqrt()
    agree(
        base.model_sampling.sigmas[:-1], sigmas[:-1], 1e-4
    )  # the last is infinite there, and 4519 in ComfyUI
    assert base.model_type.name == "V_PREDICTION"


def test_samples_a_picture_with_stock_parts(both: Any) -> None:
    """EmptyLatentImage's four channels, KSampler, VAE Decode."""
    import comfy.sample

    world = both.world
    latent = comfy.sample.fix_empty_latent_channels(world.model, torch.zeros(1, 4, 16, 16))
    noise = comfy.sample.prepare_noise(latent, 0)
    prompt = world.clip.encode_from_tokens_scheduled(world.clip.tokenize(TEXT))
    sampled = comfy.sample.sample(
        world.model, noise, 2, 4.0, "euler", "sgm_uniform", prompt, prompt, latent, seed=0, disable_pbar=True
    )
    assert sampled.shape == (1, 12, 16, 16)
    assert torch.isfinite(sampled).all()
    assert world.vae.decode(sampled).shape == (1, 128, 128, 3)


@pytest.mark.parametrize("name", PARTS)
def test_missing_and_foreign_files_are_refused_by_name(both: Any, tmp_path: Path, name: str) -> None:
    from nested_attention.avatars.comfy.world import load_world
    from nested_attention.errors import NestedAttentionError

    for file in both.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    weights = tmp_path / f"{name}.safetensors"
    weights.unlink()
    with pytest.raises(NestedAttentionError, match=f"{name}.safetensors"):
        load_world(tmp_path)
    save_file({"text_model.final_layer_norm.weight": torch.ones(4), "odd": torch.ones(4)}, weights)
    with pytest.raises(NestedAttentionError, match="odd|final_layer_norm|embeddings"):
        load_world(tmp_path)
    (tmp_path / f"{name}.json").unlink()
    with pytest.raises(NestedAttentionError, match=f"{name}.json"):
        load_world(tmp_path)


@pytest.mark.parametrize("fault", ["lacks", "has one of another size", "has one too many"])
@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("unet", "time_embedding.linear_1.bias"),
        ("vision", "visual_projection.weight"),
        ("vision", "vision_model.embeddings.position_embedding.weight"),
        ("vision", "vision_model.embeddings.patch_embedding.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(both: Any, part: str, tensor: str, fault: str) -> None:
    """Also where ComfyUI's layers would take whatever they are given."""
    from nested_attention.avatars.comfy import world
    from nested_attention.errors import NestedAttentionError

    config, weights = world.read_part(both.folder, part)
    weight = weights.pop(tensor)
    if fault == "has one of another size":
        weights[tensor] = torch.cat([weight, weight])
    elif fault == "has one too many":
        weights |= {tensor: weight, f"{tensor}.odd": weight}
    build = {"unet": lambda part: world.build_model(part, {"latent_channels": 8}, {})}
    with pytest.raises(NestedAttentionError, match=": 1 tensors "):
        build.get(part, world.build_clip_vision)(world.Part(config, weights))
