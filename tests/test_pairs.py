"""The figures of two people in one picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nested_attention.avatars.figures.cases import draw_cases, true_drawings
from nested_attention.avatars.figures.judges import Counts, Judges
from nested_attention.avatars.figures.pages import read
from nested_attention.avatars.figures.pairs import MEASURES, Measure, halves, people, place, score_slots
from nested_attention.avatars.figures.report import figures
from nested_attention.avatars.models.world import Sampling

QUICK = Sampling(steps=4, batch=16)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


def test_true_drawings_are_right_and_exchanged_ones_swapped(judges: Judges) -> None:
    """The judge must see who stands where, or the figures would say nothing."""
    cases = draw_cases(("person", "person"), 40, seed=6)
    found = score_slots(judges, true_drawings(cases), cases, 4)
    assert found["both"]["rate"] >= 0.85 and found["own"]["rate"] >= 0.95
    assert found["swapped"]["rate"] <= 0.05 and found["swapped"]["trials"] == 80
    exchanged = []
    for case in cases:
        a, b = case.picture.figures
        there = replace(a, identity=b.identity), replace(b, identity=a.identity)
        exchanged.append(replace(case, picture=replace(case.picture, figures=there)))
    found = score_slots(judges, true_drawings(exchanged), cases, 4)
    assert found["both"]["rate"] == 0 and found["swapped"]["rate"] >= 0.85 and found["own"]["rate"] <= 0.05


def test_each_person_has_its_occurrence_and_its_half(judges: Judges) -> None:
    cases = draw_cases(("person", "person"), 3, seed=6)
    crops = [np.stack([case.references[slot] for case in cases]) for slot in range(2)]
    subjects = [judges.world.attach(judges.encoders["person"], crop, "person") for crop in crops]
    placed = place(subjects, cases, Measure(masks=True, bounded=True))
    assert [one.occurrence for one in placed] == [0, 1] and all(one.settings.bounded for one in placed)
    assert torch.equal(halves(cases, 0) + halves(cases, 1), torch.ones(3, 2, 2))
    for case, half in zip(cases, halves(cases, 0), strict=True):
        assert case.prompt.split().count("person") == 2
        assert half[0, 0] == (case.picture.figures[0].placement == "left")


def test_every_measure_is_drawn_and_differs(judges: Judges) -> None:
    lines: list[str] = []
    found = people(judges, Counts(pairs=2), lines.append, QUICK)
    assert list(found) == [*MEASURES, "floor", "described", "ceiling"] and len(lines) == len(found)
    for row in found.values():
        slots = ["first", "second", "both", "swapped", "own", "own_both"]
        assert list(row) == [*slots, "among_twins", "attributes"]
        assert row["both"]["rate"] <= row["own_both"]["rate"] <= row["own"]["rate"]
        assert row["among_twins"]["trials"] == row["attributes"]["hair"]["trials"] == 4
    page = figures({**read(), "people": found})
    assert "### Two people in one picture" in page and "| masks, bounded, self-attention |" in page


def test_measures_change_the_picture_and_repeat(judges: Judges) -> None:
    cases = draw_cases(("person", "person"), 2, seed=7)
    crops = [np.stack([case.references[slot] for case in cases]) for slot in range(2)]
    subjects = [judges.world.attach(judges.encoders["person"], crop, "person") for crop in crops]
    prompts, seeds = [c.prompt for c in cases], [c.seed for c in cases]

    def draw(measure: Measure) -> np.ndarray:
        return judges.world.generate(prompts, seeds, place(subjects, cases, measure), QUICK)

    pictures = {name: draw(measure) for name, measure in MEASURES.items()}
    for name, measure in MEASURES.items():
        assert np.array_equal(draw(measure), pictures[name]), name
        assert all(name == n or not np.array_equal(p, pictures[name]) for n, p in pictures.items()), name
    before = judges.world.unet.attn_processors
    assert not any("Region" in type(p).__name__ or "Nested" in type(p).__name__ for p in before.values())
