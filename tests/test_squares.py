"""Geometry of crops, and the choice of a face, without any detector."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.align import align_faces
from nested_attention.pictures.faces import Face, choose, distinct, ffhq_square
from nested_attention.pictures.square import Padding, Square, cut

Move = tuple[complex, complex]
"""A similarity: place → first · place + second."""


def face(centre: complex = 100 + 100j, size: float = 40.0, turn: complex = 1, score: float = 0.9) -> Face:
    """An upright face, turned about its middle."""

    def at(x: float, y: float) -> complex:
        return centre + turn * complex(x, y) * size

    return Face(centre, size, size, at(-0.2, -0.2), at(0.2, -0.2), at(0, 0.25), score)


def moved(one: Face, move: Move) -> Face:
    def at(place: complex) -> complex:
        return move[0] * place + move[1]

    scale = abs(move[0])
    return Face(
        at(one.centre),
        one.width * scale,
        one.height * scale,
        at(one.left_eye),
        at(one.right_eye),
        at(one.mouth),
        one.score,
    )


def scene(x: Tensor, y: Tensor) -> Tensor:
    """A smooth picture known at every place, so that it can be drawn in any position without resampling."""
    waves = [
        torch.sin(0.11 * x + 0.05 * y + 1),
        torch.sin(0.07 * y - 0.09 * x),
        torch.cos(0.13 * y + 0.02 * x),
    ]
    return torch.stack(waves, dim=-1) * 0.5 + 0.5


def draw(height: int, width: int, move: Move = (1, 0)) -> Tensor:
    """The scene as it looks after the move."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    places = (torch.complex(x, y) - move[1]) / move[0]
    return scene(places.real, places.imag)


complexes = st.builds(complex, st.floats(-1, 1), st.floats(-1, 1))
moves = st.builds(
    lambda scale, degrees, shift: (cmath.rect(scale, math.radians(degrees)), 128 + 128j + 20 * shift),
    st.floats(0.8, 2.0),
    st.floats(-180, 180),
    complexes,
)


@settings(max_examples=40, deadline=None)
@given(moves, complexes, st.floats(0.05, 0.6), st.floats(-40, 40))
def test_a_crop_follows_its_face_wherever_the_picture_is_turned_moved_or_scaled(
    move: Move, lean: complex, low: float, degrees: float
) -> None:
    """cut(T·picture, T·square) = cut(picture, square), for any face and similarity T."""
    turn = cmath.rect(1, math.radians(degrees))
    before = Face(0j, 30, 30, -6 * turn, 6 * turn, (8 + 4 * low) * 1j * turn + lean, 0.9)
    after = moved(before, move)
    # The square moves with the face.
    ours, theirs = ffhq_square(before), ffhq_square(after)
    assert theirs.centre == pytest.approx(move[0] * ours.centre + move[1], abs=1e-6)
    assert theirs.right == pytest.approx(move[0] * ours.right, abs=1e-6)
    # And so do its contents: compared with the scene itself, evaluated at the crop's places.
    along = (torch.arange(24) + 0.5) / 12 - 1
    v, u = torch.meshgrid(along, along, indexing="ij")
    places = torch.complex(u, v) * ours.right + ours.centre
    expected = scene(places.real, places.imag)
    crop = cut(draw(256, 256, move), theirs, 24)
    assert float((crop - expected).abs().max()) < 0.03


@given(complexes, st.floats(1, 30), st.floats(-180, 180), complexes)
def test_places_go_into_a_square_and_back(
    middle: complex, half: float, degrees: float, inside: complex
) -> None:
    square = Square(100 * middle, cmath.rect(half, math.radians(degrees)))
    assert square.inside(square.place(inside)) == pytest.approx(inside, abs=1e-9)
    assert square.side == pytest.approx(2 * half)
    upper_left, upper_right, _, lower_left = square.corners
    # Seen upright, the corners go clockwise: never a mirror image.
    assert (lower_left - upper_left) / (upper_right - upper_left) == pytest.approx(1j)


def test_ffhq_by_its_own_numbers() -> None:
    """FFHQ's rule worked out by hand for an upright and for a slanted face."""
    upright = ffhq_square(Face(0j, 1, 1, 40 + 50j, 60 + 50j, 50 + 70j, 1))
    assert upright.right == pytest.approx(40)  # max(2 · 20, 1.8 · 20)
    assert upright.centre == pytest.approx(50 + 52j)
    long = ffhq_square(Face(0j, 1, 1, 40 + 50j, 60 + 50j, 50 + 90j, 1))
    assert long.right == pytest.approx(72)  # 1.8 · 40
    # Eyes level, mouth askew by 10 in 30: the axis is (20, 0) + (30, −10).
    askew = ffhq_square(Face(0j, 1, 1, 40 + 50j, 60 + 50j, 60 + 80j, 1))
    assert cmath.phase(askew.right) == pytest.approx(math.atan2(-10, 50))
    with pytest.raises(NestedAttentionError, match="a face at 5, 6 has its eyes and mouth in one place"):
        ffhq_square(Face(5 + 6j, 1, 1, 1j, 1j, 1j, 1))


def test_shrinking_takes_the_mean_of_what_a_pixel_covers() -> None:
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    whole = Square(32 + 32j, 32 + 0j)
    for size in (8, 16, 32):
        expected = picture.reshape(size, 64 // size, size, 64 // size, 3).mean((1, 3))
        torch.testing.assert_close(cut(picture, whole, size), expected)
    assert torch.equal(cut(picture, whole, 64), picture)
    # A pattern finer than the crop's pixels becomes grey at any angle and position, instead of stripes.
    stripes = (torch.arange(256) % 2).float()[None, :, None].expand(256, 256, 1)
    for degrees, size in ((0, 47), (17, 40), (45, 31)):
        crop = cut(stripes, Square(128 + 128j, cmath.rect(60, math.radians(degrees))), size)
        assert float((crop - 0.5).abs().max()) < 0.2, (degrees, size)


def test_enlarging_stays_within_the_pictures_values() -> None:
    step = torch.zeros(16, 16, 1)
    step[:, 8:] = 1
    crop = cut(step, Square(8 + 8j, 4 + 0j), 200)
    assert (float(crop.min()), float(crop.max())) == (0.0, 1.0)
    assert 0.4 < float(crop[100, 99:101].mean()) < 0.6


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("edge", lambda picture: picture[:, :1].expand(-1, 8, -1)),
        ("reflect", lambda picture: picture[:, :8].flip(1)),
        (1.0, lambda picture: torch.ones(16, 8, 3)),
        (0.25, lambda picture: torch.full((16, 8, 3), 0.25)),
    ],
)
def test_what_lies_beyond_the_border(padding: Padding, expected: Callable[[Tensor], Tensor]) -> None:
    picture = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
    crop = cut(picture, Square(0 + 8j, 8 + 0j), 16, padding)
    torch.testing.assert_close(crop[:, 8:], picture[:, :8])
    torch.testing.assert_close(crop[:, :8], expected(picture))


@pytest.mark.parametrize("padding", ["edge", "reflect", 0.5])
def test_only_what_is_needed_is_resampled_and_nothing_changes_by_it(padding: Padding) -> None:
    """A small square in a large picture, beside it, and around it."""
    large = draw(300, 400)
    for centre, right in (
        (200 + 150j, 20 + 5j),
        (395 + 3j, 20 + 5j),
        (900 + 900j, 20j),
        (200 + 150j, 500 + 0j),
    ):
        crop = cut(large, Square(centre, right), 32, padding)
        assert crop.shape == (32, 32, 3)
        assert bool(torch.isfinite(crop).all())
        assert float(crop.min()) >= 0 and float(crop.max()) <= 1
    inside = cut(large, Square(200 + 150j, 20 + 5j), 32, padding)
    torch.testing.assert_close(inside, cut(large, Square(200 + 150j, 20 + 5j), 32, "edge"))


def test_of_overlapping_findings_the_best_stays() -> None:
    best, again = face(score=0.95), face(103 + 98j, 44, score=0.9)
    inside, elsewhere = face(95 + 95j, 15, score=0.85), face(180 + 100j, 60, score=0.8)
    assert distinct([again, inside, elsewhere, best]) == [elsewhere, best]
    assert distinct([again, inside, elsewhere, best], 0.3, of="union") == [elsewhere, best, inside]
    assert distinct([]) == []


def test_choosing() -> None:
    large, left, right, middle = (
        face(60 + 20j, 30),
        face(10 + 90j, 20),
        face(90 + 50j, 18),
        face(52 + 52j, 10),
    )
    faces = distinct([middle, right, left, large])
    assert faces == [large, left, right, middle]
    expected = {"largest": large, "leftmost": left, "rightmost": right, "most central": middle}
    for which, one in expected.items():
        assert choose(faces, which, 9, 100, 100) == [one]  # type: ignore[arg-type]
    assert [choose(faces, "by index", i, 100, 100)[0] for i in (1, 2, 3, 4)] == faces
    assert choose(faces, "all", 9, 100, 100) == faces
    for index in (0, 5, -1):
        with pytest.raises(NestedAttentionError, match=f"face {index} was asked for, and 4 found"):
            choose(faces, "by index", index, 100, 100)


def test_a_batch_gives_a_crop_of_each_picture_in_order() -> None:
    pictures = torch.stack([torch.full((100, 100, 3), value) for value in (0.2, 0.5, 0.8)])
    faces = {0.2: [face(50 + 50j)], 0.5: [face(40 + 40j), face(80 + 80j, 20)], 0.8: [face(30 + 30j)]}

    def detect(picture: Tensor) -> list[Face]:
        return faces[round(float(picture.mean()), 1)]

    one = align_faces(pictures, detect, size=64)
    assert [round(float(crop.mean()), 1) for crop in one.crops] == [0.2, 0.5, 0.8]
    every = align_faces(pictures, detect, which="all", size=64)
    assert [round(float(crop.mean()), 1) for crop in every.crops] == [0.2, 0.5, 0.5, 0.8]
    assert [len(found) for found in every.found] == [1, 2, 1]
    with pytest.raises(NestedAttentionError, match="picture 1 of 3: face 2 was asked for, and 1 found"):
        align_faces(pictures, detect, which="by index", index=2)
