"""Who is in a picture: face recognisers, which turn each face into a descriptor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from ..paths import FACE_RECOGNISER
from ..pictures.faces import Face, FaceDetector
from ..pictures.files import read_picture
from ..pictures.pyramid import face_detector
from ..pictures.recognise import (
    FaceRecogniser,
    describe,
    fitted_square,
    likeness,
    load_face_recogniser,
)
from ..pictures.square import cut

ARCFACE = (-0.3072 - 0.0679j, 0.3220 - 0.0714j, 0.0114 + 0.6569j)
"""Where ArcFace's 112 × 112 pixels have the left eye, the right eye and the middle of the mouth, over −1 … 1
(Deng et al., 2019: the five points of insightface's alignment)."""

ARCFACE_SIDE = 112

Pixels = Literal["-1 to 1", "0 to 255"]
"""The values that a recogniser reads."""


class Recogniser(Protocol):
    """Finds the faces of a picture and describes them.

    key: its name in files. title: what a reader calls it. independent: whether the model that drew the
    pictures has never seen it.
    """

    @property
    def key(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def independent(self) -> bool: ...
    @property
    def state(self) -> str:
        """Changes when its answers do."""
        ...

    def __call__(self, path: Path) -> Tensor:
        """A picture's file → the descriptors of its faces (faces, width), largest face first."""
        ...

    @property
    def decides(self) -> bool:
        """Whether it has a threshold for `same`."""
        ...

    def same(self, references: Tensor, face: Tensor) -> bool:
        """Whether a face (width,) is the person of the references (pictures, width)."""
        ...


@dataclass
class FaceFinder:
    """The packaged detector, which looks at each file once."""

    detect: FaceDetector = field(default_factory=face_detector)
    _found: dict[Path, list[Face]] = field(default_factory=dict)

    def __call__(self, path: Path) -> list[Face]:
        if path not in self._found:
            self._found[path] = self.detect(read_picture(path))
        return self._found[path]


@dataclass
class PackagedRecogniser:
    """dlib's network, whose weights come with the pack."""

    find: FaceFinder
    network: FaceRecogniser = field(default_factory=lambda: load_face_recogniser(FACE_RECOGNISER))
    key: str = "packaged"
    title: str = "packaged recogniser (dlib's ResNet)"
    independent: bool = True
    decides: bool = True
    state: str = "dlib 1"

    def __call__(self, path: Path) -> Tensor:
        return describe(self.network, read_picture(path), self.find(path))

    def same(self, references: Tensor, face: Tensor) -> bool:
        return likeness(references, face[None]).same_person


class OnnxRecogniser:
    """The user's own recogniser of ArcFace's kind: an ONNX file that reads (n, 3, 112, 112) in RGB.

    pixels: insightface's glintr100.onnx and w600k_r50.onnx (for non-commercial research) read −1 to 1,
    OpenCV's SFace (Apache-2.0) 0 to 255. threshold: the cosine from which two faces are one person, if you
    know it.
    """

    def __init__(
        self,
        path: Path,
        find: FaceFinder,
        *,
        name: str | None = None,
        pixels: Pixels = "-1 to 1",
        threshold: float | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise NestedAttentionError(
                f"the recogniser {path} needs onnxruntime, which cannot be imported here ({error}): "
                "pip install onnxruntime"
            ) from error
        if not path.is_file():
            raise NestedAttentionError(f"there is no recogniser {path}; check the path")
        self.key, self.find, self.threshold, self.independent = path.stem, find, threshold, True
        self.title, self.pixels = name or path.stem, pixels
        self.state = hashlib.sha256(path.read_bytes() + f"{pixels} {threshold}".encode()).hexdigest()
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has kinds of its own
            raise NestedAttentionError(f"onnxruntime cannot load the recogniser {path}: {error}") from error
        (entry,) = self._session.get_inputs()
        if list(entry.shape[1:]) != [3, ARCFACE_SIDE, ARCFACE_SIDE]:
            raise NestedAttentionError(
                f"the recogniser {path} reads {list(entry.shape)}; expected (n, 3, 112, 112), as ArcFace's do"
            )
        self._input: str = entry.name

    def __call__(self, path: Path) -> Tensor:
        picture = read_picture(path)
        found = []
        for face in self.find(path):  # one by one: many such files have a batch of 1
            chip = cut(picture, fitted_square(face, ARCFACE), ARCFACE_SIDE, 0.0)
            values = chip * 255 if self.pixels == "0 to 255" else chip * 2 - 1
            seen = values.permute(2, 0, 1)[None].contiguous().numpy()
            (answer,) = self._session.run(None, {self._input: seen})
            found.append(torch.from_numpy(answer)[0])
        return torch.stack(found) if found else torch.zeros(0, 1)

    @property
    def decides(self) -> bool:
        return self.threshold is not None

    def same(self, references: Tensor, face: Tensor) -> bool:
        similarity = torch.nn.functional.cosine_similarity(references, face[None])
        return self.threshold is not None and float(similarity.max()) >= self.threshold
