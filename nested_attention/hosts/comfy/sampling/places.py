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
from ....inspection.observed import Box

PLACES = "nested_attention_places"
"""The places under `model_conds`, and the keyword that reaches the model."""


@dataclass(frozen=True)
class Purpose:
    """What places are for, in words: which node asks, what is lost without them in a picture and in a batch,
    and what one does then."""

    asks: str
    lost: str
    way_out: str
    lost_in_batch: str
    without: str


REGIONS = Purpose(
    asks="Apply Subject",
    lost="a region cannot be placed in them",
    way_out="set region_mode of Apply Subject to 'none'",
    lost_in_batch="the subject, the mask or the found region of each cannot be chosen",
    without="Use one subject, and one mask, for all pictures",
)
MAPS = Purpose(
    asks="Observe Subjects",
    lost="what is observed cannot be placed in the picture",
    way_out="switch Observe Subjects off",
    lost_in_batch="it cannot be told which picture is observed",
    without="Switch Observe Subjects off",
)


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


def places_of(
    x: Tensor, batch: int, transformer_options: Mapping[str, Any], purpose: Purpose = REGIONS
) -> Places:
    """The places of the latents x (b, C, H, W), which are some of a sampling's `batch` pictures.

    Raises NestedAttentionError if which ones cannot be told.
    """
    pictures = _window(len(x), transformer_options)
    if pictures is None and len(x) == batch:
        pictures = list(range(batch))
    if pictures is None:
        raise NestedAttentionError(
            f"{purpose.asks}: a node runs {len(x)} of the batch's {batch} pictures at a time and does not "
            f"tell which, so {purpose.lost_in_batch}. {purpose.without}, or take out the node that splits "
            "the batch (context windows of ComfyUI and of AnimateDiff-Evolved are understood)"
        )
    height, width = x.shape[-2:]
    whole = torch.tensor([0, 0, height, width, height, width]).expand(len(x), -1)
    return Places(torch.cat([torch.tensor(pictures)[:, None], whole], dim=1))


def check_whole(x: Tensor, size: tuple[int, int], purpose: Purpose = REGIONS) -> None:
    """Raises NestedAttentionError if latents x (b, C, H, W) are a part of pictures of `size` cells."""
    height, width = x.shape[-2:]
    if height < size[0] or width < size[1]:
        raise NestedAttentionError(
            f"{purpose.asks}: a node runs {height} × {width} latent cells of pictures that have {size[0]} "
            f"× {size[1]}, and does not tell which, so {purpose.lost}. Take that node out, or "
            f"{purpose.way_out} (tiles that are cut around the model, as Tiled Diffusion's are, are "
            "understood)"
        )


def on_tiles(
    where: Pass, x: Tensor, latents: Tensor, pictures: Sequence[int], purpose: Purpose = REGIONS
) -> Pass:
    """The rows of a forward pass on latents x (B, C, h, w), which a node may have cut out of those of the
    step, (b, C, H, W): where they are smaller, each row's part of the picture is found by its noise.

    pictures: numbers of the step's. Waits for the device once a row. Raises NestedAttentionError for a tile
    that is nowhere, or in several places.
    """
    size = height, width = x.shape[-2:]
    if all(part[2:4] == size for part in where.parts):
        return where
    if len(where.parts) != len(x):
        raise NestedAttentionError(
            f"{purpose.asks}: a node runs {len(x)} tiles at once and tells the places of {len(where.parts)}, "
            f"so {purpose.lost}. Take it out, or {purpose.way_out}"
        )
    parts: list[Box] = []
    for tile, (picture, part) in zip(x, where.rows, strict=True):
        top, left, rows, columns, *whole = part
        seen = latents[pictures.index(picture), :, top : top + rows, left : left + columns].to(x)
        found = _find(tile, seen)
        if len(found) != 1:
            raise NestedAttentionError(
                f"{purpose.asks}: a node runs the model on {height} × {width} of a picture's {rows} × "
                f"{columns} latent cells and changes them, or rolls them over the edge, so it cannot be told "
                f"where they are and {purpose.lost}. Take it out, or {purpose.way_out}"
            )
        parts.append((top + found[0][0], left + found[0][1], height, width, whole[0], whole[1]))
    return Pass(where.pictures, tuple(parts))


def _find(tile: Tensor, whole: Tensor) -> list[tuple[int, int]]:
    """Rows and columns at which a tile (C, h, w) stands in a whole (C, H, W), to the bit."""
    height, width = tile.shape[1:]
    down, across = whole.shape[1] - height + 1, whole.shape[2] - width + 1
    if down < 1 or across < 1:
        return []
    corners = (whole[:, :down, :across] == tile[:, :1, :1]).all(dim=0)
    places = corners.nonzero().tolist()
    return [(y, x) for y, x in places if torch.equal(whole[:, y : y + height, x : x + width], tile)]


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
