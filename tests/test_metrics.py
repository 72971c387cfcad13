"""The published formulas, against values that were computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nested_attention.evaluation.metrics import (
    angle,
    copy_paste,
    copy_paste_of_people,
    cosines,
    id_conf,
    id_conf_of_people,
    identity_similarity,
    match,
    mean_descriptor,
    picture_similarity,
)
from nested_attention.evaluation.statistics import clustered_mean


def at(*degrees: float) -> Tensor:
    """Directions in a plane, of various lengths: cosines do not depend on those."""
    return torch.tensor(
        [[n * math.cos(math.radians(d)), n * math.sin(math.radians(d))] for n, d in enumerate(degrees, 1)]
    )


def test_cosines_and_angles_are_those_of_the_plane() -> None:
    assert cosines(at(0, 90), at(60)).flatten().tolist() == pytest.approx([0.5, math.sqrt(3) / 2])
    assert math.degrees(angle(at(10)[0], at(55)[0])) == pytest.approx(45)
    assert angle(at(10)[0], 3 * at(10)[0]) == pytest.approx(0, abs=1e-3)


def test_matching_takes_the_best_sum_not_the_best_pair() -> None:
    """Greedily, face 0 would be person 0's (0.9) and leave 0.1: 1.0 in all. Crosswise it is 0.8 + 0.7."""
    assert match(torch.tensor([[0.9, 0.8], [0.7, 0.1]])) == [1, 0]
    assert match(torch.tensor([[0.2, 0.9]])) == [None, 0]  # one face for two people
    assert match(torch.tensor([[0.2], [0.9], [0.5]])) == [1]  # a stranger or two
    assert match(torch.zeros(0, 2)) == [None, None]


def test_whoever_is_missing_counts_as_nothing() -> None:
    people = at(0, 90)
    assert identity_similarity(at(60, 0), people) == pytest.approx((1 + math.sqrt(3) / 2) / 2)
    assert identity_similarity(at(60), people) == pytest.approx(math.sqrt(3) / 2 / 2)
    assert identity_similarity(torch.zeros(0, 2), people) == 0


@pytest.mark.parametrize(
    ("generated", "truth", "reference", "expected"),
    [
        (40, 0, 40, 1.0),  # the reference, copied
        (0, 0, 40, -1.0),  # the person as in the truth
        (20, 0, 40, 0.0),  # half way
        (30, 0, 40, 0.5),  # (30 − 10) / 40
        (50, 0, 40, 1.0),  # (50 − 10) / 40: beyond the reference
        (90, 0, 40, 1.0),
        (25, 40, 40, 0.0),  # truth and reference are one picture
    ],
)
def test_copy_paste_is_multiid_benchs(
    generated: float, truth: float, reference: float, expected: float
) -> None:
    found = copy_paste(at(generated)[0], at(truth)[0], at(reference)[0])
    assert found == pytest.approx(expected, abs=1e-6)


def test_copy_paste_of_several_people_is_the_mean_of_their_faces() -> None:
    references, truths = at(0, 90), at(20, 110)
    # A copied face, and one as in the truth; in another order, with a stranger between them.
    assert copy_paste_of_people(at(110, 200, 0), truths, references) == pytest.approx(0.0, abs=1e-6)
    assert copy_paste_of_people(at(0), truths, references) == pytest.approx(1.0, abs=1e-6)
    assert copy_paste_of_people(torch.zeros(0, 2), truths, references) is None


def test_copy_paste_compares_each_person_with_their_own_truth() -> None:
    """Also where a face is nearer to the other person's: (50 − 10) / 60 of each."""
    references, truths = at(0, 90), at(60, 30)
    assert copy_paste_of_people(at(10, 80), truths, references) == pytest.approx(2 / 3)


def test_id_conf_is_umos() -> None:
    assert id_conf([0.6, 0.15, 0.3]) == pytest.approx(0.5)  # (0.6 − 0.3) / 0.6
    assert id_conf([0.4, -0.2]) == 1.0  # 1.5, cut off at 1
    assert id_conf([-0.1, -0.2]) == 0.0
    assert id_conf([0.9]) == 0.0 and id_conf([]) == 0.0  # a failure, not left out
    # Two people, each with a face of their own: 1 − cos 90° each; twins cannot be told apart.
    assert id_conf_of_people(at(0, 90), at(0, 90)) == pytest.approx(1.0)
    assert id_conf_of_people(at(30, 30), at(0, 90)) == pytest.approx(0.0, abs=1e-6)
    assert id_conf_of_people(torch.zeros(0, 2), at(0, 90)) == 0.0


def test_pictures_are_compared_with_every_reference() -> None:
    assert picture_similarity(at(0)[0], at(60, 90)) == pytest.approx(0.25)
    middle = mean_descriptor(at(0, 90))  # the longer one does not count more
    assert math.degrees(angle(middle, at(0)[0])) == pytest.approx(45, abs=1e-3)


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_a_mean_lies_in_its_interval_over_subjects(values: list[tuple[float, str]]) -> None:
    """Each subject counts alike, however many pictures it has; of fewer than three there is no interval."""
    found = clustered_mean([value for value, _ in values], [subject for _, subject in values])
    groups = [[v for v, s in values if s == subject] for subject in {subject for _, subject in values}]
    assert found["mean"] == pytest.approx(sum(sum(g) / len(g) for g in groups) / len(groups), abs=1e-9)
    assert (found["pictures"], found["subjects"]) == (len(values), len(groups))
    if len(groups) < 3:
        assert found["low"] is None and found["high"] is None
    else:
        assert found["low"] is not None and found["high"] is not None
        assert found["low"] <= found["mean"] <= found["high"]


def test_many_pictures_of_few_subjects_do_not_make_an_interval_narrow() -> None:
    few = clustered_mean([0.0] * 100 + [1.0] * 200, ["a"] * 100 + ["b"] * 100 + ["c"] * 100)
    many = clustered_mean([0.0] * 100 + [1.0] * 100, [str(n) for n in range(200)])
    half = 4.3027 / 3  # t of two degrees of freedom, times a standard error of 1/3
    assert (few["low"], few["high"]) == pytest.approx((2 / 3 - half, 2 / 3 + half), abs=1e-4)
    assert many["low"] is not None and many["high"] is not None
    assert 0.4 < many["low"] < 0.5 < many["high"] < 0.6
    with pytest.raises(ValueError, match="found 0, 0"):
        clustered_mean([], [])


@pytest.mark.parametrize("pictures", [(4, 4, 4), (16, 2, 2), (30, 10, 5, 5, 2), (4,) * 8])
def test_a_difference_that_is_not_there_is_shown_once_in_twenty(pictures: tuple[int, ...]) -> None:
    """Few subjects, also of many pictures and of few, whose own differences are as large as the noise."""
    rng, trials, wrong = np.random.default_rng(0), 2000, 0
    clusters = [str(subject) for subject, number in enumerate(pictures) for _ in range(number)]
    for _ in range(trials):
        own = rng.normal(size=len(pictures)).repeat(pictures)
        found = clustered_mean((own + rng.normal(size=len(own))).tolist(), clusters)
        assert found["low"] is not None and found["high"] is not None
        wrong += not found["low"] <= 0 <= found["high"]
    assert 0.03 < wrong / trials < 0.065


@pytest.mark.parametrize(
    ("people", "places", "interval"),
    [(20, 2, True), (6, 2, True), (12, 3, True), (4, 2, False), (8, 3, False), (3, 3, False)],
)
def test_groups_that_share_people_are_no_independent_subjects(
    people: int, places: int, interval: bool
) -> None:
    """As an evaluation draws them: everybody beside those who follow, in a circle."""
    rng, trials, right = np.random.default_rng(0), 300, 0
    casts = [[(first + step) % people for step in range(places)] for first in range(people)]
    clusters = [frozenset(str(person) for person in cast) for cast in casts for _ in range(4)]
    for _ in range(trials):
        own = rng.normal(size=people)
        values = np.array([own[cast].mean() for cast in casts]).repeat(4)
        found = clustered_mean((values + rng.normal(scale=0.3, size=len(values))).tolist(), clusters)
        assert (found["low"] is not None and found["high"] is not None) == interval
        if found["low"] is not None and found["high"] is not None:
            right += found["low"] <= 0 <= found["high"]
    assert not interval or right / trials >= 0.93


def test_groups_that_share_nobody_are_subjects_like_any_other() -> None:
    values, names = [0.0, 1.0, 0.25, 2.0], "abcd"
    couples = clustered_mean(values, [frozenset((name, f"{name} 2")) for name in names])
    assert couples == clustered_mean(values, list(names))
    shared = clustered_mean([*values, 0.5], [frozenset(group) for group in ("ab", "cd", "ef", "gh", "fg")])
    assert shared["low"] is not None and shared["subjects"] == 5
    trio = clustered_mean([1.0, 2.0], [frozenset("abc"), frozenset("cab")])
    assert (trio["mean"], trio["subjects"]) == (1.5, 1), "in whatever order"
