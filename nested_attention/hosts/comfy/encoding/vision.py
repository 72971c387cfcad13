"""A CLIP vision model from a file, for one subject encoder: the wrong one is refused before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision

from ....encoder import FeatureLayer, SubjectEncoderConfig
from ....errors import NestedAttentionError
from ....storage.tensors import read_shapes
from .memory import SubjectEncoderHandle

_WIDTHS = ("class_embedding", "position_embedding.weight", "positional_embedding", "cls_token")
"""How the names end, in Hugging Face's and OpenCLIP's files, of tensors whose last dimension is the width."""


SMALL_WORLD_WIDTH = 128

_MODELS = {
    1024: "CLIP ViT-L/14",
    1280: "CLIP ViT-H/14, which SDXL's encoders read (`nested-attention download clip-vit-h` fetches it)",
    1664: "CLIP ViT-bigG/14",
    SMALL_WORLD_WIDTH: "the small world's, the CLIP_VISION output of Demo World",
}
"""Width → what a user calls the vision model of that width."""


_POOLED = {768: _MODELS[1024], 1024: _MODELS[1280], 1280: _MODELS[1664]}
"""The same by the width of their pooled embeddings."""


def vision_name(config: SubjectEncoderConfig) -> str:
    """The vision model that an encoder reads, as a user knows it."""
    width, known = config.vision_dim, _POOLED if config.features == "image_embeds" else _MODELS
    return known.get(width, f"one of width {width}, which the encoder's maker has to name")


def load_vision(path: str | os.PathLike[str], encoder: SubjectEncoderHandle) -> Any:
    """CLIP_VISION, as ComfyUI's own loader reads it, for the pictures that `encoder` will read.

    Raises NestedAttentionError that names both files if the widths differ, and one that says what was
    expected if the file is missing, damaged, or no CLIP vision model.
    """
    path = Path(path)
    width = vision_width(path, encoder.config.features)
    pooled = encoder.config.features == "image_embeds"
    if width != encoder.config.vision_dim:
        raise NestedAttentionError(
            f"the {'pooled embedding of the ' * pooled}CLIP vision model {path.name} is {width} wide, and "
            f"the subject encoder {encoder.source} reads features of width {encoder.config.vision_dim}. "
            f"{_advice(encoder)}"
        )
    try:
        vision = comfy.clip_vision.load(str(path))
    # ComfyUI meets files it does not expect with whatever goes wrong first.
    except Exception as error:
        raise NestedAttentionError(
            f"ComfyUI cannot load the CLIP vision model {path} ({type(error).__name__}: {error}). "
            f"{_advice(encoder)}"
        ) from error
    if vision is None:
        raise NestedAttentionError(f"ComfyUI knows no CLIP vision model like {path}. {_advice(encoder)}")
    return vision


def vision_width(path: Path, features: FeatureLayer) -> int:
    """How wide an output of a vision model is, from its file's header. Raises NestedAttentionError if it is
    no vision model, or has no such output."""
    shapes = read_shapes(path)
    return _pooled_width(shapes, path) if features == "image_embeds" else _width(shapes, path)


def _pooled_width(shapes: Mapping[str, tuple[int, ...]], path: Path) -> int:
    for name, shape in shapes.items():
        if name.endswith("visual_projection.weight") and len(shape) == 2:  # Hugging Face's
            return shape[0]
        if name.endswith("visual.proj") and len(shape) == 2:  # OpenCLIP's
            return shape[1]
    raise NestedAttentionError(
        f"{path} gives no pooled embedding, which the subject encoder reads: expected a tensor "
        f"visual_projection.weight, found {', '.join(sorted(shapes)[:3]) or 'no tensors'}"
    )


def _width(shapes: Mapping[str, tuple[int, ...]], path: Path) -> int:
    for end in _WIDTHS:
        for name, shape in shapes.items():
            if name.endswith(end) and "text_model" not in name and shape:
                return shape[-1]
    raise NestedAttentionError(
        f"{path} is no CLIP vision model: expected a tensor whose name ends with {_WIDTHS[0]}, found "
        f"{', '.join(sorted(shapes)[:3]) or 'no tensors'}. Vision models belong into models/clip_vision"
    )


def _advice(encoder: SubjectEncoderHandle) -> str:
    return f"Choose the vision model that the encoder was trained with: {vision_name(encoder.config)}"
