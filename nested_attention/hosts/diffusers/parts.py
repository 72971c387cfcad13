"""Models of diffusers and transformers, from a folder or the model hub."""

from __future__ import annotations

import os
from typing import Any

from ...errors import NestedAttentionError


def load_part(kind: Any, place: str | os.PathLike[str], folder: str | None = None, **options: Any) -> Any:
    """A model, tokenizer, scheduler or whole pipeline by its class.

    place: a folder as the two libraries write it, or a repository's name on the model hub, which is then
    downloaded. folder: a part of either, such as "unet". options: of `from_pretrained`. Raises
    NestedAttentionError, naming what was looked for and where.
    """
    more = {"subfolder": folder} if folder else {}
    try:
        return kind.from_pretrained(place, **more, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        name = f"{place}/{folder}" if folder else place
        raise NestedAttentionError(
            f"{kind.__name__} cannot be loaded from {name}: {' '.join(str(error).split())[:300]}. Expected a "
            "folder in diffusers' or transformers' layout, or the name of one on the model hub"
        ) from error
