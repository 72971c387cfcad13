"""Pictures → a subject, with a CLIP vision model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ...encoder import FeatureLayer, SubjectEncoder
from ...errors import NestedAttentionError
from ...subject import Subject

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue: what CLIP's pictures are normalised by."""


def vision_input(pictures: Tensor, size: int) -> Tensor:
    """(n, 3, H, W) in [0, 1] → (n, 3, size, size), normalised.

    The shorter side is resized to `size`, the middle is cut out, and values are rounded to bytes, as ComfyUI
    does it.
    """
    height, width = pictures.shape[-2:]
    scale = size / min(height, width)
    shape = max(size, round(scale * height)), max(size, round(scale * width))
    resized = functional.interpolate(pictures.float(), shape, mode="bicubic", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    pixels = resized[..., top : top + size, left : left + size].mul(255).clamp(0, 255).round().div(255)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


@torch.no_grad()
def picture_features(vision: Any, pictures: Tensor, layer: FeatureLayer) -> Tensor:
    """(n, 3, H, W) in [0, 1] → (n, patches, width): what an encoder reads, class token included, without the
    final norm. vision: a CLIPVisionModel, with or without a projection."""
    pixels = vision_input(pictures, vision.config.image_size).to(vision.device, vision.dtype)
    if layer == "last_hidden_state":
        return vision(pixels).last_hidden_state
    return vision(pixels, output_hidden_states=True).hidden_states[-2]


def encode_subject(
    encoder: SubjectEncoder, vision: Any, pictures: Tensor, weights: Sequence[float] | None = None
) -> Subject:
    """A subject from several pictures of it, (n, height, width, 3) in [0, 1].

    vision: the CLIP vision model that the encoder was trained with. weights: one number ≥ 0 a picture, equal
    if left out. Raises NestedAttentionError for a vision model of another width and as `Subject.from_images`.
    """
    config = encoder.config
    if vision.config.hidden_size != config.vision_dim:
        raise NestedAttentionError(
            f"the vision model is {vision.config.hidden_size} wide, and the subject encoder for "
            f"{config.word!r} reads features of width {config.vision_dim}. Load the vision model that it was "
            "trained with"
        )
    features = picture_features(vision, pictures.permute(0, 3, 1, 2), config.features)
    return Subject.from_images(encoder, features.to(next(encoder.parameters())), weights)
