"""What covers a part of a head, and pictures of one subject in a folder."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nested_attention.avatars.drawing.covers import COVERS, cover
from nested_attention.avatars.drawing.identity import KINDS
from nested_attention.avatars.drawing.references import close_up, held_out, sample_crop
from nested_attention.avatars.figures.references import hiding_crop
from nested_attention.avatars.train.folder import write_pictures
from nested_attention.training.prepare.settings import SourceSettings
from nested_attention.training.prepare.sources import samples_of

FACE = slice(8, 24), slice(6, 22)
"""The rows and columns of a face that looks at us, in a crop."""


def hidden(name: str) -> np.ndarray:
    """Where a crop shows the same whatever is below the cover. (28, 28) bool"""
    crops = (np.full((28, 28, 3), grey, np.uint8) for grey in (0, 255))
    dark, light = (cover(crop, name) for crop in crops)
    return (dark == light).all(-1)


def test_covers_hide_another_third_of_a_face_each_and_together_nothing() -> None:
    shares = [hidden(name)[FACE].mean() for name in COVERS]
    assert all(0.2 < share < 0.6 for share in shares)
    for one, other in itertools.combinations(COVERS, 2):
        both = (hidden(one) & hidden(other))[FACE].mean()
        assert both < 0.1  # a row or two at a border
    assert not np.all([hidden(name) for name in COVERS], axis=0).any()
    with pytest.raises(ValueError, match="no cover is called 'a veil'; there are a hat pulled low"):
        cover(np.zeros((28, 28, 3), np.uint8), "a veil")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hiding_reference_is_a_close_up_with_a_cover(kind: str) -> None:
    identity = held_out(kind, 7)
    bare, part = close_up(identity)
    for name in COVERS:
        same = (hiding_crop(identity, name) == bare).all(-1)
        assert same[~hidden(name) & (part > 0)].all()  # elsewhere is another scene


@pytest.mark.parametrize("kind", KINDS)
def test_a_cover_follows_the_face_and_changes_nothing_else(kind: str) -> None:
    identity = held_out(kind, 7)
    plain = [sample_crop(np.random.default_rng(seed), identity) for seed in range(12)]
    again = [sample_crop(np.random.default_rng(seed), identity, covered=0.5) for seed in range(12)]
    changed = [bool((a != b).any()) for a, b in zip(plain, again, strict=True)]
    assert 0 < sum(changed) < 12
    for a, b in zip(plain, again, strict=True):
        differs = (a != b).any(-1)
        moved = [
            np.roll(hidden(name), (down, right), (0, 1))
            for name in COVERS
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
        ]
        assert not differs.any() or any(not (differs & ~where).any() for where in moved)


def test_pictures_of_one_subject_lie_in_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, "pet", 7, pairs=0.5, seed=3)
    samples = samples_of(SourceSettings(path=tmp_path), by_folder=True)
    assert [sample.subject for sample in samples] == [f"pet-{group:05d}" for group in (0, 0, 0, 1, 1, 1, 2)]
    pictures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*/[0-9].png"))]
    assert len({picture.tobytes() for picture in pictures}) == 7
    write_pictures(tmp_path / "again", "pet", 7, pairs=0.5, seed=3, workers=2)
    for path in tmp_path.glob("pet-*/*"):
        assert (tmp_path / "again" / path.parent.name / path.name).read_bytes() == path.read_bytes()


def test_a_picture_of_each_subject_lies_in_the_folder_itself(tmp_path: Path) -> None:
    write_pictures(tmp_path, "person", 3, each=1)
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [f"person-{n:05d}.txt" for n in range(3)]
    assert len({sample.subject for sample in samples_of(SourceSettings(path=tmp_path), by_folder=True)}) == 3
