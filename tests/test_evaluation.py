"""Rates, retrieval, held-out cases, judges, and figures that belong to the shipped weights."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nested_attention.avatars.drawing.identity import split_of
from nested_attention.avatars.drawing.prompts import combination_split
from nested_attention.avatars.figures import acceptance, maps, records, references
from nested_attention.avatars.figures.cases import draw_cases, true_drawings, windows
from nested_attention.avatars.figures.judges import Counts, Judges
from nested_attention.avatars.figures.likeness import twins
from nested_attention.avatars.figures.pages import PAGES, insert, read, read_if_there
from nested_attention.avatars.figures.report import percent
from nested_attention.evaluation.statistics import rate, top1, wilson


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_an_interval_contains_its_rate(trials: int, share: float) -> None:
    successes = round(share * trials)
    found = wilson(successes, trials)
    assert 0 <= found["low"] <= found["rate"] + 1e-12 and found["rate"] <= found["high"] + 1e-12 <= 1 + 1e-9
    assert found["rate"] == successes / trials


def test_wilson_against_a_published_example() -> None:
    """Newcombe (1998), Table I: 81 of 263 gives 0.2553 to 0.3662."""
    found = wilson(81, 263)
    assert found["low"] == pytest.approx(0.2553, abs=1e-4) and found["high"] == pytest.approx(
        0.3662, abs=1e-4
    )


def test_rates_need_trials() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)


def test_a_tie_is_not_a_hit() -> None:
    similarity = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert top1(similarity, torch.tensor([0, 0, 0])).tolist() == [True, False, False]
    assert rate(torch.tensor([True, False]))["rate"] == 0.5


@pytest.mark.parametrize("words", [("person",), ("pet",), ("person", "pet")])
def test_cases_are_held_out_and_repeatable(words: tuple[str, ...]) -> None:
    cases, again = draw_cases(words, 20, seed=1), draw_cases(words, 20, seed=1)
    assert [c.prompt for c in cases] == [c.prompt for c in again]
    shown = [figure.identity for case in cases for figure in case.picture.figures]
    assert len(set(shown)) == len(shown)
    for case in cases:
        assert combination_split(case.picture) == "heldout"
        for word in words:
            assert word in case.prompt
            assert split_of(case.figure(word).identity) == "heldout"
            assert case.reference(word).shape == (20, 20, 3)


def test_twins_differ_from_the_case_in_one_attribute() -> None:
    identities = [case.figure("person").identity for case in draw_cases(("person",), 5, seed=1)]
    for own, candidates in zip(identities, twins(identities, 20, seed=0), strict=True):
        assert candidates[0] == own and len(set(candidates)) == 20
        for twin in candidates[1:]:
            assert sum(getattr(own, name) != getattr(twin, name) for name in own.VALUES) == 1


@pytest.mark.parametrize("word", ["person", "pet"])
def test_judges_know_the_true_drawings(word: str) -> None:
    """The ceiling of every figure: judges that could not tell true drawings apart would measure nothing."""
    from nested_attention.avatars.models.scorers import load_identity_scorer, load_prompt_scorer

    cases = draw_cases((word,), 60, seed=77)
    rgb = true_drawings(cases)
    identities = [case.figure(word).identity for case in cases]
    similarity = load_identity_scorer(word).similarity(windows(rgb, cases, word), identities)
    assert float(top1(similarity, torch.arange(len(cases))).float().mean()) >= 0.95
    correct = load_prompt_scorer().correct(rgb, [case.picture for case in cases])
    assert np.mean([float(ok.float().mean()) for ok in correct.values()]) >= 0.95


def of_weights(hashes: dict[str, str]) -> dict[str, str]:
    """Without the code's hash, which is on record and changes with every comment."""
    return {name: value for name, value in hashes.items() if name != "code"}


def test_the_committed_figures_belong_to_the_shipped_weights() -> None:
    """Stale figures are worse than none: run `make acceptance` after training."""
    stale = "weights changed since `make acceptance` ran: run it again"
    assert of_weights(read()["hashes"]) == of_weights(records.hashes()), stale


def test_the_committed_figures_of_references_belong_to_the_shipped_weights() -> None:
    document = read_if_there(references.RESULTS)
    assert document is not None
    stale = "weights changed since `nested-attention world references` ran: run it again"
    assert of_weights(document["hashes"]) == of_weights(records.hashes()), stale
    for word in ("person", "pet"):
        assert list(document[word]) == [references.CLOSE_UP, *references.SEVERAL]
        assert {kind["identity"]["top1"]["trials"] for kind in document[word].values()} == {100}


def test_references_are_measured(tmp_path: Path) -> None:
    """Two pictures are both in the subject, and another reference draws another picture."""
    judges = Judges.load()
    pets = dataclasses.replace(judges, encoders={"pet": judges.encoders["pet"]})
    document = references.measure(pets, Counts(subjects=2, twins=2))
    results = tmp_path / "references.json"
    records.write(document, results)
    assert set(document["pet"]) == {references.CLOSE_UP, *references.SEVERAL}
    assert json.loads(results.read_text())["hashes"]["code"] and list(tmp_path.iterdir()) == [results]


def test_the_committed_figures_are_of_full_counts() -> None:
    counts = read()["run"]["counts"]
    full = Counts()
    assert counts["subjects"] >= 100 and counts["pairs"] >= 100 and counts["candidates"] == 100
    assert counts["pose_and_style"] == full.pose_and_style


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_pages_show_the_committed_figures(path: Path) -> None:
    page = path.read_text()
    assert page == insert(page, PAGES[path]()), "run `nested-attention world report`"


def test_a_page_without_a_place_for_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines"):
        insert("# nothing here", "figures")


def test_percentages_carry_their_interval() -> None:
    assert percent(wilson(50, 100)) == "50 % (40 %–60 %)"


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "acceptance.json"
    records.write({"person": {}}, path)
    assert json.loads(path.read_text())["hashes"]["code"]
    assert list(tmp_path.iterdir()) == [path]


def test_parts_measured_at_once_give_what_they_give_one_after_the_other(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes import the library by name, which conftest.py does not need.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parent.parent)])
    counts = Counts(subjects=2, pairs=2, candidates=2, twins=2)
    parts: dict[str, acceptance.Part] = {"attention": acceptance.attention_to_word, "pair": acceptance.pairs}
    alone, together = (acceptance.measure(parts, counts, print, workers=workers) for workers in (1, 2))
    assert list(together) == list(alone) == list(parts)
    assert together == alone
    assert capfd.readouterr().out.count("pair   personalised") == 2


def test_the_figures_of_maps_belong_to_the_weights_and_hold_what_the_gallery_says() -> None:
    document = read(maps.RESULTS)
    assert of_weights(document["hashes"]) == of_weights(records.hashes()), "run `nested-attention world maps`"
    for word in ("person", "pet"):
        for found in document[word]["place"].values():
            assert found["half"]["trials"] == document["subjects"]
            assert found["iou"] >= 0.5 and found["half"]["rate"] >= 0.9
    assert document["time"]["decoder"] <= 1.25
