"""A tiny SDXL in ComfyUI with random weights: MODEL, CLIP and subject encoders, and short samplings with
them.

Imports ComfyUI: to be imported by fixtures and tests, not while tests are collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.hosts.comfy import SubjectEncoderHandle, apply_subject, manage_encoder
from nested_attention.settings import SubjectSettings
from nested_attention.sites import UNetLayout
from nested_attention.subject import Subject

WIDTH_L, WIDTH_G = 32, 64
CONTEXT = WIDTH_L + WIDTH_G
CPU = torch.device("cpu")

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 2],
    "transformer_depth_output": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "context_dim": CONTEXT,
    "adm_in_channels": WIDTH_G + 6 * 256,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "use_checkpoint": False,
    "legacy": False,
}


class World:
    """Everything a graph would hold before Apply Subject. Nothing here may be changed by a test."""

    def __init__(self) -> None:
        self.model = make_model()
        self.clip = make_clip()
        self.person = make_encoder(self.model, seed=1)
        self.pet = make_encoder(self.model, seed=2, word="pet")
        self.alice = make_subject(self.person, seed=3)
        self.bob = make_subject(self.person, seed=4)
        self.rex = make_subject(self.pet, seed=5)

    def apply(
        self, model: Any, clip: Any, subject: Subject | None = None, **settings: Any
    ) -> tuple[Any, Any]:
        """Apply Subject at strong settings, so that the subject shows in a random model."""
        subject = subject or self.alice
        encoder = self.pet if subject.fingerprint == self.pet.fingerprint else self.person
        chosen = {
            "word": subject.word,
            "attention_scale": 3.0,
            "alpha": 6.0,
            "strength": 1.0,
            **settings,
        }
        return apply_with(model, clip, encoder, subject, **chosen)


def apply_with(
    model: Any, clip: Any, encoder: SubjectEncoderHandle, subject: Any, **settings: Any
) -> tuple[Any, Any]:
    """Apply Subject with these settings."""
    return apply_subject(model, clip, encoder, subject, SubjectSettings(**settings))


def encode(clip: comfy.sd.CLIP, text: str) -> list[Any]:
    """CLIPTextEncode."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(
    model: Any,
    positive: list[Any],
    negative: list[Any],
    *,
    cfg: float = 4.0,
    steps: int = 3,
    batch: int = 1,
    size: int = 8,
    **kwargs: Any,
) -> Tensor:
    """KSampler with fixed noise: latents (batch, 4, size, size)."""
    noise = torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(0))
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "normal",
        positive,
        negative,
        torch.zeros_like(noise),
        seed=0,
        **kwargs,
    )


def sample_with(guider: comfy.samplers.CFGGuider, *, steps: int = 3, size: int = 8) -> Tensor:
    """SamplerCustomAdvanced with fixed noise."""
    noise = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)


def make_model(compute_dtype: torch.dtype | None = None, **changes: Any) -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models.SDXL({**UNET, **changes})
    config.unet_config.update(num_heads=-1, num_head_channels=16)  # the constructor puts SDXL's own
    config.set_inference_dtype(torch.float32, compute_dtype)
    model = config.get_model({})
    randomise(model.diffusion_model, seed=10)
    return comfy.model_patcher.ModelPatcher(model.eval(), CPU, CPU)


def make_sd15() -> comfy.model_patcher.ModelPatcher:
    """A MODEL of SD 1.5's layout, 16 cross-attention layers, and tiny widths."""
    unet = {
        **UNET,
        "channel_mult": [1, 2, 2, 2],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "context_dim": WIDTH_L,
        "adm_in_channels": None,
        "num_classes": None,
        "use_linear_in_transformer": False,
    }
    config = comfy.supported_models.SD15(unet)
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    randomise(model.diffusion_model, seed=10)
    return comfy.model_patcher.ModelPatcher(model.eval(), CPU, CPU)


def make_sd15_clip() -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    sizes = {
        "hidden_size": WIDTH_L,
        "intermediate_size": 2 * WIDTH_L,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": WIDTH_L,
    }
    options = {"clip_l_model_config": sizes, "model_config": sizes, "dtype": torch.float32}
    clip = comfy.sd.CLIP(target, model_options=options)
    randomise(clip.cond_stage_model, seed=11)
    return clip


def make_clip(embedding_directory: str | None = None) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(
        comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
    )
    options = {
        f"clip_{tower}_model_config": {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "projection_dim": width,
        }
        for tower, width in (("l", WIDTH_L), ("g", WIDTH_G))
    }
    clip = comfy.sd.CLIP(
        target, embedding_directory=embedding_directory, model_options={**options, "dtype": torch.float32}
    )
    randomise(clip.cond_stage_model, seed=11)
    return clip


def make_encoder(model: Any, *, seed: int, word: str = "person", **changes: Any) -> SubjectEncoderHandle:
    torch.manual_seed(seed)
    settings = {
        "vision_dim": 24,
        "token_dim": 48,
        "num_queries": 6,
        "width": 32,
        "depth": 1,
        "heads": 2,
        "head_dim": 16,
        "sites": UNetLayout.from_comfy_config(model.model.model_config.unet_config).sites,
        "word": word,
        **changes,
    }
    return manage_encoder(SubjectEncoder(SubjectEncoderConfig(**settings)), f"{word}.safetensors")


def make_subject(encoder: SubjectEncoderHandle, *, seed: int, images: int = 1) -> Subject:
    features = torch.randn(
        images, 10, encoder.config.vision_dim, generator=torch.Generator().manual_seed(seed)
    )
    return Subject.from_images(encoder.encoder, features)


def randomise(module: nn.Module, *, seed: int) -> None:
    """ComfyUI's layers start with whatever was in memory; these weights make every path count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() < 2:
                parameter.copy_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                spread = parameter[0].numel() ** -0.5
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit."""
    return torch.equal(one, other)


def carries(one: Tensor, other: Tensor, threshold: float = 1e-3) -> bool:
    """Whether the two differ by more than rounding could explain."""
    return float((one - other).abs().max()) > threshold * float(other.abs().max())


def tokens_marked(conditioning: Sequence[Any]) -> list[int]:
    """Positions that carry a subject in the first entry of a conditioning."""
    from nested_attention.hosts.comfy.prompts.marks import KEY

    codes = conditioning[0][1][KEY].codes[0]
    return [at for at, code in enumerate(codes.tolist()) if code and code % 2 == 0]
