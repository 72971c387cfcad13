"""A CLIP vision model from a file, for one subject encoder: the wrong one is refused before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision

from ....errors import NestedAttentionError
from ....storage.tensors import read_tensors
from .memory import SubjectEncoderHandle

_WIDTHS = ("class_embedding", "position_embedding.weight", "positional_embedding", "cls_token")
"""How the names end, in Hugging Face's and OpenCLIP's files, of tensors whose last dimension is the width."""


def load_vision(path: str | os.PathLike[str], encoder: SubjectEncoderHandle) -> Any:
    """CLIP_VISION, as ComfyUI's own loader reads it, for pictures that `encoder` shall encode.

    Raises NestedAttentionError that names both files if the widths differ, and one that says what was
    expected if the file is missing, damaged, or no CLIP vision model.
    """
    path = Path(path)
    width = _width({name: tuple(tensor.shape) for name, tensor in read_tensors(path).tensors.items()}, path)
    if width != encoder.config.vision_dim:
        raise NestedAttentionError(
            f"the CLIP vision model {path.name} is {width} wide, and the subject encoder {encoder.source} "
            f"reads features of width {encoder.config.vision_dim}. {_advice(encoder)}"
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
    which = "CLIP ViT-H/14, for SDXL's encoders" if encoder.config.vision_dim == 1280 else "of that width"
    return f"Choose the vision model that the encoder was trained with ({which})"
