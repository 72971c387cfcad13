"""A checkpoint in place of the small world's models, so that one graph serves both."""

from __future__ import annotations

import os
from typing import Any

import comfy.sd

from ...errors import NestedAttentionError


def load_checkpoint(path: str | os.PathLike[str], embedding_directory: list[str]) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a file, as ComfyUI's own loader reads it. Raises NestedAttentionError if it
    lacks one of them."""
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
        os.fspath(path), output_vae=True, output_clip=True, embedding_directory=embedding_directory
    )
    lacking = [name for name, part in (("MODEL", model), ("CLIP", clip), ("VAE", vae)) if part is None]
    if lacking:
        raise NestedAttentionError(
            f"{os.path.basename(os.fspath(path))} has no {' and no '.join(lacking)}; choose an SDXL "
            "checkpoint"
        )
    return model, clip, vae
