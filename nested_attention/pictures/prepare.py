"""Photographs as they come → what an encoder was trained with: the face upright, or the subject on white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from .background import Estimate, estimate_subject
from .faces import Face, FaceDetector, ffhq_square
from .isolate import Isolation, isolate_subjects
from .square import Square, cut

Prepare = Literal["none", "auto", "face", "isolate"]
PREPARE: tuple[Prepare, ...] = get_args(Prepare)

SIZE = 512
"""Pixels a side of a prepared picture."""

Taken = Literal["face", "isolated", "as it is"]
Missed = Literal["face", "subject"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """pictures: (n, height, width, 3) in [0, 1]. taken: what was taken of each; missed: what it lacks, where
    it is used as it is for that. doubts: a sentence about each picture of which it is not certain that the
    right thing was taken."""

    pictures: Tensor
    taken: tuple[Taken, ...]
    doubts: tuple[str, ...]
    missed: tuple[tuple[Missed, ...], ...]


def prepare_pictures(
    pictures: Sequence[Tensor],
    how: Prepare,
    detect: FaceDetector,
    *,
    animal: bool = False,
    drawings: bool = False,
) -> Prepared:
    """Pictures (height, width, 3) in [0, 1], each of its own size → pictures of one size.

    how: "face" cuts out the largest face, upright (FFHQ's square); "isolate" puts the subject on white, told
    from its background by the picture's border; "auto" takes the face if there is one, else isolates if that
    is certain, else leaves the picture as it is; "none" leaves it. What is left is cut to a square around
    its middle where the pictures would not be of one size. animal: whether the subject is one, for whom
    "auto" looks for no face. drawings: the encoder was trained with close-ups of drawn subjects, background
    included, so nothing is isolated unless that is asked for.

    Raises NestedAttentionError, naming the picture, where a face is asked for and none is found, and where
    nothing can be isolated.
    """
    if how not in PREPARE:
        raise NestedAttentionError(f"prepare is {how!r}; expected one of {', '.join(PREPARE)}")
    found = [
        _prepare_one(picture, f"picture {number} of {len(pictures)}", how, detect, animal, drawings)
        for number, picture in enumerate(pictures, 1)
    ]
    made = [one.pixels for one in found]
    if len({picture.shape for picture in pictures}) == 1 and all(one.taken == "as it is" for one in found):
        made = list(pictures)  # the vision model crops and shrinks them by itself
    return Prepared(
        torch.stack(made),
        tuple(one.taken for one in found),
        tuple(one.doubt for one in found if one.doubt),
        tuple(one.missed for one in found),
    )


@dataclass(frozen=True, eq=False)
class _One:
    """Of one picture what `Prepared` says of all; pixels: (height, width, 3)."""

    pixels: Tensor
    taken: Taken
    missed: tuple[Missed, ...] = ()
    doubt: str = ""


def _prepare_one(
    picture: Tensor, name: str, how: Prepare, detect: FaceDetector, animal: bool, drawings: bool
) -> _One:
    faces = [] if how in ("none", "isolate") or (how == "auto" and animal) else detect(picture)
    if faces:
        return _One(cut(picture, ffhq_square(_largest(faces)), SIZE), "face")
    if how == "face":
        raise NestedAttentionError(
            f"{name} ({picture.shape[1]} × {picture.shape[0]} pixels): no face was found. Expected a face "
            "that shows both eyes and the mouth, and is not upside down. Take another picture, set prepare "
            "to none for one that is cropped already, or to isolate for a pet"
        )
    if how == "none" or (how == "auto" and drawings):
        return _One(cut(picture, Square.in_middle(picture), SIZE), "as it is")
    found = estimate_subject(picture)
    if found.sure or how == "isolate":
        doubt = (
            f"{name}: the background could not be told from the subject with certainty ({found.doubt}). Look "
            "at the preview; if it is wrong, use Isolate Subject with a mask"
        )
        return _One(_isolated(picture, found, name), "isolated", doubt=doubt if found.doubt else "")
    return _One(
        cut(picture, Square.in_middle(picture), SIZE),
        "as it is",
        ("subject",) if animal else ("face", "subject"),
        f"{name}: {'' if animal else 'no face was found, and '}the background could not be told from the "
        f"subject ({found.doubt}), so the picture is used as it is. Crop it to the subject, or use "
        f"{'' if animal else 'Align Face or '}Isolate Subject with a mask",
    )


def _largest(faces: Sequence[Face]) -> Face:
    return max(faces, key=lambda face: face.area)


def _isolated(picture: Tensor, found: Estimate, name: str) -> Tensor:
    try:
        return isolate_subjects(picture[None], found.mask[None], Isolation(size=SIZE))[0][0]
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{name}: nothing to isolate was found ({found.doubt})") from error
