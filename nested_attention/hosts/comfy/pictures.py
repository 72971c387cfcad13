"""Reference pictures → a subject, with ComfyUI's CLIP vision models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import NestedAttentionError
from ...pictures.check import check_pictures
from ...subject import Subject
from .memory import SubjectEncoderHandle


def encode_subject(
    handle: SubjectEncoderHandle, clip_vision: Any, image: Tensor, weights: Sequence[float] | None = None
) -> Subject:
    """A subject from an IMAGE batch (pictures, height, width, channels): several pictures are of one subject.

    weights: one number ≥ 0 a picture, by which they are mixed; equal if left out. Pictures are cropped to a
    square around their middle, as the vision model reads them. Raises NestedAttentionError, naming Encode
    Subject, for pictures that cannot be read (`check_pictures`) and for a vision model of another width than
    the encoder's.
    """
    pictures = check_pictures(image)
    features = _features(handle, clip_vision, pictures)
    device = handle.load()
    try:
        # A subject outlives the node's inference mode, and is saved, mixed and projected outside of it.
        with torch.inference_mode(False), torch.no_grad():
            subject = Subject.from_images(
                handle.encoder, features.to(device, torch.float32, copy=True), weights
            )
            return replace(subject, tokens=subject.tokens.cpu(), token_bias=subject.token_bias.cpu())
    except NestedAttentionError as error:
        raise NestedAttentionError(f"Encode Subject: {error}") from error


def _features(handle: SubjectEncoderHandle, clip_vision: Any, pictures: Tensor) -> Tensor:
    """(pictures, patches, vision_dim)"""
    config = handle.config
    needed = (
        f"the subject encoder {handle.source} reads {config.features} of width {config.vision_dim} from the "
        "CLIP vision model it was trained with. Load that one (its name is in the encoder's description"
        + ("; for SDXL's it is CLIP ViT-H)" if config.vision_dim == 1280 else ")")
    )
    try:
        features = clip_vision.encode_image(pictures)[config.features]
    except (AttributeError, KeyError, TypeError) as error:
        raise NestedAttentionError(
            f"Encode Subject: the CLIP vision model {type(clip_vision).__name__} gives no {config.features} "
            f"({error}); {needed}"
        ) from error
    if features.dim() != 3 or features.shape[-1] != config.vision_dim:
        raise NestedAttentionError(
            f"Encode Subject: the CLIP vision model gives {config.features} of width {features.shape[-1]}; "
            f"{needed}"
        )
    return features
