"""The figures of anchored adapters: each way is drawn with what it says, parts are kept, pages show them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_world import random_judges

from nested_attention.avatars.figures import anchored, anchored_tables, records
from nested_attention.avatars.figures.anchored import CHOICE, PAIR, PARTS, PEOPLE, USES
from nested_attention.avatars.figures.cases import anyone, draw_cases
from nested_attention.avatars.figures.judges import SUBJECTS, Counts, Judges
from nested_attention.avatars.models.world import Sampling
from nested_attention.avatars.train.encoders import new_adapter
from nested_attention.errors import NestedAttentionError
from nested_attention.evaluation.statistics import rate


@pytest.fixture(scope="module")
def judges() -> Judges:
    return random_judges()


@pytest.fixture(scope="module")
def own(judges: Judges) -> dict[str, Any]:
    """Not trained to be added; they add something all the same."""
    return {word: new_adapter(encoder).eval() for word, encoder in judges.encoders.items()}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Counts:
    monkeypatch.setattr(anchored, "SAMPLING", Sampling(steps=2))
    monkeypatch.setattr(anchored, "DEVELOPMENT", 2)
    monkeypatch.setattr(anchored, "GATES", dict(list(anchored.GATES.items())[:1]))
    return Counts(subjects=2, pairs=2, twins=2)


@torch.no_grad()
def test_every_part_is_measured_and_shown(
    judges: Judges, own: dict[str, Any], short: Counts, tmp_path: Path
) -> None:
    path = tmp_path / "anchored.json"
    for part in PARTS:
        document = anchored.measure(judges, own, short, [part])
        assert list(document) == [part, "run"]
        anchored.write(document, path)
    found = json.loads(path.read_text())
    assert list(found) == [*PARTS, "runs", "hashes"]
    for part in PARTS:
        assert list(found["runs"][part]) == list(found["hashes"][part]) == list(found[part])
    for part in ("person", "pet", PAIR, PEOPLE):
        ways = found[part]
        expected = [name for name in USES if part in (PAIR, PEOPLE) or name not in anchored.TOGETHER]
        assert list(ways) == expected
        changes = [way["outside"] for way in ways.values()]
        assert all(change > 0 for change in changes) and len(set(changes)) > 2
        assert all(way["identity"]["trials"] == 2 for way in ways.values())
    again = anchored.measure(judges, own, short, ["pet"], uses=["anchored"])
    assert again["pet"] == {"anchored": found["pet"]["anchored"]}  # what it is compared with is drawn too
    assert [name for name, way in found[PAIR].items() if "leak" in way] == list(anchored.EXCHANGED)
    shown = anchored_tables.tables(found)
    assert all(f"| {name} |" in shown for name in [*USES, *found[CHOICE]["person"]])
    assert f"| {found[PAIR]['anchored']['leak']:.1f} |" in shown
    assert "Recognised among 2; with" in shown and "each recognised among 2, and change" in shown
    found["person"]["everywhere"]["expression"] = rate(torch.tensor([True, False]))
    against = {"mean": 0.04, "low": -0.01, "high": 0.09, "above": 0.1, "pairs": 100}
    found["person"]["anchored"]["against_everywhere"] = against
    shown = anchored_tables.tables(found)
    assert "| everywhere | 50 % |" in shown and "| anchored | +4 (-1 to +9) |" in shown


def test_cases_of_training_identities_are_none_of_those_held_out() -> None:
    train, held = (draw_cases(("person",), 30, seed=1, split=split) for split in ("train", "development"))
    assert not {c.figure("person").identity for c in train} & {c.figure("person").identity for c in held}


def test_the_shipped_adapters_say_how_they_were_trained_and_the_figures_are_theirs() -> None:
    shipped = anchored.adapters()
    assert {word: one.config.injection for word, one in shipped.items()} == dict.fromkeys(
        SUBJECTS, "decoupled"
    )
    document = json.loads(anchored.RESULTS.read_text())
    stale = "weights changed since `nested-attention world anchored` measured these: measure them again"
    for part in PARTS:
        now = {row: anchored.belongs(part, row) for row in document[part]}
        assert document["hashes"][part] == now, stale
        assert document["runs"][part].keys() == now.keys()
    for part in (*SUBJECTS, PAIR, PEOPLE):
        assert {way["identity"]["trials"] for way in document[part].values()} == {100}


def test_a_row_that_was_not_measured_again_keeps_its_run_and_what_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "anchored.json", tmp_path
    hashes = {"unet.safetensors": "old", "pet_encoder.safetensors": "old", "controlnet/a.safetensors": "old"}
    monkeypatch.setattr(records, "hashes", lambda: hashes)

    def of_adapters(told: str) -> None:
        for word in SUBJECTS:
            (folder / f"{word}.safetensors").write_text(told)

    of_adapters("old")
    row = {"outside": 1.0, "leak": 1.0}
    gates = {CHOICE: {"person": {"a gate": row}}}
    ways = ("everywhere", "anchored", "nested")
    anchored.write({PAIR: dict.fromkeys(ways, row), **gates, "run": {"date": "old"}}, path, folder)
    before = json.loads(path.read_text())
    assert before["hashes"][PAIR]["anchored"] == before["hashes"][PAIR]["everywhere"]

    def now(part: str, way: str) -> bool:
        return before["hashes"][part][way] == anchored.belongs(part, way, folder)

    hashes["controlnet/a.safetensors"] = "new"
    assert all(now(PAIR, way) for way in ways)
    hashes["pet_encoder.safetensors"] = "new"
    assert [now(PAIR, way) for way in ways] == [True, True, False] and now(CHOICE, "person")
    of_adapters("new")
    assert not any(now(PAIR, way) for way in ways) and not now(CHOICE, "person")
    anchored.write({PAIR: {"anchored": {"outside": 7.0}}, "run": {"date": "new"}}, path, folder)
    found = json.loads(path.read_text())
    assert found[PAIR] == {"everywhere": row, "anchored": {"outside": 7.0}, "nested": row}
    assert {way: run["date"] for way, run in found["runs"][PAIR].items()} == {
        "everywhere": "old",
        "anchored": "new",
        "nested": "old",
    }
    changed = {way for way in ways if found["hashes"][PAIR][way] != before["hashes"][PAIR][way]}
    assert changed == {"anchored"} and found["hashes"][PAIR]["anchored"] == anchored.belongs(
        PAIR, "anchored", folder
    )
    assert (found[CHOICE], found["hashes"][CHOICE]) == (before[CHOICE], before["hashes"][CHOICE])


def test_a_mask_is_where_the_figure_is_and_a_part_that_does_not_exist_is_refused(
    judges: Judges, own: dict[str, Any]
) -> None:
    cases = draw_cases(("person", "pet"), 2, seed=5)
    person, pet = (anchored._masks(cases, word) for word in ("person", "pet"))
    assert person.any() and pet.any() and not (person & pet).any()
    assert np.array_equal(person | pet, anyone(cases))
    with pytest.raises(NestedAttentionError, match="no such part: persons. The parts are person, pet"):
        anchored.measure(judges, own, Counts(), ["persons"])
    with pytest.raises(NestedAttentionError, match="no such use: anchor. The uses are everywhere, true mask"):
        anchored.measure(judges, own, Counts(), ["pet"], uses=["anchor"])


def test_another_gate_reaches_the_layers(judges: Judges, own: dict[str, Any]) -> None:
    gated = replace(anchored.GATES["quantile 0.95, level 0.5, exponent 3.0"], word="person")
    values = torch.zeros(1, 2, 8)
    bound = gated.trained_as(own["person"].config).bind(values, values, torch.ones(1, 4, dtype=torch.bool))
    assert (bound.quantile, bound.level, bound.exponent) == (0.95, 0.5, 3.0)  # type: ignore[attr-defined]
