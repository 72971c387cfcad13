"""Align Face: pictures → the faces in them, cut out as FFHQ does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from .faces import Face, FaceDetector, Which, choose, ffhq_square
from .square import Padding, cut

SIZES = (64, 2048)
"""Smallest and largest side of a crop, in pixels."""

LOWER = (0.5, 0.3)
"""Scores to try where a face is missed. Below the last, much else is taken for one."""


@dataclass(frozen=True, eq=False)
class AlignedFaces:
    """What `align_faces` gives: crops, and for each picture the faces found in it and those that were
    taken."""

    crops: Tensor  # (faces taken, size, size, 3) in [0, 1], picture by picture
    found: tuple[tuple[Face, ...], ...]  # largest first
    taken: tuple[tuple[Face, ...], ...]


def align_faces(
    pictures: Tensor,
    detect: FaceDetector,
    *,
    which: Which = "largest",
    index: int = 1,
    size: int = 512,
    padding: Padding = "edge",
) -> AlignedFaces:
    """Pictures (n, height, width, 3) in [0, 1] → one upright square crop of each, or one for every face in
    them.

    which, index: see `choose`; "all" takes every face. size: pixels a side. padding: what is shown where a
    crop reaches over the border. Raises NestedAttentionError, naming the picture by its place in the batch,
    where no face is found or there is none of that index.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise NestedAttentionError(f"the size of a crop is {size}; expected {SIZES[0]} to {SIZES[1]} pixels")
    found, taken, crops = [], [], []
    for number, picture in enumerate(pictures, start=1):
        name = f"picture {number} of {len(pictures)}"
        faces = detect(picture)
        if not faces:
            raise NestedAttentionError(
                f"{name} ({picture.shape[1]} × {picture.shape[0]} pixels): no face was found. Expected a "
                f"face that shows both eyes and the mouth, and is not upside down. {_lower(detect)} the "
                "picture closer to the face, or take another one; a picture of a pet or an object goes to "
                "Isolate Subject instead"
            )
        try:
            chosen = choose(faces, which, index, picture.shape[1], picture.shape[0])
            crops += [cut(picture, ffhq_square(face), size, padding) for face in chosen]
        except NestedAttentionError as error:
            raise NestedAttentionError(f"{name}: {error}") from error
        found.append(tuple(faces))
        taken.append(tuple(chosen))
    return AlignedFaces(torch.stack(crops), tuple(found), tuple(taken))


def _lower(detect: FaceDetector) -> str:
    """What to do about the score that a face needs, where it can be lower, up to the word for cropping."""
    needed = getattr(detect, "threshold", 0.0)
    lower = next((score for score in LOWER if score < needed), None)
    return "Crop" if lower is None else f"Set min_score to {lower}, say (a face needs {needed:g} now), crop"
