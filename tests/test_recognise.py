"""The packaged face recogniser, on photographs, against what dlib itself gives for the same pixels."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
from skimage import data, filters, transform
from torch import Tensor

from nested_attention.errors import NestedAttentionError
from nested_attention.paths import FACE_RECOGNISER
from nested_attention.pictures.faces import Face
from nested_attention.pictures.pyramid import TiledFaceDetector, face_detector
from nested_attention.pictures.recognise import (
    DLIB,
    SAME_PERSON,
    SIDE,
    FaceRecogniser,
    describe,
    face_chip,
    fitted_square,
    likeness,
    load_face_recogniser,
    unquantised,
)
from nested_attention.storage.tensors import read_tensors, write_tensors

DISTANCES = {
    "mirrored": 0.1840,
    "darker": 0.1862,
    "blurred": 0.4090,
    "LFW 0": 0.9004,
    "LFW 5": 0.7714,
    "LFW 8": 0.6999,
}
"""From the astronaut to each, as `scripts/convert_face_recognition.py` has dlib 20.0.1 measure it with its
own weights."""

TOLERANCE = 0.02
"""As `weights/face_recognition/README.md` states it."""


@pytest.fixture(scope="module")
def network() -> FaceRecogniser:
    return load_face_recogniser(FACE_RECOGNISER)


@pytest.fixture(scope="module")
def detect() -> TiledFaceDetector:
    return face_detector()


@pytest.fixture(scope="module")
def astronaut() -> Tensor:
    return torch.from_numpy(data.astronaut() / 255).float()


@pytest.fixture(scope="module")
def chips(detect: TiledFaceDetector, astronaut: Tensor) -> dict[str, Tensor]:
    smooth = torch.from_numpy(filters.gaussian(astronaut.numpy(), 2, channel_axis=-1)).float()
    pictures = {
        "astronaut": astronaut,
        "mirrored": astronaut.flip(1),
        "darker": astronaut * 0.4,
        "blurred": smooth,
    }
    found = {name: face_chip(picture, detect(picture)[0]) for name, picture in pictures.items()}
    for number in (0, 5, 8):
        large = transform.resize(data.lfw_subset()[number], (SIDE, SIDE), order=3)
        found[f"LFW {number}"] = torch.from_numpy(large).float().clamp(0, 1).expand(3, -1, -1)
    return found


def test_distances_are_dlibs_own(network: FaceRecogniser, chips: dict[str, Tensor]) -> None:
    with torch.no_grad():
        found = network(torch.stack(list(chips.values())))
    measured = dict(zip(chips, (found - found[0]).norm(dim=1).tolist(), strict=True))
    del measured["astronaut"]
    assert measured == pytest.approx(DISTANCES, abs=TOLERANCE)


def test_one_person_is_recognised_and_others_are_not(
    network: FaceRecogniser, detect: TiledFaceDetector, astronaut: Tensor, chips: dict[str, Tensor]
) -> None:
    own = describe(network, astronaut, detect(astronaut))
    canvas = torch.full((600, 700, 3), 0.5)  # smaller, elsewhere, between other things
    small = transform.resize(astronaut.numpy(), (300, 300), anti_aliasing=True)
    canvas[250:550, 350:650] = torch.from_numpy(small).float()
    same = likeness(own, describe(network, canvas, detect(canvas)))
    assert same.same_person and same.faces == 1 and same.distance < 0.3
    assert same.verdict.startswith("the same person")
    with torch.no_grad():
        others = network(torch.stack([chips[name] for name in ("LFW 0", "LFW 5", "LFW 8")]))
    other = likeness(own, others)
    assert not other.same_person and other.faces == 3 and other.distance > SAME_PERSON
    assert other.verdict.startswith("another person")
    # The nearest of several references and of several faces counts.
    assert likeness(torch.cat([others, own]), torch.cat([others[:1] + 1, own])).distance == 0


def test_a_picture_without_a_face_is_not_the_person(
    network: FaceRecogniser, detect: TiledFaceDetector
) -> None:
    cat = torch.from_numpy(data.chelsea() / 255).float()
    found = describe(network, cat, detect(cat))
    assert found.shape == (0, 128)
    nobody = likeness(torch.zeros(1, 128), found)
    assert nobody.distance == math.inf and not nobody.same_person
    assert nobody.verdict == "no face was found"


def test_the_chip_has_eyes_and_mouth_where_dlib_has_them() -> None:
    square = fitted_square(face_at(*(200 + 300j + (40 + 9j) * place for place in DLIB)), DLIB)
    assert square.centre == pytest.approx(200 + 300j)
    assert square.right == pytest.approx(40 + 9j)
    with pytest.raises(NestedAttentionError, match="7, 9 has its eyes and mouth in one place"):
        fitted_square(face_at(7 + 9j, 7 + 9j, 7 + 9j), DLIB)


def face_at(left_eye: complex, right_eye: complex, mouth: complex) -> Face:
    return Face(left_eye, 1.0, 1.0, left_eye, right_eye, mouth, 1.0)


def test_values_of_eight_bits_come_back() -> None:
    stored = {
        "a": torch.tensor([0, 128, 255], dtype=torch.uint8),
        "a.range": torch.tensor([0.5, -1.0]),
        "b": torch.tensor([0.25]),
    }
    found = unquantised(stored)
    assert found["a"].tolist() == [-1.0, 63.0, 126.5] and found["b"].tolist() == [0.25]
    assert list(found) == ["a", "b"]


def test_the_card_describes_these_weights() -> None:
    card = FACE_RECOGNISER.with_name("README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(FACE_RECOGNISER.read_bytes()).hexdigest() in card
    tensors = read_tensors(FACE_RECOGNISER)
    assert tensors.metadata["license"] == "MIT"
    assert tensors.metadata["source_sha256"] in card
    assert f"**{SAME_PERSON}**" in card and f"**{TOLERANCE} is the tolerance**" in card
    assert "Permission is hereby granted" in FACE_RECOGNISER.with_name("LICENSE").read_text(encoding="utf-8")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    for tensors in ({"stem.scale": torch.zeros(3)}, {"head.weight": torch.zeros(2, dtype=torch.uint8)}):
        write_tensors(tmp_path / "other.safetensors", tensors, {})
        with pytest.raises(NestedAttentionError, match=r"other.safetensors does not hold.*Install the pack"):
            load_face_recogniser(tmp_path / "other.safetensors")


def test_what_ships_stays_small() -> None:
    """Everything under weights/ is downloaded by everyone who installs the pack."""
    folder = FACE_RECOGNISER.parent.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 48 * 2**20
