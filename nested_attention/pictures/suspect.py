"""What a reference picture would have to show, and may not: each leaves a subject that looks like nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .faces import Face, FaceDetector

PEOPLE = frozenset(("person", "man", "woman", "child", "girl", "boy", "face", "people"))
ANIMALS = frozenset(("pet", "animal", "dog", "cat", "puppy", "kitten", "horse", "bird", "rabbit"))
"""Words of encoders, for whom a face has to be there, and for whom it tells of the wrong encoder."""

BLANK = 0.995
"""Share of a picture's pixels in one colour from which it shows nothing else; a small subject on white takes
more than the rest."""

SAME = 0.02  # difference, of 1, up to which two colours are one

SMALLEST_FACE = 0.25
"""Width of a face in sides of the square that the encoder sees; in an aligned crop it takes about half."""

ALIKE = 0.52
"""Share of neighbouring pixels in one colour below which a picture is a photograph. The small world's
pictures, drawn or decoded, have 0.57 to 0.86 at any size and 0.46 as a poor JPEG; photographs with some
texture in them have 0.1 to 0.5. Photographs of smooth things are not told from drawings."""

DETAIL = 128  # pixels a side in which neighbours are compared

LONGEST = 256  # pixels a side in which faces are looked for


def means_animal(*words: str) -> bool:
    """Whether one of these words, of an encoder or a prompt, means an animal, for whom no face is looked
    for."""
    return any(word.casefold() in ANIMALS for word in words)


def suspicions(pictures: Tensor, word: str, detect: FaceDetector | None) -> Iterator[str]:
    """What is wrong with reference pictures (pictures, height, width, 3) for an encoder of a word, a sentence
    each. detect: None where pictures are no photographs."""
    blank = [number for number, picture in enumerate(pictures, 1) if _blank(picture)]
    if blank:
        yield (
            f"{_which(blank, pictures)} one colour, so nothing of a subject is seen. ComfyUI loads a grey "
            "PNG of 16 bits as white: save it with 8"
        )
    if detect is None or not {word} & (PEOPLE | ANIMALS):
        return
    squares = {number: middle(picture) for number, picture in enumerate(pictures, 1) if number not in blank}
    found = {number: _faces(square, detect) for number, square in squares.items()}
    if word in ANIMALS:
        human = [number for number, faces in found.items() if faces]
        if human:
            yield (
                f"{_which(human, pictures)} a person's face, and the encoder is one for a {word}. Take the "
                "encoder for people, or crop the person out"
            )
        return
    without = [number for number, faces in found.items() if not faces]
    small = [number for number, faces in found.items() if faces and _small(faces, squares[number])]
    if without:
        yield (
            f"{_which(without, pictures)} no face in the square around its middle, which is what the encoder "
            "sees. Crop the picture to the face, with Align Face"
        )
    if small:
        yield (
            f"{_which(small, pictures)} a small face, and the encoder was trained with faces that fill the "
            "picture. Crop it with Align Face"
        )


def photographs(pictures: Tensor) -> str | None:
    """Which of the pictures (pictures, height, width, 3) look like photographs, as the start of a sentence;
    None if none does."""
    found = [number for number, picture in enumerate(pictures, 1) if _photograph(picture)]
    return f"{_which(found, pictures)} what looks like a photograph" if found else None


def middle(picture: Tensor) -> Tensor:
    """(height, width, 3) → the square around its middle, (side, side, 3), as vision models read it."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def _faces(square: Tensor, detect: FaceDetector) -> list[Face]:
    """Faces in a square, in its own pixels or those of the reduction to LONGEST."""
    return detect(_reduced(square, LONGEST))


def _reduced(square: Tensor, side: int) -> Tensor:
    """A square of no more pixels than that a side."""
    if len(square) <= side:
        return square
    return interpolate(square.permute(2, 0, 1)[None], (side, side), mode="area")[0].permute(1, 2, 0)


def _photograph(picture: Tensor) -> bool:
    square = _reduced(middle(picture), DETAIL)
    steps = [(square[1:] - square[:-1]).flatten(0, 1), (square[:, 1:] - square[:, :-1]).flatten(0, 1)]
    return float((torch.cat(steps).abs().amax(dim=-1) < SAME).float().mean()) < ALIKE


def _small(faces: Sequence[Face], square: Tensor) -> bool:
    return max(face.width for face in faces) < SMALLEST_FACE * min(len(square), LONGEST)


def _blank(picture: Tensor) -> bool:
    pixels = picture.flatten(0, 1).float()
    usual = pixels.median(dim=0).values
    return float(((pixels - usual).abs().amax(dim=-1) < SAME).float().mean()) >= BLANK


def _which(numbers: Sequence[int], pictures: Tensor) -> str:
    if len(pictures) == 1:
        return "the picture shows"
    listed = ", ".join(map(str, numbers))
    return f"picture {listed} of {len(pictures)} shows" if len(numbers) == 1 else f"pictures {listed} show"
