"""Which picture of the latent batch, and which part of it, each row of a forward pass is.

Samplers run a batch in windows (AnimateDiff), prompts in areas, and positive and negative prompts in one pass
in either order; so the numbers ride beside the text context, where ComfyUI repeats and joins them like it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ....regions import Box

PLACES = "nested_attention_places"
"""The places under `model_conds`, and the keyword that reaches the model."""


class Places(comfy.conds.CONDRegular):
    """Places as they ride under `model_conds`: (B, 7) integers on the CPU, the picture's number and its
    Box."""

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """area: of the prompt, in latent cells: height, width, top, left."""
        places = self.cond
        if area is not None and len(area) == 4:
            places = places.clone()
            height, width, top, left = area
            places[:, 1:5] = torch.tensor([top, left, height, width])
        return comfy.conds.CONDRegular(places)


@dataclass(frozen=True)
class Pass:
    """The rows of a forward pass: number of the picture, and part of it."""

    pictures: tuple[int, ...]
    parts: tuple[Box, ...]

    @property
    def rows(self) -> list[tuple[int, Box]]:
        return list(zip(self.pictures, self.parts, strict=True))

    @classmethod
    def read(cls, places: Tensor) -> Pass:
        rows = places.cpu().tolist()
        return cls(tuple(row[0] for row in rows), tuple(tuple(row[1:]) for row in rows))


def places_of(x: Tensor, batch: int, transformer_options: Mapping[str, Any]) -> Places:
    """The places of the latents x (b, C, H, W), which are some of a sampling's `batch` pictures.

    Raises NestedAttentionError if which ones cannot be told.
    """
    pictures = _window(len(x), transformer_options)
    if pictures is None and len(x) == batch:
        pictures = list(range(batch))
    if pictures is None:
        raise NestedAttentionError(
            f"Apply Subject: a node runs {len(x)} of the batch's {batch} pictures at a time and does not "
            "tell "
            "which, so the subject, the mask or the found region of each cannot be chosen. Use one subject, "
            "and one mask, for all pictures, or take out the node that splits the batch (context windows of "
            "ComfyUI and of AnimateDiff-Evolved are understood)"
        )
    height, width = x.shape[-2:]
    whole = torch.tensor([0, 0, height, width, height, width]).expand(len(x), -1)
    return Places(torch.cat([torch.tensor(pictures)[:, None], whole], dim=1))


def _window(size: int, transformer_options: Mapping[str, Any]) -> list[int] | None:
    """Numbers of the pictures in the window being run: as ComfyUI and as AnimateDiff-Evolved tell them.

    Newer versions of ComfyUI run the picture before a window in front of it, and drop what comes out for it.
    """
    window = transformer_options.get("context_window")
    listed = None if getattr(window, "dim", 0) else getattr(window, "index_list", None)
    before = getattr(window, "causal_anchor_index", None)
    told = [listed, (transformer_options.get("ad_params") or {}).get("sub_idxs")]
    if listed is not None and before is not None:
        told.append([before, *listed])
    return next((list(map(int, one)) for one in told if one is not None and len(one) == size), None)
