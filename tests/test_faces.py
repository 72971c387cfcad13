"""The built-in face detector and the alignment, on photographs: an astronaut's portrait, a photographer, a
cat."""

from __future__ import annotations

import cmath
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data, transform
from torch import Tensor

from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.align import align_faces
from nested_attention.pictures.blazeface import SIDE, anchor_centres, load_blazeface
from nested_attention.pictures.draw import OTHER, TAKEN, draw_faces
from nested_attention.pictures.faces import ffhq_square
from nested_attention.pictures.pyramid import TiledFaceDetector, cut_tiles, tile_sides
from nested_attention.storage.tensors import read_tensors, write_tensors

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "blazeface" / "face_detection.safetensors"

LEFT_EYE, RIGHT_EYE = 203.4 + 101.6j, 246.5 + 103.8j
"""The astronaut's pupils, measured by hand in the photograph of 512 × 512 pixels."""


@pytest.fixture(scope="module")
def detect() -> TiledFaceDetector:
    return TiledFaceDetector(load_blazeface(WEIGHTS))


def tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).float()


def astronaut() -> np.ndarray:
    return data.astronaut() / 255


def quarter() -> np.ndarray:
    return transform.resize(astronaut(), (128, 128), anti_aliasing=True)


def turned(degrees: float) -> tuple[np.ndarray, Callable[[complex], complex]]:
    """The astronaut turned counterclockwise, nothing cut off; and where its places have gone."""
    picture = transform.rotate(astronaut(), degrees, resize=True, mode="edge")
    middle, turn = complex(picture.shape[1], picture.shape[0]) / 2, cmath.exp(-1j * math.radians(degrees))
    return picture, lambda place: (place - (256 + 256j)) * turn + middle


def in_the_corner() -> tuple[np.ndarray, Callable[[complex], complex]]:
    canvas = np.full((1024, 900, 3), 0.5)
    canvas[-128:, -128:] = quarter()
    return canvas, lambda place: place / 4 + complex(900 - 128, 1024 - 128)


ORIGINAL = {
    "anchor": 724,
    "logit": 0.5219,
    "values": [
        64.811, 73.054, 72.537, 72.522, 48.446, 55.704, 81.097, 52.969,
        65.215, 69.363, 65.955, 87.378, 32.127, 66.744, 98.416, 62.660,
    ],
}  # fmt: skip
"""The best of 896 answers that the .tflite itself, run by ai-edge-litert 2.3.0, gives for
`disc_with_spots`."""

VIEWS: dict[str, Callable[[], tuple[np.ndarray, Callable[[complex], complex]]]] = {
    "as it is": lambda: (astronaut(), lambda place: place),
    "grey": lambda: (np.repeat(astronaut().mean(-1, keepdims=True), 3, -1), lambda place: place),
    "turned by 30°": lambda: turned(30),
    "turned by −30°": lambda: turned(-30),
    "turned by 60°": lambda: turned(60),
    "a quarter of the size, in a corner": in_the_corner,
    "closely cropped": lambda: (astronaut()[60:200, 160:290], lambda place: place - (160 + 60j)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_the_eyes_come_to_lie_where_ffhq_has_them(detect: TiledFaceDetector, view: str) -> None:
    picture, moved = VIEWS[view]()
    faces = detect(tensor(picture))
    assert len(faces) == 1
    square = ffhq_square(faces[0])
    left, right = (square.inside(moved(place)) for place in (LEFT_EYE, RIGHT_EYE))
    # Half the side is twice the distance of the eyes: they lie at ∓¼, and above the middle.
    assert left == pytest.approx(-0.25 - 0.06j, abs=0.03)
    assert right == pytest.approx(0.25 - 0.06j, abs=0.03)
    # Level, wherever the picture has been turned to.
    assert abs(math.degrees(cmath.phase(right - left))) < 2.5


def test_a_mirrored_face_gives_the_mirrored_crop(detect: TiledFaceDetector) -> None:
    picture = tensor(astronaut())[None]
    plain = align_faces(picture, detect, size=96).crops
    mirrored = align_faces(picture.flip(2), detect, size=96).crops
    assert float((plain - mirrored.flip(2)).abs().mean()) < 0.03
    assert float((plain - mirrored).abs().mean()) > 0.05


def test_what_is_cut_out_does_not_depend_on_how_the_picture_lay(detect: TiledFaceDetector) -> None:
    plain = align_faces(tensor(astronaut())[None], detect, size=96).crops
    for degrees in (30, -30):
        picture, _ = turned(degrees)
        crop = align_faces(tensor(picture)[None], detect, size=96).crops
        assert float((plain - crop).abs().mean()) < 0.035
    # The bound means something: the same crop, 8 of 96 pixels off, is further away.
    assert float((plain - plain.roll(8, dims=2)).abs().mean()) > 0.08


def test_two_people_are_found_and_told_apart(detect: TiledFaceDetector) -> None:
    small = np.pad(transform.resize(astronaut(), (256, 256), anti_aliasing=True), ((256, 0), (0, 0), (0, 0)))
    picture = tensor(np.concatenate([small, astronaut()], axis=1))[None]  # the larger one on the right
    every = align_faces(picture, detect, which="all", size=64)
    assert every.crops.shape == (2, 64, 64, 3)
    larger, smaller = every.found[0]
    assert larger.centre == pytest.approx(256 + 224 + 125j, abs=10)
    assert smaller.centre == pytest.approx(112 + 256j + 62j, abs=10)
    for which, index, expected in (
        ("largest", 1, 0),
        ("leftmost", 1, 1),
        ("rightmost", 1, 0),
        ("by index", 1, 0),
        ("by index", 2, 1),
        ("most central", 1, 0),
    ):
        one = align_faces(picture, detect, which=which, index=index, size=64)  # type: ignore[arg-type]
        assert one.taken[0] == (every.found[0][expected],), which
        assert torch.equal(one.crops, every.crops[expected : expected + 1])


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket", "coins", "moon", "gravel", "horse"])
def test_a_cat_and_other_things_have_no_face(detect: TiledFaceDetector, name: str) -> None:
    picture = getattr(data, name)() / 255.0
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, -1)
    assert detect(tensor(picture[..., :3])) == []


def test_a_hundred_tiny_faces_and_a_hundred_other_patches(detect: TiledFaceDetector) -> None:
    """Labeled Faces in the Wild, 25 × 25 pixels and grey: the first hundred are faces, the others are not."""
    found = [len(detect(tensor(patch)[..., None].expand(-1, -1, 3))) for patch in data.lfw_subset()]
    assert sum(count == 1 for count in found[:100]) >= 93
    assert sum(found[100:]) == 0


def test_a_picture_without_a_face_is_named(detect: TiledFaceDetector) -> None:
    batch = torch.stack([tensor(astronaut())[:300, :451], tensor(data.chelsea() / 255)])
    with pytest.raises(
        NestedAttentionError,
        match=r"picture 2 of 2 \(451 × 300 pixels\): no face was found.*min_score.*Isolate Subject",
    ):
        align_faces(batch, detect)
    with pytest.raises(
        NestedAttentionError, match="picture 1 of 1: face 2 was asked for, and 1 found.*1 … 1"
    ):
        align_faces(batch[:1], detect, which="by index", index=2)
    with pytest.raises(NestedAttentionError, match="'tallest'; expected one of largest, leftmost"):
        align_faces(batch[:1], detect, which="tallest")  # type: ignore[arg-type]
    with pytest.raises(NestedAttentionError, match="size of a crop is 0; expected 64 to 2048"):
        align_faces(batch[:1], detect, size=0)


def test_the_score_asked_for_counts(detect: TiledFaceDetector) -> None:
    picture = tensor(astronaut())
    score = detect(picture)[0].score
    assert TiledFaceDetector(detect.network, score + 0.01)(picture) == []
    assert len(TiledFaceDetector(detect.network, 0.3)(picture)) > 1


def test_found_faces_are_drawn_and_numbered(detect: TiledFaceDetector) -> None:
    two = np.concatenate([astronaut(), np.pad(quarter(), ((384, 0), (0, 0), (0, 0)))], axis=1)
    pictures = tensor(two)[None]
    faces = align_faces(pictures, detect, size=64)
    assert len(faces.found[0]) == 2
    drawn = draw_faces(pictures, faces)
    assert drawn.shape == pictures.shape
    changed = (drawn - pictures).abs().amax(-1)[0] > 0.01
    for face, colour in zip(faces.found[0], (TAKEN, OTHER), strict=True):
        for place in (face.left_eye, face.right_eye, face.mouth):
            seen = drawn[0, int(place.imag), int(place.real)] * 255
            assert tuple(seen.round().int().tolist()) == colour
    assert 0.001 < float(changed.float().mean()) < 0.1


def test_anchors_and_outputs_are_those_of_the_original() -> None:
    """896 anchors: 2 in each of 16 × 16 cells, then 6 in each of 8 × 8, row by row."""
    anchors = anchor_centres()
    assert anchors.shape == (896, 2)
    assert anchors[:4].tolist() == [[4, 4], [4, 4], [12, 4], [12, 4]]
    assert anchors[512:519].tolist() == [[8, 8]] * 6 + [[24, 8]]
    logits, values = load_blazeface(WEIGHTS)(torch.zeros(2, 3, SIDE, SIDE))
    assert logits.shape == (2, 896)
    assert values.shape == (2, 896, 16)


def test_the_network_reproduces_what_the_original_gave() -> None:
    logits, values = load_blazeface(WEIGHTS)(disc_with_spots())
    best = int(logits[0].argmax())
    assert best == ORIGINAL["anchor"]
    assert float(logits[0, best]) == pytest.approx(ORIGINAL["logit"], abs=2e-3)
    assert values[0, best].tolist() == pytest.approx(ORIGINAL["values"], abs=2e-2)


def test_the_card_describes_these_weights() -> None:
    card = WEIGHTS.with_name("README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    tensors = read_tensors(WEIGHTS)
    assert tensors.metadata["license"] == "Apache-2.0"
    assert tensors.metadata["source_sha256"] in card
    assert {str(tensor.dtype) for tensor in tensors.tensors.values()} == {"torch.float16"}


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other.safetensors", {"stem.weight": torch.zeros(3)}, {})
    with pytest.raises(
        NestedAttentionError, match=r"other.safetensors does not hold.*Install the pack again"
    ):
        load_blazeface(tmp_path / "other.safetensors")
    with pytest.raises(NestedAttentionError, match="there is no file"):
        load_blazeface(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("shape", [(16, 16), (128, 128), (512, 300), (40, 1000), (1000, 129)])
def test_tiles_cover_every_pixel_and_say_where_they_lie(shape: tuple[int, int]) -> None:
    height, width = shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    picture = torch.stack([x / width, y / height, torch.ones_like(x)], dim=-1)
    for side in tile_sides(picture):
        tiles, origins = cut_tiles(picture, side)
        assert tiles.shape == (len(origins), 3, SIDE, SIDE)
        seen = torch.zeros(height, width, dtype=torch.bool)
        for tile, origin in zip(tiles, origins, strict=True):
            left, top = max(0, math.floor(origin.real)), max(0, math.floor(origin.imag))
            seen[top : math.ceil(origin.imag + side), left : math.ceil(origin.real + side)] = True
            inside = tile[2] > 0.999
            rows, columns = inside.nonzero().unbind(1)
            place_x = origin.real + (columns + 0.5) * side / SIDE
            place_y = origin.imag + (rows + 0.5) * side / SIDE
            scale = 1.5 * max(side / SIDE, 1)  # a pixel of the tile, or of the picture where that is larger
            assert float((tile[0][inside] * width - place_x).abs().max()) < scale
            assert float((tile[1][inside] * height - place_y).abs().max()) < scale
        assert bool(seen.all())


def disc_with_spots() -> Tensor:
    """A picture that anybody can make again: a bright disc with two dark spots on a gradient."""
    y, x = torch.meshgrid(torch.arange(SIDE) / SIDE, torch.arange(SIDE) / SIDE, indexing="ij")
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09).float()
    spots = ((x - 0.4) ** 2 + (y - 0.42) ** 2 < 0.0016).float()
    spots += ((x - 0.6) ** 2 + (y - 0.42) ** 2 < 0.0016).float()
    grey = 0.25 + 0.25 * x + 0.4 * disc - 0.6 * spots
    return torch.stack([grey, grey * 0.9, grey * 0.8])[None].clamp(0, 1)
