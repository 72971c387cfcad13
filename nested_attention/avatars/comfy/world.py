"""The small world as ComfyUI objects: the MODEL, CLIP, VAE and CLIP_VISION that any stock node takes.

Its files are those of `avatars`: one safetensors file and one JSON configuration for each of the UNet, the
VAE, the two text encoders and the vision encoder. Everything runs in fp32, on whichever device ComfyUI uses:
the world is small, and its measured scores are those of fp32.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...errors import NestedAttentionError
from ...hosts.comfy.encoding.memory import new_patcher
from ...storage.tensors import read_tensors
from .diffusers_layout import (
    Config,
    Weights,
    text_weights,
    unet_config,
    unet_weights,
    vae_params,
    vae_weights,
)

ART_PIXEL = 4
"""Picture pixels a side of one art pixel: 2 of them are one latent cell: 8 picture pixels, as in SDXL."""


class World(NamedTuple):
    """What a checkpoint loader gives, and the vision encoder."""

    model: comfy.model_patcher.ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    clip_vision: comfy.clip_vision.ClipVisionModel


class Part(NamedTuple):
    """One model of the world, as stored."""

    config: dict[str, Any]
    weights: Weights


def load_world(folder: str | os.PathLike[str], embedding_directory: list[str] | None = None) -> World:
    """Build the world from its files.

    folder: where `unet.safetensors`, `unet.json` and the others lie. embedding_directory: ComfyUI's folders
    of textual inversions, for the CLIP. Raises NestedAttentionError if a file is missing, damaged or of
    another model.
    """
    folder = Path(folder)
    world = World(
        _load_model(folder),
        _load_clip(folder, embedding_directory),
        build_vae(read_part(folder, "vae")),
        build_clip_vision(read_part(folder, "vision")),
    )
    # Newer versions of ComfyUI load a model once more for hooks, for another GPU and to compile it.
    world.model.cached_patcher_init = (_load_model, (folder,))
    world.clip.patcher.cached_patcher_init = (
        lambda **settings: _load_clip(folder, embedding_directory, **settings).patcher,
        (),
    )
    world.vae.patcher.cached_patcher_init = (
        lambda **_: build_vae(read_part(folder, "vae")).patcher,
        (),
    )
    return world


def _load_model(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    parts = read_part(folder, "unet"), _read_json(folder / "vae.json"), _scheduler(folder)
    return build_model(*parts, disable_dynamic=disable_dynamic)


def _load_clip(
    folder: Path, embedding_directory: list[str] | None, disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    towers = read_part(folder, "text_encoder"), read_part(folder, "text_encoder_2")
    return build_clip(*towers, embedding_directory, disable_dynamic=disable_dynamic)


def read_part(folder: Path, name: str) -> Part:
    """`name.json` and `name.safetensors`, in fp32. Raises NestedAttentionError if one cannot be read."""
    return Part(
        _read_json(folder / f"{name}.json"), _float(read_tensors(folder / f"{name}.safetensors").tensors)
    )


def build_model(
    unet: Part, vae: Config, scheduler: Config, *, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a diffusers UNet, its latents' scale (from the VAE) and its noise schedule.

    disable_dynamic: see `new_patcher`.
    """
    sizes = unet_config(unet.config)
    config = _SmallSDXL(sizes)
    config.unet_config.update(sizes)  # the constructor puts SDXL's own head size
    config.latent_format = _SmallLatent(vae["latent_channels"], vae.get("scaling_factor", 1.0))
    config.sampling_settings = {
        "linear_start": scheduler.get("beta_start", 0.00085),
        "linear_end": scheduler.get("beta_end", 0.012),
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "zsnr": scheduler.get("rescale_betas_zero_snr", True),
    }
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    _load(model.diffusion_model, unet_weights(unet.weights, config.unet_config), "unet.safetensors")
    model.diffusion_model.eval()
    return new_patcher(
        model,
        comfy.model_management.get_torch_device(),
        comfy.model_management.unet_offload_device(),
        disable_dynamic=disable_dynamic,
    )


def build_clip(
    first: Part,
    second: Part,
    embedding_directory: list[str] | None = None,
    *,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """The CLIP of two transformers text encoders: as SDXL's, of other sizes.

    disable_dynamic: see `new_patcher`.
    """
    target = comfy.supported_models_base.ClipTarget(
        comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
    )
    options = {
        "dtype": torch.float32,
        "clip_l_model_config": first.config,
        "clip_g_model_config": second.config,
    }
    kind = {"disable_dynamic": True} if disable_dynamic else {}  # which older versions do not know
    clip = comfy.sd.CLIP(target, embedding_directory=embedding_directory, model_options=options, **kind)
    _load(clip.cond_stage_model.clip_l.transformer, text_weights(first.weights), "text_encoder.safetensors")
    _load(
        clip.cond_stage_model.clip_g.transformer, text_weights(second.weights), "text_encoder_2.safetensors"
    )
    return clip


def build_vae(part: Part) -> comfy.sd.VAE:
    """The VAE of a diffusers AutoencoderKL that works on art pixels, as one for the enlarged picture.

    Hooks shrink what the encoder is given and enlarge what the decoder gives, within the model, so that
    whatever ComfyUI does around it (tiles included) meets an ordinary VAE of 8 pixels a latent.
    """
    weights = vae_weights(part.weights, part.config)
    vae = comfy.sd.VAE(sd=weights, config={"params": vae_params(part.config)}, dtype=torch.float32)
    _load(vae.first_stage_model, weights, "vae.safetensors")
    vae.latent_channels = part.config["latent_channels"]
    for module in vae.first_stage_model.modules():
        if isinstance(
            module, nn.GroupNorm
        ):  # built with 32 groups whatever they are; the weights do not tell
            module.num_groups = part.config.get("norm_num_groups", 32)
    vae.first_stage_model.encoder.register_forward_pre_hook(_shrink)
    vae.first_stage_model.decoder.register_forward_hook(_enlarge)
    return vae


def build_clip_vision(part: Part) -> comfy.clip_vision.ClipVisionModel:
    """The CLIP_VISION of a transformers CLIPVisionModelWithProjection."""
    # ComfyUI takes a path, and reads some keys that transformers leaves out where they have their default.
    config = {"model_type": "clip_vision_model", "num_channels": 3, **part.config}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        clip_vision = comfy.clip_vision.ClipVisionModel(str(path))
    weights = {name: weight for name, weight in part.weights.items() if not name.endswith("position_ids")}
    _load(clip_vision.model, weights, "vision.safetensors")
    return clip_vision


class _SmallSDXL(comfy.supported_models.SDXL):
    def model_type(self, state_dict: Weights, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        return False  # ComfyUI would take more than four latent channels for a mask and a masked picture


class _SmallLatent(comfy.latent_formats.LatentFormat):
    def __init__(self, channels: int, scale: float) -> None:
        self.latent_channels = channels
        self.scale_factor = scale


def _shrink(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (nn.functional.avg_pool2d(args[0], ART_PIXEL), *args[1:])  # (B, 3, 4·H, 4·W) → (B, 3, H, W)


def _enlarge(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return nn.functional.interpolate(output, scale_factor=ART_PIXEL, mode="nearest")


def _scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler.json"
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NestedAttentionError(
            f"the small world lacks {path.name} in {path.parent}; expected the files that come with the "
            "pack. Install the pack again, or train the world with `make train`"
        ) from error
    except (OSError, ValueError) as error:
        raise NestedAttentionError(
            f"{path} cannot be read as JSON ({error}); install the pack again"
        ) from error
    if not isinstance(value, dict):
        raise NestedAttentionError(f"{path} holds a {type(value).__name__}; expected a configuration object")
    return value


def _float(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _load(module: nn.Module, weights: Weights, name: str) -> None:
    """Load every tensor, and refuse a file that has others or fewer or of another shape.

    ComfyUI's layers for dynamic memory make their tensors as they are loaded: `state_dict` lacks them before,
    and such a layer would take one of any shape.
    """
    needed = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    biases = {}  # whether a layer has one, is known once it is loaded
    for key, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            needed[f"{key}.weight"] = (layer.out_features, layer.in_features)
            biases[f"{key}.bias"] = (layer.out_features,)
        elif isinstance(layer, nn.Embedding):
            needed[f"{key}.weight"] = (layer.num_embeddings, layer.embedding_dim)
    shapes = biases | needed
    wrong = needed.keys() - weights.keys()
    wrong |= {key for key, weight in weights.items() if shapes.get(key, weight.shape) != weight.shape}
    if not wrong:
        missing, unexpected = module.load_state_dict(weights, strict=False)
        wrong = {*missing, *unexpected}
    if wrong:
        raise NestedAttentionError(
            f"{name}: {len(wrong)} tensors do not fit the model its configuration describes, the first is "
            f"{min(wrong)}; expected a weights file and a configuration from the same training. Install the "
            "pack again"
        )
