"""The built-in detector: BlazeFace over a pyramid of overlapping tiles, and a second, closer look at what
it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import lru_cache

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..paths import FACE_DETECTOR
from .blazeface import SIDE, BlazeFace, load_blazeface
from .faces import Face, distinct
from .square import Square, cut

PROPOSE = (0.3, 0.5)
"""Score from which a tile's finding is looked at again: MediaPipe's own threshold, or the one asked for if
that is lower. Below the first there are too many findings to look at."""

ACCEPT = 0.7
"""Score that the closer look has to confirm (figures in `weights/blazeface/README.md`)."""

CLOSE = (1.8, 2.0, 2.2, 2.4)
"""Sides of the squares of the closer look, in widths of the face: where keypoints are best."""

_LEVELS = (1.5, 1.0, 1 / 2, 1 / 4, 1 / 8)
"""Side of a tile, in longer sides of the picture. The first gives room around a face that fills the
picture; the last finds faces of about a fiftieth of the longer side, below which little is left to see."""

_STEP = SIDE * 5 // 8
"""Pixels from one tile to the next at most. A face of up to 3/8 of a tile lies whole in one of them; of
larger ones the same holds on the next coarser level."""

_BATCH = 16
"""Tiles at a time: bounds the memory, whatever the picture's shape, and is quick on a CPU (64 are slower)."""


class TiledFaceDetector:
    """Finds faces of any size and place, turned by up to about 60° (see `FaceDetector`).

    threshold: the score a face needs. Deterministic.
    """

    def __init__(self, network: BlazeFace, threshold: float = ACCEPT) -> None:
        self.network = network
        self.threshold = threshold
        self._propose = min(max(threshold, PROPOSE[0]), PROPOSE[1])

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> list[Face]:
        picture = picture.detach().float().cpu()
        seen = [face for side in tile_sides(picture) for face in self._search(picture, side)]
        centred = [self._look(picture, face, CLOSE[2:3]) for face in distinct(seen, 0.3, of="union")]
        likely = distinct([face for face in centred if face.score >= self._propose])
        faces = [self._look(picture, face, CLOSE) for face in likely]
        return distinct([face for face in faces if face.score >= self.threshold])

    def _search(self, picture: Tensor, side: float) -> Iterator[Face]:
        """Every finding on the level of the pyramid whose tiles are `side` pixels wide."""
        tiles, origins = cut_tiles(picture, side)
        for start in range(0, len(tiles), _BATCH):
            logits, values = self.network(tiles[start : start + _BATCH])
            scores = logits.sigmoid()
            for tile, anchor in (scores >= self._propose).nonzero().tolist():
                square = Square(origins[start + tile] + complex(side, side) / 2, complex(side / 2))
                yield _read(values[tile, anchor], float(scores[tile, anchor]), square)

    def _look(self, picture: Tensor, face: Face, sides: Sequence[float]) -> Face:
        """The face as the network sees it upright and in the middle, in squares of these sides.

        The mean of what it sees in each, directly and in a mirror: this makes keypoints independent of where
        in a tile a face happened to lie, and takes score from what looks like a face by chance.
        """
        across = face.turn * max(face.width, face.height) / 2
        squares = [Square(face.centre, across * side) for side in sides]
        tiles = torch.stack([cut(picture, square, SIDE, 0.0).permute(2, 0, 1) for square in squares])
        logits, values = self.network(torch.cat([tiles, tiles.flip(-1)]))
        central = (values[..., :2] - SIDE / 2).abs().amax(-1) < SIDE / 8  # (2·sides, 896)
        scores, best = torch.where(central, logits, -math.inf).sigmoid().max(1)
        values = values[torch.arange(len(values)), best]
        readings = [*values[: len(sides)], *map(_mirrored, values[len(sides) :])]
        return _mean(
            [
                _read(reading, float(score), square)
                for reading, score, square in zip(readings, scores, squares * 2, strict=True)
            ]
        )


@lru_cache(maxsize=1)
def face_detector(threshold: float = ACCEPT) -> TiledFaceDetector:
    """The one whose weights come with the pack. Raises NestedAttentionError where they are missing or
    damaged."""
    return TiledFaceDetector(load_blazeface(FACE_DETECTOR), threshold)


def _mean(faces: Sequence[Face]) -> Face:
    parts = zip(*(astuple(face) for face in faces), strict=True)
    return Face(*(sum(part) / len(faces) for part in parts))


def _mirrored(values: Tensor) -> Tensor:
    """What one anchor would say of the mirrored tile: other places, and left and right exchanged."""
    pairs = values.view(-1, 2)[[0, 1, 3, 2, 4, 5, 7, 6]]
    x = torch.where(torch.arange(len(pairs)) == 1, pairs[:, 0], SIDE - pairs[:, 0])  # 1: width and height
    return torch.stack([x, pairs[:, 1]], dim=-1).flatten()


def _read(values: Tensor, score: float, square: Square) -> Face:
    """One anchor's values, in pixels of a tile → the face in the picture that the tile was cut from.

    BlazeFace's keypoints are the eyes (the person's right one first, which is the left one to look at), the
    tip of the nose, the middle of the mouth, and the ears.
    """
    centre, size, left_eye, right_eye, _, mouth, *_ = (complex(x, y) for x, y in values.view(-1, 2).tolist())

    def place(pixel: complex) -> complex:
        return square.place(pixel * 2 / SIDE - (1 + 1j))

    scale = square.side / SIDE
    return Face(
        place(centre),
        max(size.real, 1.0) * scale,
        max(size.imag, 1.0) * scale,
        place(left_eye),
        place(right_eye),
        place(mouth),
        score,
    )


def tile_sides(picture: Tensor) -> list[float]:
    """Pixels a side of the tiles of each level: none finer than the network's own, but for small pictures."""
    longest = max(picture.shape[:2])
    return [longest * level for level in _LEVELS if level >= 1 or longest * level >= SIDE]


def cut_tiles(picture: Tensor, side: float) -> tuple[Tensor, list[complex]]:
    """A picture (height, width, 3) in overlapping tiles of `side` pixels.

    → (n, 3, 128, 128), and where in the picture the upper left corner of each lies. Black beyond the border.
    """
    pixel = side / SIDE  # of a tile, in pixels of the picture
    # What the last pixel of a tile covers beyond the border is black; without it, the border would be lost.
    rest = math.ceil(pixel)
    pixels = functional.pad(picture.permute(2, 0, 1)[None], (0, rest, 0, rest))
    small = functional.interpolate(
        pixels, scale_factor=1 / pixel, mode="bilinear", antialias=True, recompute_scale_factor=False
    )
    rows, columns = small.shape[2:]
    above, left = (max(0, SIDE - n) // 2 for n in (rows, columns))
    below, right = (max(0, SIDE - n - before) for n, before in ((rows, above), (columns, left)))
    small = functional.pad(small, (left, right, above, below))[0]
    places = [(y, x) for y in _starts(small.shape[1]) for x in _starts(small.shape[2])]
    tiles = torch.stack([small[:, y : y + SIDE, x : x + SIDE] for y, x in places])
    origins = [complex(x - left, y - above) * pixel for y, x in places]
    return tiles, origins


def _starts(length: int) -> list[int]:
    """First pixels of tiles that cover a length, evenly spread."""
    steps = math.ceil((length - SIDE) / _STEP)
    return [round(k * (length - SIDE) / max(steps, 1)) for k in range(steps + 1)]
