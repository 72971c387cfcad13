"""What a face in a picture is, however it was found; which faces to take; and the square that FFHQ puts it
in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from torch import Tensor

from ..errors import NestedAttentionError
from .square import Square

Which = Literal["largest", "leftmost", "rightmost", "most central", "by index", "all"]
WHICH: tuple[Which, ...] = get_args(Which)


@dataclass(frozen=True)
class Face:
    """One face in a picture, by places x + iy in pixels (see `square.py`).

    The eyes are named as one sees them in an upright face: the left one is the person's right. `width` and
    `height` are those of the box around brows and chin.
    """

    centre: complex
    width: float
    height: float
    left_eye: complex
    right_eye: complex
    mouth: complex  # the middle between its corners
    score: float  # 0 … 1

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def turn(self) -> complex:
        """The direction from the left eye to the right one, of length 1."""
        across = self.right_eye - self.left_eye
        return across / abs(across) if across else 1 + 0j


class FaceDetector(Protocol):
    """Finds the faces of one picture (height, width, 3) in [0, 1], largest first."""

    def __call__(self, picture: Tensor) -> list[Face]: ...


def distinct(
    faces: Sequence[Face], overlap: float = 0.4, of: Literal["smaller", "union"] = "smaller"
) -> list[Face]:
    """Non-maximum suppression: of faces whose boxes share `overlap`, the one with the best score.

    of: what the shared area is compared with. Of the smaller box, a finding inside of another is dropped; of
    the union of both, only what is much the same in place and size.

    Largest first, and from left to right among equals.
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_shared(face, other, of) < overlap for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: (-face.area, face.centre.real))


def _shared(a: Face, b: Face, of: Literal["smaller", "union"]) -> float:
    """Area of the boxes' intersection, as a part of the smaller box or of their union."""
    apart = a.centre - b.centre
    width = min((a.width + b.width) / 2 - abs(apart.real), a.width, b.width)
    height = min((a.height + b.height) / 2 - abs(apart.imag), a.height, b.height)
    both = max(width, 0) * max(height, 0)
    return both / max(min(a.area, b.area) if of == "smaller" else a.area + b.area - both, 1e-9)


def choose(faces: Sequence[Face], which: Which, index: int, width: int, height: int) -> list[Face]:
    """The faces of a picture (width × height pixels) that are meant, in the order of `faces`.

    index: for "by index", from 1, in the order of `faces`. Raises NestedAttentionError if there are fewer.
    """
    if which not in WHICH:
        raise NestedAttentionError(f"which face is {which!r}; expected one of {', '.join(WHICH)}")
    if which == "all":
        return list(faces)
    if which == "by index":
        if not 1 <= index <= len(faces):
            raise NestedAttentionError(
                f"face {index} was asked for, and {len(faces)} found. Set the index to 1 … {len(faces)} (1 "
                "is the largest), or take the largest face"
            )
        return [faces[index - 1]]
    middle = complex(width, height) / 2
    order = {
        "largest": lambda face: -face.area,
        "leftmost": lambda face: face.centre.real,
        "rightmost": lambda face: -face.centre.real,
        "most central": lambda face: abs(face.centre - middle),
    }[which]
    return [min(faces, key=order)]


def ffhq_square(face: Face) -> Square:
    """The oriented square of FFHQ (Karras et al., 2019), from eyes and mouth.

    Its x axis is the mean of the direction between the eyes and the one across the face's own upright; half
    its side is the larger of 2.0 × the distance of the eyes and 1.8 × the distance from eyes to mouth; its
    middle lies 0.1 of the latter below the eyes. Raises NestedAttentionError if eyes and mouth lie in one
    point.
    """
    eyes = (face.left_eye + face.right_eye) / 2
    across = face.right_eye - face.left_eye
    down = face.mouth - eyes
    axis = across - 1j * down
    half = max(2.0 * abs(across), 1.8 * abs(down))
    if abs(axis) < 1e-6 or half < 1e-6:
        raise NestedAttentionError(
            f"a face at {face.centre.real:.0f}, {face.centre.imag:.0f} has its eyes and mouth in one place "
            "or upside down; expected a face that shows them. Choose another face, or another picture"
        )
    return Square(eyes + 0.1 * down, axis / abs(axis) * half)


def upright_square(face: Face, width: int, height: int) -> tuple[int, int, int]:
    """The square around FFHQ's that stands upright and lies within a picture (width × height pixels): left
    edge, upper edge and side, in whole pixels."""
    corners = ffhq_square(face).corners
    reach = [corner.real for corner in corners], [corner.imag for corner in corners]
    side = min(round(max(max(one) - min(one) for one in reach)), width, height)
    middle = [sum(one) / len(one) for one in reach]
    left, top = (
        min(max(round(at - side / 2), 0), length - side)
        for at, length in zip(middle, (width, height), strict=True)
    )
    return left, top, side
