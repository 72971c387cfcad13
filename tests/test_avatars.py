"""The drawn world: deterministic, every attribute visible, captions and prompts that say what they should."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_attention.avatars.drawing import identity as identities
from nested_attention.avatars.drawing.canvas import SIZE, Part
from nested_attention.avatars.drawing.identity import Person, Pet, near_twins, sample, split_of
from nested_attention.avatars.drawing.picture import CROP, STYLES, Figure, Picture, crop, enlarge, render
from nested_attention.avatars.drawing.pose import EXPRESSIONS, PLACEMENTS, Pose
from nested_attention.avatars.drawing.prompts import caption, combination_split, prompt, sample_picture
from nested_attention.avatars.drawing.references import reference_crop, reference_picture
from nested_attention.avatars.drawing.scenes import SCENES
from nested_attention.avatars.drawing.wardrobe import ACCESSORIES, CLOTHES

KINDS = [Person, Pet]
seeds = st.integers(0, 2**31 - 1)


def _portrait(identity, style="photo"):
    figure = Figure(identity, "middle", Pose(16, 10, 0, "calm"))
    return render(Picture((figure,), "beach", style, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough_identities(kind):
    assert identities.count(kind) >= 100_000


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_every_attribute_can_be_seen(kind, seed):
    """Identities that differ in one attribute are drawn differently, or the count of identities would lie."""
    rng = np.random.default_rng(seed)
    one = sample(kind, rng)
    drawn = _portrait(one).rgb
    for twin in near_twins(one, rng, 100):
        assert twin != one
        assert not np.array_equal(_portrait(twin).rgb, drawn), (one, twin)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_pictures_are_deterministic_and_labelled(seed):
    def draw():
        rng = np.random.default_rng(seed)
        kinds = [(Person,), (Pet,), (Person, Pet)][seed % 3]
        picture = sample_picture(rng, tuple(sample(kind, rng) for kind in kinds))
        return picture, render(picture)

    (picture, one), (_, two) = draw(), draw()
    assert np.array_equal(one.rgb, two.rgb)
    assert one.rgb.shape == (SIZE, SIZE, 3) and one.rgb.dtype == np.uint8
    assert set(np.unique(one.subject)) == set(range(len(picture.figures) + 1))
    assert ((one.part == Part.BACKGROUND) == (one.subject == 0)).all()
    assert {Part.FACE, Part.EYES} <= set(np.unique(one.part))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_spans_six_latent_cells(kind):
    """A close-up must give the finest attention something to attend to: 6 cells are 12 art pixels."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        head = (_portrait(sample(kind, rng)).part >= Part.HAIR).nonzero()
        assert np.ptp(head[0]) + 1 >= 12 and np.ptp(head[1]) + 1 >= 12


def test_the_world_is_as_wide_as_it_says():
    assert len(SCENES) >= 6 and len(STYLES) >= 2
    assert len(ACCESSORIES) + len(CLOTHES) + len(EXPRESSIONS) >= 8 and len(PLACEMENTS) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_shows_another_picture_than_the_target(kind):
    """Pose, expression, scene and clothing are drawn anew, so that copying does not pay."""
    rng = np.random.default_rng(0)
    same = []
    for _ in range(200):
        identity = sample(kind, rng, "train")
        target, reference = (sample_picture(rng, (identity,), split=None) for _ in range(2))
        (a,), (b,) = target.figures, reference.figures
        shown = [(f.pose, f.clothes, f.accessory, p.scene) for f, p in ((a, target), (b, reference))]
        same.append(shown[0] == shown[1])
    assert np.mean(same) <= 0.01


def test_styles_are_drawn_differently_not_tinted():
    """No linear map of colours turns one style into another."""
    person = sample(Person, np.random.default_rng(0))
    photo, cartoon, mosaic = (
        _portrait(person, style).rgb.reshape(-1, 3).astype(float) for style in ("photo", "cartoon", "mosaic")
    )
    for other in (cartoon, mosaic):
        basis = np.concatenate([photo, np.ones((len(photo), 1))], axis=1)
        residual = other - basis @ np.linalg.lstsq(basis, other, rcond=None)[0]
        assert np.abs(residual).mean() > 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_split_is_a_function_of_the_identity(kind):
    rng = np.random.default_rng(0)
    drawn = [sample(kind, rng) for _ in range(2000)]
    share = np.mean([split_of(identity) == "heldout" for identity in drawn])
    assert 0.07 < share < 0.13
    assert all(split_of(sample(kind, rng, "train")) == "train" for _ in range(50))
    assert all(split_of(sample(kind, rng, "heldout")) == "heldout" for _ in range(50))


def test_training_and_evaluation_combinations_do_not_meet():
    rng = np.random.default_rng(0)
    person = sample(Person, rng)
    for split in ("train", "heldout"):
        assert all(combination_split(sample_picture(rng, (person,), split)) == split for _ in range(30))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, kind=st.sampled_from(KINDS))
def test_prompts_never_name_what_identity_fixes(seed, kind):
    rng = np.random.default_rng(seed)
    identity = sample(kind, rng)
    text = prompt(sample_picture(rng, (identity,), None), rng)
    assert re.search(rf"\b{kind.WORD}\b", text)
    for noun in set(kind.NOUNS) - {kind.WORD}:
        assert not re.search(rf"\b{noun}\b", text)
    for word in ("skin", "hair", "eyes", "glasses", "face", "fur", "ears", "nose", "male", "female", "young"):
        assert not re.search(rf"\b{word}\b", text)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, kind=st.sampled_from(KINDS))
def test_described_captions_fix_the_identity_before_the_word(seed, kind):
    rng = np.random.default_rng(seed)
    identity = sample(kind, rng)
    text = caption(sample_picture(rng, (identity,), None), rng, described=True)
    nouns = [m.start() for noun in kind.NOUNS for m in re.finditer(rf"\b{noun}\b", text)]
    assert len(nouns) == 1
    for phrase in identity.description():
        assert 0 <= text.find(phrase) < nouns[0]


def test_captions_have_at_least_three_phrasings():
    rng = np.random.default_rng(0)
    picture = sample_picture(rng, (sample(Pet, rng),), None)
    assert len({prompt(picture, rng) for _ in range(60)}) >= 3


def test_crops_repeat_the_border_and_enlarge_exactly():
    rgb = np.arange(SIZE * SIZE * 3, dtype=np.uint32).reshape(SIZE, SIZE, 3)
    cut = crop(rgb, (-3, 20))
    assert cut.shape == (CROP, CROP, 3)
    assert np.array_equal(cut[0, 0], rgb[20, 0]) and np.array_equal(cut[-1, 3], rgb[-1, 0])
    assert np.array_equal(enlarge(cut, 4)[::4, ::4], cut)


def test_references_are_the_same_subject_wherever_they_are_asked_for():
    pet = sample(Pet, np.random.default_rng(5), "heldout")
    assert np.array_equal(reference_picture(pet), enlarge(reference_crop(pet)))


def test_scenes_cover_the_canvas():
    for name, (phrase, _) in SCENES.items():
        assert phrase
        person = sample(Person, np.random.default_rng(1))
        drawn = render(Picture((Figure(person, "left", Pose(8, 8, 0, "calm")),), name, "photo", 4))
        assert len(np.unique(drawn.rgb[:, 20:].reshape(-1, 3), axis=0)) >= 3
