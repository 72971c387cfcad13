"""Pictures → a subject, with a CLIP vision model of transformers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoder import FeatureLayer, SubjectEncoder
from ...errors import NestedAttentionError
from ...inspection.looks import looks, reference
from ...pictures.check import check_pictures
from ...pictures.cover import cover
from ...storage.tensors import read_tensors
from ...subject import Subject
from .parts import load_part

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue: what CLIP's pictures are normalised by."""


def vision_input(pictures: Tensor, size: int) -> Tensor:
    """(n, 3, H, W) in [0, 1] → (n, 3, size, size), normalised.

    The shorter side is resized to `size`, the middle is cut out, and values are rounded to bytes, as ComfyUI
    does it.
    """
    square, _, _ = cover(pictures.float(), size, size)
    pixels = square.mul(255).clamp(0, 255).round().div(255)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


@torch.no_grad()
def picture_features(vision: Any, pictures: Tensor | Sequence[Tensor], layer: FeatureLayer) -> Tensor:
    """n pictures (3, H, W) in [0, 1], each of a size of its own → (n, patches, width): what an encoder reads,
    class token included, without the final norm; of the pooled embedding (n, 1, width). vision: a
    CLIPVisionModel, with a projection for that."""
    size = vision.config.image_size
    pixels = torch.cat([vision_input(picture[None], size) for picture in pictures])
    pixels = pixels.to(vision.device, vision.dtype)
    if layer == "last_hidden_state":
        return vision(pixels).last_hidden_state
    if layer == "image_embeds":
        return vision(pixels).image_embeds[:, None]
    return vision(pixels, output_hidden_states=True).hidden_states[-2]


def encode_subject(
    encoder: SubjectEncoder, vision: Any, pictures: Tensor, weights: Sequence[float] | None = None
) -> Subject:
    """A subject from several pictures of it, (n, height, width, 3) in [0, 1].

    vision: the CLIP vision model that the encoder was trained with. weights: one number ≥ 0 a picture, equal
    if left out. Raises NestedAttentionError for a vision model of another width, and as `check_pictures` and
    `Subject.from_images`.
    """
    pictures = check_pictures(pictures, "encode_subject")
    config = encoder.config
    pooled = config.features == "image_embeds"
    width = vision.config.projection_dim if pooled else vision.config.hidden_size
    if width != config.vision_dim:
        raise NestedAttentionError(
            f"the vision model's {config.features} is {width} wide, and the subject encoder for "
            f"{config.word!r} reads features of width {config.vision_dim}. Load the vision model that it was "
            "trained with"
        )
    features = picture_features(vision, pictures.permute(0, 3, 1, 2), config.features)
    features = features.to(next(encoder.parameters()))
    subject = Subject.from_images(encoder, features, weights)
    references = tuple(
        reference(picture, None if pooled else partial(looks, encoder, own))
        for number, (picture, own) in enumerate(zip(pictures, features, strict=True))
        if weights is None or weights[number] > 0
    )
    return replace(subject, references=references)


def load_vision(
    place: str | os.PathLike[str], folder: str | None = None, *, dtype: torch.dtype = torch.float32
) -> Any:
    """A CLIP vision model of transformers, frozen: from one safetensors file, as ComfyUI keeps them, or as
    `load_part` finds it. Raises NestedAttentionError for a file or folder without one."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path = Path(place)
    if not path.is_file():
        model = load_part(CLIPVisionModelWithProjection, place, folder, torch_dtype=dtype)
        return model.requires_grad_(False).eval()
    tensors = read_tensors(path, safetensors_only=True).tensors
    try:
        config = CLIPVisionConfig(**_sizes(tensors))
    except KeyError as error:
        raise NestedAttentionError(
            f"{path} is no CLIP vision model: it has no tensor {error}. Expected a file with the names of "
            "transformers, such as the image encoder of IP-Adapter"
        ) from error
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    known = {name: tensors[name].to(dtype) for name in model.state_dict() if name in tensors}
    positions = torch.arange(model.vision_model.embeddings.num_positions)[None]
    model.vision_model.embeddings.position_ids = positions
    missing, _ = model.load_state_dict(known, strict=False, assign=True)
    if missing:
        raise NestedAttentionError(
            f"{path} lacks {len(missing)} tensors of a CLIP vision model, the first is {missing[0]}; "
            "fetch the file again"
        )
    return model.eval().requires_grad_(False)


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a CLIP vision model, from the shapes of its tensors."""
    patches = tensors["vision_model.embeddings.patch_embedding.weight"]  # (width, 3, side, side)
    positions = tensors["vision_model.embeddings.position_embedding.weight"]  # (1 + patches, width)
    width, side = patches.shape[0], patches.shape[-1]
    projected = tensors["visual_projection.weight"].shape[0]
    layers = {name.split(".")[3] for name in tensors if name.startswith("vision_model.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": 16 if width >= 1024 else max(1, width // 64),  # as all released ones have
        "patch_size": side,
        "image_size": side * math.isqrt(len(positions) - 1),
        "projection_dim": projected,
        "hidden_act": "quick_gelu" if width == 1024 and projected == 768 else "gelu",  # OpenAI's ViT-L
    }
