"""Whose face it is: the face recogniser that comes with the pack.

The ResNet of dlib's `dlib_face_recognition_resnet_model_v1` (King, 2017) in the form that face-api.js gave
it, written anew in torch; its weights (MIT, 8 bits) are in `weights/face_recognition`, converted by
`scripts/convert_face_recognition.py`. It turns a face into 128 numbers. Two pictures of one person lie closer
together than two of different people.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..errors import NestedAttentionError
from ..storage.tensors import read_tensors
from .faces import Face, FaceDetector
from .square import Square, cut

SIDE = 150
"""Pixels a side of what the network sees."""

SAME_PERSON = 0.6
"""Euclidean distance below which two faces are taken for one person: the threshold that dlib states for these
weights, at which it is right for 99.38 % of the pairs of Labeled Faces in the Wild
(http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html)."""

DESCRIPTOR = 128
"""Numbers that describe a face."""

_MEAN = (122.782, 117.001, 104.294)
"""Red, green and blue of an average picture, of 255."""

_BLOCKS = (32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256)
"""Channels out of each residual block. A block that has more than the one before it halves the picture, and
so does the last."""

DLIB = (-0.3636 - 0.3715j, 0.3370 - 0.3715j, -0.0132 + 0.3904j)
"""Where dlib's chip has the left eye, the right eye and the middle of the mouth, over −1 … 1: its mean face
with a quarter of the face's size as room on each side."""


class FaceRecogniser(nn.Module):
    """(n, 3, 150, 150) in [0, 1] → descriptors (n, 128), about 1.5 long."""

    mean: Tensor  # (3, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _BLOCKS[0], size=7, stride=2)
        widths = [_BLOCKS[0], *_BLOCKS]
        last = len(_BLOCKS) - 1
        self.blocks = nn.Sequential(
            *(
                _Block(inner, outer, halve=outer != inner or number == last)
                for number, (inner, outer) in enumerate(zip(widths, _BLOCKS, strict=False))
            )
        )
        self.head = nn.Linear(_BLOCKS[-1], DESCRIPTOR, bias=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = (pixels * 255 - self.mean) / 256
        hidden = functional.max_pool2d(functional.relu(self.stem(hidden)), 3, 2)  # (n, 32, 35, 35)
        return self.head(self.blocks(hidden).mean(dim=(2, 3)))


class _Convolution(nn.Module):
    """A convolution, then a factor and an offset a channel: a batch norm whose statistics are fixed."""

    def __init__(self, inner: int, outer: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = size // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(inner, outer, size, stride=stride, padding=padding)
        self.scale = nn.Parameter(torch.ones(outer))
        self.offset = nn.Parameter(torch.zeros(outer))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x) * self.scale[:, None, None] + self.offset[:, None, None]


class _Block(nn.Module):
    """Two convolutions beside a shortcut. Where the picture is halved, the shortcut is pooled and filled up
    with zero channels."""

    def __init__(self, inner: int, outer: int, halve: bool) -> None:
        super().__init__()
        self.halve, self.more = halve, outer - inner
        self.first = _Convolution(inner, outer, stride=2 if halve else 1)
        self.second = _Convolution(outer, outer)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(functional.relu(self.first(x)))
        if self.halve:
            x = functional.pad(functional.avg_pool2d(x, 2), (0, 0, 0, 0, 0, self.more))
            rows, columns = (x.shape[axis] - hidden.shape[axis] for axis in (2, 3))
            hidden = functional.pad(hidden, (0, columns, 0, rows))  # pooling keeps a row more at even sizes
        return functional.relu(x + hidden)


def load_face_recogniser(path: str | os.PathLike[str]) -> FaceRecogniser:
    """The network with the weights in a file, ready to use. Raises NestedAttentionError for another file."""
    tensors = read_tensors(path, safetensors_only=True).tensors
    network = FaceRecogniser().eval().requires_grad_(False)
    try:
        network.load_state_dict(unquantised(tensors))
    except (RuntimeError, KeyError) as error:
        raise NestedAttentionError(
            f"{path} does not hold the face recogniser's weights ({' '.join(str(error).split())[:200]}). "
            "Install the pack again: the file comes with it"
        ) from error
    return network


def unquantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of 8 bits, each with a tensor `<name>.range` of its step and its minimum → fp32. What has no
    range is taken as it is."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".range"):
            continue
        values = tensor.float()
        if tensor.dtype == torch.uint8:
            step, least = tensors[f"{name}.range"].unbind()
            values = values * step + least
        found[name] = values
    return found


def face_chip(picture: Tensor, face: Face) -> Tensor:
    """A face of a picture (height, width, 3) in [0, 1] → (3, 150, 150), upright, as the network was trained
    to see it: dlib's chip, black beyond the border."""
    return cut(picture, fitted_square(face, DLIB), SIDE, 0.0).permute(2, 0, 1)


def fitted_square(face: Face, places: Sequence[complex]) -> Square:
    """The square in which the face's left eye, right eye and mouth come nearest to `places`, over −1 … 1, by
    the least squares of a similarity. Raises NestedAttentionError if they lie in one point."""
    inside = torch.tensor(places, dtype=torch.complex128)
    found = torch.tensor([face.left_eye, face.right_eye, face.mouth], dtype=torch.complex128)
    apart, where = inside - inside.mean(), found - found.mean()
    right = complex((apart.conj() * where).sum() / apart.abs().square().sum())
    if abs(right) < 1e-6:
        raise NestedAttentionError(
            f"a face at {face.centre.real:.0f}, {face.centre.imag:.0f} has its eyes and mouth in one place; "
            "expected a face that shows them. Choose another face, or another picture"
        )
    return Square(complex(found.mean() - right * inside.mean()), right)


@torch.no_grad()
def describe(network: FaceRecogniser, picture: Tensor, faces: Sequence[Face]) -> Tensor:
    """Faces of one picture (height, width, 3) in [0, 1] → their descriptors (faces, 128)."""
    if not faces:
        return torch.zeros(0, DESCRIPTOR)
    return network(torch.stack([face_chip(picture, face) for face in faces]))


@dataclass(frozen=True)
class Likeness:
    """How alike a person and a picture are.

    distance: between the descriptors of the two faces that are most alike, infinite without a face in the
    picture. faces: how many the picture shows.
    """

    distance: float
    faces: int

    @property
    def same_person(self) -> bool:
        return self.distance < SAME_PERSON

    @property
    def verdict(self) -> str:
        if not self.faces:
            return "no face was found"
        if self.same_person:
            return f"the same person: distance {self.distance:.2f}, below {SAME_PERSON}"
        return f"another person: distance {self.distance:.2f}, not below {SAME_PERSON}"


def likeness(references: Tensor, faces: Tensor) -> Likeness:
    """Of a person's descriptors (pictures, 128), of which the nearest counts, and those of the faces in a
    picture (faces, 128)."""
    distance = float(torch.cdist(references, faces).min()) if len(faces) else math.inf
    return Likeness(distance, len(faces))


def compare(
    references: Tensor, pictures: Tensor, detect: FaceDetector, network: FaceRecogniser
) -> list[Likeness]:
    """Photographs of one person, whose largest face counts, and any pictures, (n, height, width, 3) in [0, 1]
    → the person's likeness in each of the pictures.

    Raises NestedAttentionError, naming the reference, where it shows no face.
    """
    known = []
    for number, picture in enumerate(references, start=1):
        faces = detect(picture)
        if not faces:
            raise NestedAttentionError(
                f"reference {number} of {len(references)} ({picture.shape[1]} × {picture.shape[0]} pixels): "
                "no face was found. Expected a photograph of the person that shows both eyes and the mouth. "
                "Crop it closer to the face, or take another one"
            )
        known.append(describe(network, picture, faces[:1]))
    person = torch.cat(known)
    return [likeness(person, describe(network, picture, detect(picture))) for picture in pictures]
