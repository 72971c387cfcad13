"""The models that training leaves as they are: those of SDXL, in diffusers' layout, and the vision model.

Any model of SDXL's kind will do, whatever its sizes: SDXL itself, one that was fine-tuned from it, or the
small world as `nested-attention world export` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ..encoder import FeatureLayer, weight_digests
from ..hosts.diffusers.parts import load_part
from ..hosts.diffusers.vision import load_vision, picture_features
from .reading import Place

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Where the frozen models are.

    base: a folder in diffusers' layout (unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2,
    scheduler), or such a repository's name on the model hub, which is then downloaded. vision: the CLIP
    vision model, as `load_vision` takes it; the base's `image_encoder` if null. vae: another autoencoder's
    folder or name. precision: in which the frozen encoders run.
    """

    base: Place
    vision: Place | None = None
    vae: Place | None = None
    precision: Precision = "bf16"


def default_device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_unet(model: BaseModel, dtype: torch.dtype) -> UNet2DConditionModel:
    """The denoiser, frozen."""
    unet = load_part(UNet2DConditionModel, model.base, "unet", torch_dtype=dtype)
    return unet.requires_grad_(False).eval()


def load_schedule(model: BaseModel) -> DDPMScheduler:
    """The noise schedule that the base was trained with."""
    return load_part(DDPMScheduler, model.base, "scheduler")


def load_vae(model: BaseModel, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The autoencoder, frozen, in the precision of the encoders unless another is given."""
    where, folder = (model.vae, None) if model.vae else (model.base, "vae")
    dtype = dtype or DTYPES[model.precision]
    return load_part(AutoencoderKL, where, folder, torch_dtype=dtype).requires_grad_(False)


def load_pipeline(model: BaseModel, dtype: torch.dtype, device: torch.device) -> StableDiffusionXLPipeline:
    """The whole base model, with the autoencoder of its settings: draws without a bar or a watermark."""
    vae: dict[str, Any] = {"vae": load_vae(model, dtype)} if model.vae else {}
    pipeline = load_part(
        StableDiffusionXLPipeline, model.base, torch_dtype=dtype, add_watermarker=False, **vae
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@dataclass(frozen=True, eq=False)
class FrozenEncoders:
    """What turns pictures and captions into what a step reads. Everything stays on one device."""

    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    vision: Any

    @classmethod
    def load(cls, model: BaseModel, device: torch.device) -> FrozenEncoders:
        """Raises NestedAttentionError, naming the part that cannot be loaded."""
        dtype = DTYPES[model.precision]
        vision = (model.vision, None) if model.vision else (model.base, "image_encoder")
        texts = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        parts: dict[str, Any] = {
            "vae": load_vae(model),
            "vision": load_vision(*vision, dtype=dtype),
            **{name: load_part(kind, model.base, name, torch_dtype=dtype) for name, kind in texts.items()},
        }
        parts = {name: part.requires_grad_(False).eval().to(device) for name, part in parts.items()}
        tokenizers = {
            name: load_part(CLIPTokenizer, model.base, name) for name in ("tokenizer", "tokenizer_2")
        }
        return cls(**parts, **tokenizers)

    @property
    def device(self) -> torch.device:
        return next(self.vision.parameters()).device

    def fingerprints(self) -> dict[str, str]:
        """Part → a hash of its configuration and weights: what it gives changes when this does."""
        parts = ("vae", "text_encoder", "text_encoder_2", "vision")
        return {name: _fingerprint(getattr(self, name)) for name in parts}

    def tokenize(self, text: str) -> list[int]:
        """The ids that the first text encoder reads, 77 of them; the second one's stand at the same
        places."""
        return _ids(self.tokenizer, [text])[0].tolist()

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, H, W) in [0, 1] → mean and deviation of the latents, (n, C, h, w) each, not scaled."""
        pixels = (pictures * 2 - 1).to(self.device, self.vae.dtype)
        latents = self.vae.encode(pixels).latent_dist
        return latents.mean, latents.std

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions → context (n, 77, width) and pooled (n, width), as SDXL conditions its UNet."""
        states, pooled = [], None
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            out = encoder(_ids(tokenizer, captions).to(self.device), output_hidden_states=True)
            states.append(out.hidden_states[-2])
            pooled = getattr(out, "text_embeds", None)
        assert pooled is not None  # of the second encoder
        return torch.cat(states, dim=-1), pooled

    @torch.no_grad()
    def encode_references(self, pictures: Sequence[Tensor], layer: FeatureLayer) -> Tensor:
        """n pictures (3, H, W) in [0, 1], each of a size of its own → features (n, patches, width), class
        token included, without the final norm."""
        return picture_features(self.vision, pictures, layer)


def _ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(texts), **options).input_ids


def _fingerprint(module: nn.Module) -> str:
    config: Any = module.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    # Where a file lies, and which version wrote it, changes nothing.
    told = {
        name: value for name, value in values.items() if not name.startswith("_") and "version" not in name
    }
    # Half precision would hide nothing that training could tell apart.
    digests = weight_digests(module.state_dict().items())
    dtype = str(next(module.parameters()).dtype)
    whole = json.dumps([told, digests, dtype], sort_keys=True, default=str)
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def vision_name(model: BaseModel) -> str:
    """What a person calls the vision model."""
    return folder_name(model.vision) if model.vision else f"{folder_name(model.base)}'s image encoder"


def folder_name(where: str) -> str:
    """What a person calls a base model by its folder or repository."""
    return where.rstrip("/") if "/" in where and not Path(where).exists() else Path(where).name
