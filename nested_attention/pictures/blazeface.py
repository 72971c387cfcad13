"""BlazeFace, short range (Bazarevsky et al., 2019, arXiv 1907.05047): the face detector that comes with the
pack.

The network of MediaPipe's `face_detection_short_range`, written anew in torch; its weights (Apache-2.0) are
in `weights/blazeface`, converted by `scripts/convert_blazeface.py`. It looks at 128 × 128 pixels and finds
faces that fill some tenth of them or more; `pyramid.py` shows it larger pictures piece by piece.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import NestedAttentionError
from ..storage.tensors import read_tensors

SIDE = 128
"""Pixels a side of what the network sees."""

VALUES = 16
"""Per anchor: centre x, centre y, width, height of the box, then x, y of the six keypoints."""

_STEM = 24
_BLOCKS = ((24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1))
_DEEP_BLOCKS = ((96, 2), (96, 1), (96, 1), (96, 1), (96, 1))
"""(channels out, stride) of the blocks before and after the first of the two prediction heads."""

_GRIDS = ((16, 2), (8, 6))
"""(cells a side, anchors a cell) of the two heads: 16·16·2 + 8·8·6 = 896 anchors."""


class BlazeFace(nn.Module):
    """(n, 3, 128, 128) in [0, 1] → the logits (n, 896) of a face and the values (n, 896, 16), in pixels."""

    anchors: Tensor  # (896, 2)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _STEM, 5, stride=2)
        self.blocks = _stack(_STEM, _BLOCKS)
        wide, deep = _BLOCKS[-1][0], _DEEP_BLOCKS[-1][0]
        self.deep_blocks = _stack(wide, _DEEP_BLOCKS)
        counts = [anchors for _, anchors in _GRIDS]
        self.scores = nn.ModuleList(nn.Conv2d(c, n, 1) for c, n in zip((wide, deep), counts, strict=True))
        self.values = nn.ModuleList(
            nn.Conv2d(c, n * VALUES, 1) for c, n in zip((wide, deep), counts, strict=True)
        )
        self.register_buffer("anchors", anchor_centres(), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        # As TensorFlow pads "same" at stride 2: what is left over goes to the right and the bottom.
        hidden = functional.pad(pixels * 2 - 1, (1, 2, 1, 2))
        fine = self.blocks(functional.relu(self.stem(hidden)))  # (n, 88, 16, 16)
        coarse = self.deep_blocks(fine)  # (n, 96, 8, 8)
        pyramid = (fine, coarse)
        logits = [_rows(head(x), 1) for head, x in zip(self.scores, pyramid, strict=True)]
        values = [_rows(head(x), VALUES) for head, x in zip(self.values, pyramid, strict=True)]
        return torch.cat(logits, 1)[..., 0], self._place(torch.cat(values, 1))

    def _place(self, raw: Tensor) -> Tensor:
        """Offsets from the anchors → places in the picture; width and height are none."""
        offsets = raw.new_zeros(len(self.anchors), VALUES // 2, 2)
        offsets += self.anchors[:, None]
        offsets[:, 1] = 0
        return raw + offsets.flatten(1)


class _Block(nn.Module):
    """A depthwise separable convolution beside a shortcut, which is pooled and filled up with zero
    channels."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, outer - inner
        self.depthwise = nn.Conv2d(
            inner, inner, 3, stride=stride, padding=1 if stride == 1 else 0, groups=inner
        )
        self.pointwise = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride == 2:
            x = functional.pad(x, (0, 1, 0, 1))
            shortcut = functional.max_pool2d(shortcut, 2)
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.more))
        return functional.relu(shortcut + self.pointwise(self.depthwise(x)))


def _stack(inner: int, blocks: tuple[tuple[int, int], ...]) -> nn.Sequential:
    widths = [inner, *(outer for outer, _ in blocks)]
    return nn.Sequential(
        *(_Block(before, outer, stride) for before, (outer, stride) in zip(widths, blocks, strict=False))
    )


def _rows(x: Tensor, values: int) -> Tensor:
    """(n, anchors·values, h, w) → (n, h·w·anchors, values), row by row."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


def anchor_centres() -> Tensor:
    """(896, 2): x and y of the middle of every anchor's cell, in pixels; each cell once for each anchor."""
    grids = []
    for cells, anchors in _GRIDS:
        places = (torch.arange(cells, dtype=torch.float32) + 0.5) * (SIDE / cells)
        y, x = torch.meshgrid(places, places, indexing="ij")
        grids.append(torch.stack([x, y], dim=-1).reshape(-1, 2).repeat_interleave(anchors, dim=0))
    return torch.cat(grids)


def load_blazeface(path: str | os.PathLike[str]) -> BlazeFace:
    """The network with the weights in a file, ready to use. Raises NestedAttentionError for another file."""
    tensors = read_tensors(path, safetensors_only=True).tensors
    network = BlazeFace().eval().requires_grad_(False)
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise NestedAttentionError(
            f"{path} does not hold the face detector's weights ({' '.join(str(error).split())[:200]}). "
            "Install the pack again: the file comes with it"
        ) from error
    return network
