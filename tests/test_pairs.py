"""The figures of two people in one picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_world import random_judges

from nested_attention.avatars.figures.cases import draw_cases, true_drawings
from nested_attention.avatars.figures.judges import NEAREST, SCORERS, Counts, Judges, generate
from nested_attention.avatars.figures.pairs import SEPARATIONS, Separation, halves, people, place, score_slots
from nested_attention.avatars.models.world import Sampling

QUICK = Sampling(steps=2, batch=16)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return random_judges()


def test_true_drawings_are_right_and_exchanged_ones_swapped(judges: Judges) -> None:
    """A judge must see who stands where, or the figures would say nothing."""
    cases = draw_cases(("person", "person"), 16, seed=6)
    found = score_slots(judges, true_drawings(cases), cases, 2, NEAREST)
    assert found["both"]["rate"] >= 0.85 and found["own"]["rate"] >= 0.95
    assert found["swapped"]["rate"] <= 0.05 and found["swapped"]["trials"] == 32
    assert len(found["hits"]["both"]) == 16 and len(found["hits"]["among_twins"]) == 32
    exchanged = []
    for case in cases:
        a, b = case.picture.figures
        there = replace(a, identity=b.identity), replace(b, identity=a.identity)
        exchanged.append(replace(case, picture=replace(case.picture, figures=there)))
    found = score_slots(judges, true_drawings(exchanged), cases, 2, NEAREST)
    assert found["both"]["rate"] == 0 and found["swapped"]["rate"] >= 0.85 and found["own"]["rate"] <= 0.05


def test_each_person_has_its_occurrence_and_its_half(judges: Judges) -> None:
    cases = draw_cases(("person", "person"), 3, seed=6)
    crops = [np.stack([case.references[slot] for case in cases]) for slot in range(2)]
    subjects = [judges.world.attach(judges.encoders["person"], crop, "person") for crop in crops]
    placed = place(subjects, cases, Separation(masks=True, bounded=True))
    assert [one.occurrence for one in placed] == [0, 1] and all(one.settings.bounded for one in placed)
    assert torch.equal(halves(cases, 0) + halves(cases, 1), torch.ones(3, 2, 2))
    for case, half in zip(cases, halves(cases, 0), strict=True):
        assert case.prompt.split().count("person") == 2
        assert half[0, 0] == (case.picture.figures[0].placement == "left")


def test_every_measure_is_drawn_and_differs(judges: Judges) -> None:
    lines: list[str] = []
    found = people(judges, Counts(pairs=2, twins=2), lines.append, QUICK)
    assert list(found) == [*SEPARATIONS, "floor", "described", "ceiling"] and len(lines) == len(found)
    for row in found.values():
        assert list(row["identity"]) == list(SCORERS)
        for by in row["identity"].values():
            slots = ["first", "second", "both", "own_both", "among_twins", "hits", "swapped", "own"]
            assert list(by) == slots
            assert by["both"]["rate"] <= by["own_both"]["rate"] <= by["own"]["rate"]
            assert by["among_twins"]["trials"] == by["swapped"]["trials"] == 4
        assert row["prompt"]["attributes"]["expression"]["trials"] == 4


def test_measures_change_the_picture_and_repeat(judges: Judges) -> None:
    cases = draw_cases(("person", "person"), 2, seed=7)
    crops = [np.stack([case.references[slot] for case in cases]) for slot in range(2)]
    subjects = [judges.world.attach(judges.encoders["person"], crop, "person") for crop in crops]

    def draw(measure: Separation) -> np.ndarray:
        return generate(judges, cases, place(subjects, cases, measure), QUICK)

    pictures = {name: draw(measure) for name, measure in SEPARATIONS.items()}
    for name, measure in SEPARATIONS.items():
        assert np.array_equal(draw(measure), pictures[name]), name
        assert all(name == n or not np.array_equal(p, pictures[name]) for n, p in pictures.items()), name
    before = judges.world.unet.attn_processors
    assert not any("Region" in type(p).__name__ or "Nested" in type(p).__name__ for p in before.values())
