"""The drawn world: deterministic, identities beyond words, faces that can be read, captions that say what
they should."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_world import from_cells

from nested_attention.avatars.drawing.canvas import SIZE, WIDE, Part
from nested_attention.avatars.drawing.identity import (
    KINDS,
    Person,
    Pet,
    bits,
    half_of,
    levels,
    near_twins,
    sample,
    split_of,
)
from nested_attention.avatars.drawing.picture import (
    CROP,
    STYLES,
    Figure,
    Picture,
    crop,
    crop_window,
    enlarge,
    render,
)
from nested_attention.avatars.drawing.pose import EXPRESSIONS, PLACEMENTS, Pose, poses, window
from nested_attention.avatars.drawing.prompts import caption, combination_split, prompt, sample_picture
from nested_attention.avatars.drawing.references import held_out, reference_crop, reference_picture
from nested_attention.avatars.drawing.scenes import SCENES
from nested_attention.avatars.drawing.shown import Shown, windows
from nested_attention.avatars.drawing.wardrobe import ACCESSORIES, CLOTHES
from nested_attention.avatars.models.cells import to_cells

BOTH = [Person, Pet]
seeds = st.integers(0, 2**31 - 1)
HEAD = (Part.HAIR, Part.FACE, Part.EYES, Part.MOUTH, Part.EARS)


def portrait(identity, style="cartoon", scene="room", pose=None):
    """Alone in the middle; a cartoon has flat colours."""
    figure = Figure(identity, "middle", pose or Pose(16, 8, 0, "calm"))
    return render(Picture((figure,), scene, style, 0))


@pytest.mark.parametrize("kind", BOTH)
def test_identities_are_beyond_words(kind):
    assert bits(kind) >= 40
    named = np.prod([len(values) for values in kind.NAMED.values()])
    assert np.log2(named) < 6
    assert set(kind.LEVELS) == set(levels(kind)) and list(kind.LEVELS) == list(levels(kind))
    assert set().union(*kind.GROUPS.values()) <= set(levels(kind))


@pytest.mark.parametrize("kind", BOTH)
@settings(max_examples=12, deadline=None)
@given(seed=seeds)
def test_near_twins_share_their_words_and_differ_visibly(kind, seed):
    """In one group of traits; two drawn alike (a mole at one place from two seeds) are few."""
    rng = np.random.default_rng(seed)
    one = sample(kind, rng)
    drawn, twins = portrait(one, "photo").rgb, near_twins(one, rng, 20)
    assert len(set(twins)) == 20 and one not in twins
    same = 0
    for twin in twins:
        differ = {name for name in levels(kind) if getattr(one, name) != getattr(twin, name)}
        # Canonical forms reset what a trait hides, so that a group may carry another trait along.
        assert any(differ & set(group) for group in kind.GROUPS.values())
        assert twin.description() == one.description() and twin.nouns == one.nouns
        assert twin.canonical() == twin
        same += np.array_equal(portrait(twin, "photo").rgb, drawn)
    assert same <= 3


def test_near_twins_of_one_group_differ_in_it_alone():
    rng = np.random.default_rng(0)
    for _ in range(5):
        one = sample(Person, rng)
        for twin in near_twins(one, rng, 10, ["marks"]):
            assert twin == replace(one, mark=twin.mark, places=twin.places)


@pytest.mark.parametrize("kind", BOTH)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_canonical_forms_are_drawn_alike(kind, seed):
    rng = np.random.default_rng(seed)
    raw = kind(**{name: int(rng.integers(number)) for name, number in levels(kind).items()})
    one = raw.canonical()
    assert one.canonical() == one
    for style in STYLES:
        assert np.array_equal(portrait(one, style).rgb, portrait(raw, style).rgb)


@pytest.mark.parametrize("kind", BOTH)
def test_every_trait_can_be_seen(kind):
    """Changing a trait changes the drawing of at least some identities, or the bits would lie."""
    rng = np.random.default_rng(3)
    unseen = set(levels(kind))
    for _ in range(150):
        one = sample(kind, rng)
        drawn = portrait(one, "photo").rgb
        for name in sorted(unseen):
            other = replace(one, **{name: (getattr(one, name) + 1) % kind.LEVELS[name]}).canonical()
            if other != one and not np.array_equal(portrait(other, "photo").rgb, drawn):
                unseen.discard(name)
        if not unseen:
            break
    assert not unseen


@pytest.mark.parametrize("kind", BOTH)
@settings(max_examples=12, deadline=None)
@given(seed=seeds)
def test_every_expression_moves_mouth_and_eyes(kind, seed):
    """Any two expressions differ in the mouth, and in the eyes or the brows."""
    one = sample(kind, np.random.default_rng(seed))
    if kind is Person:
        one = replace(one, glasses=0).canonical()  # frames may cover brows
    drawn = {name: portrait(one, pose=Pose(16, 8, 0, name)) for name in EXPRESSIONS}
    for a, b in combinations(EXPRESSIONS, 2):
        change = (drawn[a].rgb != drawn[b].rgb).any(-1)
        mouth = (drawn[a].part == Part.MOUTH) | (drawn[b].part == Part.MOUTH)
        assert (change & mouth).sum() >= 2, (a, b)
        assert (change & ~mouth)[:19].sum() >= 2, (a, b)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_pictures_are_deterministic_and_labelled(seed):
    def draw():
        rng = np.random.default_rng(seed)
        kinds = [(Person,), (Pet,), (Person, Pet), (Person, Person)][seed % 4]
        picture = sample_picture(rng, tuple(sample(kind, rng) for kind in kinds))
        return picture, render(picture)

    (picture, one), (_, two) = draw(), draw()
    assert np.array_equal(one.rgb, two.rgb)
    width = SIZE if len(picture.figures) == 1 else WIDE
    assert one.rgb.shape == (SIZE, width, 3) and one.rgb.dtype == np.uint8
    assert one.part.shape == one.subject.shape == (SIZE, width)
    assert set(np.unique(one.subject)) == set(range(len(picture.figures) + 1))
    assert ((one.part == Part.BACKGROUND) == (one.subject == 0)).all()
    assert {Part.FACE, Part.MOUTH} <= set(np.unique(one.part))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("together", [False, True])
def test_no_head_leaves_the_canvas(kind, together):
    """At any pose that a prompt allows, eyes and mouth are on the picture as they are in the middle, and of
    the face at most the tips of whiskers are not."""
    rng = np.random.default_rng(5)
    inside = (Part.FACE, Part.EYES, Part.MOUTH)
    placements = ("left", "right") if together else PLACEMENTS
    for _ in range(6):
        one = sample(kind, rng)
        for placement in placements:
            for pose in poses(placement, together=together)[:: len(EXPRESSIONS) * 3]:
                pose = replace(pose, expression="calm", gaze=0)
                figures = [Figure(one, placement, pose)]
                if together:
                    other = {"left": "right", "right": "left"}[placement]
                    beside = Pose(36 if other == "right" else 12, 8, 0, "calm")
                    figures.insert(0, Figure(sample(Pet, rng), other, beside))
                drawn = render(Picture(tuple(figures), "room", "cartoon", 0))
                mine = drawn.subject == len(figures)
                full = portrait(one, pose=replace(pose, x=16))
                for part in inside:
                    missing = (full.part == part).sum() - (mine & (drawn.part == part)).sum()
                    assert 0 <= missing <= (2 if part == Part.FACE else 0)


@pytest.mark.parametrize("kind", BOTH)
def test_drawings_move_with_their_pose(kind):
    """A figure one column or row further is the same figure: hair and fur belong to it, not to a place."""
    rng = np.random.default_rng(8)
    for _ in range(12):
        one = sample(kind, rng)
        at = portrait(one, "photo", pose=Pose(15, 8, 0, "calm"))
        for x, y in ((16, 8), (15, 9), (17, 9)):
            moved = portrait(one, "photo", pose=Pose(x, y, 0, "calm"))
            there = np.isin(moved.part, HEAD)[y - 8 : 28, 2:30]
            right, down = x - 15, y - 8
            here = at.rgb[: 28 - down, 2 - right : 30 - right]
            assert np.array_equal(moved.rgb[down:28, 2:30][there], here[there])


@pytest.mark.parametrize("kind", BOTH)
def test_a_head_fills_most_of_a_portrait(kind):
    """Faces are to be read: 14 rows, 12 columns, and eyes and a mouth of several pixels."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        drawn = portrait(sample(kind, rng))
        head = np.isin(drawn.part, HEAD).nonzero()
        assert np.ptp(head[0]) + 1 >= 14 and np.ptp(head[1]) + 1 >= 12
        assert (drawn.part == Part.EYES).sum() >= 12 and (drawn.part == Part.MOUTH).sum() >= 4


@pytest.mark.parametrize("kind", BOTH)
def test_a_crop_holds_the_whole_head(kind):
    rng = np.random.default_rng(4)
    for _ in range(20):
        pose = Pose(16, 8, 0, "calm")
        drawn = portrait(sample(kind, rng), pose=pose)
        x, y = crop_window(pose)
        outside = np.ones((SIZE, SIZE), bool)
        outside[y : y + CROP, x : x + CROP] = False
        for part in (Part.FACE, Part.EYES, Part.MOUTH, Part.EARS):
            assert not (outside & (drawn.part == part)).any()


def test_the_world_is_as_wide_as_it_says():
    assert len(SCENES) >= 6 and len(STYLES) >= 2 and len(EXPRESSIONS) == 6
    assert len(ACCESSORIES) + len(CLOTHES) >= 8 and len(PLACEMENTS) >= 3


@pytest.mark.parametrize("kind", BOTH)
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
        portrait(person, style).rgb.reshape(-1, 3).astype(float) for style in ("photo", "cartoon", "mosaic")
    )
    for other in (cartoon, mosaic):
        basis = np.concatenate([photo, np.ones((len(photo), 1))], axis=1)
        residual = other - basis @ np.linalg.lstsq(basis, other, rcond=None)[0]
        assert np.abs(residual).mean() > 5


@pytest.mark.parametrize("kind", BOTH)
def test_the_splits_are_a_function_of_the_identity(kind):
    rng = np.random.default_rng(0)
    drawn = [sample(kind, rng) for _ in range(2000)]
    held = [identity for identity in drawn if split_of(identity) == "heldout"]
    assert 0.07 < len(held) / len(drawn) < 0.13
    assert 0.35 < np.mean([half_of(identity) == "sealed" for identity in held]) < 0.65
    assert all(split_of(sample(kind, rng, "train")) == "train" for _ in range(30))
    assert all(split_of(sample(kind, rng, "heldout")) == "heldout" for _ in range(30))
    for half in ("development", "sealed"):
        assert {half_of(sample(kind, rng, half)) for _ in range(20)} == {half}
    with pytest.raises(ValueError, match="an identity of training"):
        half_of(sample(kind, rng, "train"))
    assert {half_of(held_out(kind.WORD, seed)) for seed in range(20)} == {"development"}


def test_training_and_evaluation_combinations_do_not_meet():
    rng = np.random.default_rng(0)
    person = sample(Person, rng)
    for split in ("train", "heldout"):
        assert all(combination_split(sample_picture(rng, (person,), split)) == split for _ in range(30))


@settings(max_examples=60, deadline=None)
@given(seed=seeds, kind=st.sampled_from(BOTH))
def test_prompts_never_name_what_identity_fixes(seed, kind):
    rng = np.random.default_rng(seed)
    identity = sample(kind, rng)
    text = prompt(sample_picture(rng, (identity,), None), rng)
    assert re.search(rf"\b{kind.WORD}\b", text)
    for noun in set(kind.NOUNS) - {kind.WORD}:
        assert not re.search(rf"\b{noun}\b", text)
    for phrase in identity.description():
        assert phrase not in text
    for word in ("skin", "haired", "eyes", "spectacled", "fur", "ears", "nose", "male", "female", "young"):
        assert not re.search(rf"\b{word}\b", text)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, kind=st.sampled_from(BOTH))
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
        drawn = render(Picture((Figure(person, "left", Pose(11, 8, 0, "calm")),), name, "photo", 4))
        assert len(np.unique(drawn.rgb[:, 22:].reshape(-1, 3), axis=0)) >= 3


@pytest.mark.parametrize("kinds", [(Person,), (Pet, Person)])
def test_a_subject_is_looked_for_where_its_prompt_puts_it(kinds):
    rng = np.random.default_rng(2)
    for _ in range(10):
        picture = sample_picture(rng, tuple(sample(kind, rng) for kind in kinds))
        drawn = render(picture)
        for number, figure in enumerate(picture.figures):
            shown = Shown.of(picture, number)
            assert (figure.pose.x, figure.pose.y) in shown.places
            assert shown.corner == window(figure.placement, together=len(kinds) > 1)
            assert shown.together == (len(kinds) > 1) and shown.style == picture.style
            (seen,) = windows(drawn.subject[None, ..., None].repeat(3, -1), [shown])
            assert (seen == number + 1).mean() > 0.3


@settings(max_examples=10, deadline=None)
@given(seed=seeds, wide=st.booleans())
def test_latents_hold_every_pixel(seed, wide):
    pixels = torch.rand(2, 3, 32, 48 if wide else 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latents = to_cells(pixels)
    assert latents.shape == (2, 12, 16, 24 if wide else 16)
    torch.testing.assert_close(from_cells(latents), pixels, atol=1e-5, rtol=1e-5)
    art = torch.from_numpy(portrait(sample(Person, np.random.default_rng(seed % 99)), "photo").rgb)
    there = art.permute(2, 0, 1)[None].float().div(127.5).sub(1)
    assert torch.equal(from_cells(to_cells(there)).add(1).mul(127.5).round(), there.add(1).mul(127.5).round())


def test_kinds_are_named_by_their_word():
    assert {kind.WORD: kind for kind in BOTH} == KINDS
