"""The built-in detector: BlazeFace over a pyramid of overlapping tiles, and a second, closer look at what
it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as functional
from torch import Tensor

from .blazeface import SIDE, BlazeFace
from .faces import Face, distinct
from .square import Square, cut

PROPOSE = 0.5
"""Score from which a tile's finding is looked at again; MediaPipe's own threshold."""

ACCEPT = 0.8
"""Score that the second look has to confirm. Faces in photographs reach 0.87, other things 0.72."""

CLOSE = 2.2
"""Side of the square of the second look, in widths of the face's box: the share at which keypoints are
best."""

_LEVELS = (1.5, 1.0, 1 / 2, 1 / 4, 1 / 8)
"""Side of a tile, in longer sides of the picture. The first gives room around a face that fills the
picture; the last finds faces of about a fiftieth of the longer side, below which little is left to see."""

_BATCH = 64
"""Tiles at a time: bounds the memory, whatever the picture's shape."""


class TiledFaceDetector:
    """Finds faces of any size and place, turned by up to about 45° (see `FaceDetector`).

    threshold: the score a face needs. Deterministic; about 0.3 s for a megapixel on one core.
    """

    def __init__(self, network: BlazeFace, threshold: float = ACCEPT) -> None:
        self.network = network
        self.threshold = threshold

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> list[Face]:
        picture = picture.detach().float().cpu()
        proposals = distinct([face for side in tile_sides(picture) for face in self._search(picture, side)])
        looked = (self._look_closer(picture, face) for face in proposals)
        return distinct([face for face in looked if face is not None and face.score >= self.threshold])

    def _search(self, picture: Tensor, side: float) -> Iterator[Face]:
        """Every finding on the level of the pyramid whose tiles are `side` pixels wide."""
        tiles, origins = cut_tiles(picture, side)
        for start in range(0, len(tiles), _BATCH):
            logits, values = self.network(tiles[start : start + _BATCH])
            scores = logits.sigmoid()
            for tile, anchor in (scores >= min(PROPOSE, self.threshold)).nonzero().tolist():
                square = Square(origins[start + tile] + complex(side, side) / 2, complex(side / 2))
                yield _read(values[tile, anchor], float(scores[tile, anchor]), square)

    def _look_closer(self, picture: Tensor, face: Face) -> Face | None:
        """The face as the network sees it upright, in the middle and at the size it knows best.

        This makes keypoints independent of where in a tile a face happened to lie, and drops what looks
        like a face from afar only."""
        for _ in range(2):  # the second time turned and placed as the first one saw it
            square = Square(face.centre, face.turn * CLOSE * max(face.width, face.height) / 2)
            tile = cut(picture, square, SIDE, 0.0).permute(2, 0, 1)[None]
            logits, values = self.network(tile)
            central = (values[0, :, :2] - SIDE / 2).abs().amax(1) < SIDE / 8
            best = int(torch.where(central, logits[0], -math.inf).argmax())
            if not central[best]:
                return None
            face = _read(values[0, best], float(logits[0, best].sigmoid()), square)
        return face


def _read(values: Tensor, score: float, square: Square) -> Face:
    """One anchor's values, in pixels of a tile → the face in the picture that the tile was cut from.

    BlazeFace's keypoints are the eyes (the person's right one first, which is the left one to look at), the
    tip of the nose, the middle of the mouth, and the ears."""
    centre, size, left_eye, right_eye, _, mouth, *_ = (complex(x, y) for x, y in values.view(-1, 2).tolist())

    def place(pixel: complex) -> complex:
        return square.place(pixel * 2 / SIDE - (1 + 1j))

    scale = square.side / SIDE
    return Face(
        place(centre),
        size.real * scale,
        size.imag * scale,
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
    """A picture (height, width, 3) in tiles of `side` pixels that overlap by half or more.

    → (n, 3, 128, 128), and where in the picture the upper left corner of each lies. Black beyond the border.
    """
    height, width = picture.shape[:2]
    rows, columns = (max(1, round(n * SIDE / side)) for n in (height, width))
    small = functional.interpolate(
        picture.permute(2, 0, 1)[None], (rows, columns), mode="bilinear", antialias=True
    )
    above, left = (max(0, SIDE - n) // 2 for n in (rows, columns))
    below, right = (max(0, SIDE - n - before) for n, before in ((rows, above), (columns, left)))
    small = functional.pad(small, (left, right, above, below))[0]
    places = [(y, x) for y in _starts(small.shape[1]) for x in _starts(small.shape[2])]
    tiles = torch.stack([small[:, y : y + SIDE, x : x + SIDE] for y, x in places])
    origins = [complex((x - left) * width / columns, (y - above) * height / rows) for y, x in places]
    return tiles, origins


def _starts(length: int) -> list[int]:
    """First pixels of tiles that cover a length, half a tile apart or less."""
    steps = math.ceil((length - SIDE) / (SIDE // 2))
    return [round(k * (length - SIDE) / max(steps, 1)) for k in range(steps + 1)]
