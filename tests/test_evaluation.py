"""Rates, retrieval, held-out cases, and the figures: how they are measured, and of which weights they are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_world import random_judges, save_judges
from typer.testing import CliRunner

from nested_attention.avatars.drawing.identity import half_of, split_of
from nested_attention.avatars.drawing.pose import Pose
from nested_attention.avatars.drawing.prompts import combination_split
from nested_attention.avatars.figures import acceptance, curve, maps, records
from nested_attention.avatars.figures import judges as judging
from nested_attention.avatars.figures import steady as steadiness
from nested_attention.avatars.figures.cases import Case, background, change, draw_cases, true_drawings
from nested_attention.avatars.figures.described import described_value, noun_places, word_values
from nested_attention.avatars.figures.judges import (
    SCORERS,
    SUBJECTS,
    Counts,
    Judges,
    generate,
    score_identity,
    score_prompt,
)
from nested_attention.avatars.figures.pages import PAGES, PICTURES, insert, read
from nested_attention.avatars.figures.references import HIDING, TOGETHER
from nested_attention.avatars.figures.report import figures, percent, summary, targets
from nested_attention.avatars.figures.steady import steady
from nested_attention.avatars.models.world import Attached, Sampling
from nested_attention.cli.app import app
from nested_attention.evaluation.statistics import (
    as_text,
    balanced,
    from_text,
    mcnemar,
    rate,
    repeated,
    top1,
    wilson,
)
from nested_attention.settings import SubjectSettings

FEW = Counts(subjects=2, pairs=2, twins=2, pose_and_style=2, steady=2)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return random_judges()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "AS_SHIPPED", Sampling(steps=1))
    monkeypatch.setattr(acceptance, "LAMBDAS", (1.0, 2.0))


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_an_interval_contains_its_rate(trials: int, share: float) -> None:
    successes = round(share * trials)
    found = wilson(successes, trials)
    assert 0 <= found["low"] <= found["rate"] + 1e-12 and found["rate"] <= found["high"] + 1e-12 <= 1 + 1e-9
    assert found["rate"] == successes / trials


def test_trials_made_again_say_no_less_and_at_most_as_much_as_others_would() -> None:
    some = torch.arange(40) < 12
    assert repeated([some]) == pytest.approx(rate(some), abs=1e-3)
    alike, others = repeated([some] * 3), repeated([some, some.roll(13), some.roll(26)])
    assert alike["rate"] == others["rate"] == pytest.approx(0.3)
    once, whole = wilson(12, 40), wilson(36, 120)
    assert alike["high"] - alike["low"] == pytest.approx(once["high"] - once["low"], abs=0.01)
    assert others["high"] - others["low"] == pytest.approx(whole["high"] - whole["low"])
    none = repeated([torch.zeros(40, dtype=torch.bool)] * 3)
    assert none["low"] == 0 and none["high"] == pytest.approx(wilson(0, 40)["high"])
    with pytest.raises(ValueError, match="at least one trial"):
        repeated([])


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


def test_the_exact_test_counts_what_differs() -> None:
    """8 against 1 of nine that differ: 2 · (C(9, 0) + C(9, 1)) / 2⁹."""
    first = from_text("1" * 8 + "0" + "1" * 5 + "0" * 4)
    second = from_text("0" * 8 + "1" + "1" * 5 + "0" * 4)
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"], found["p"]) == (8, 1, pytest.approx(20 / 512))
    assert as_text(first) == "111111110111110000" and torch.equal(from_text(as_text(second)), second)
    with pytest.raises(ValueError, match="18 and 17"):
        mcnemar(first, second[1:])


@pytest.mark.parametrize("half", ["development", "sealed"])
@pytest.mark.parametrize("words", [("person",), ("pet",), ("person", "pet")])
def test_cases_are_held_out_and_repeatable(words: tuple[str, ...], half: Any) -> None:
    cases, again = (draw_cases(words, 12, seed=1, split=half) for _ in range(2))
    assert [c.prompt for c in cases] == [c.prompt for c in again]
    shown = [figure.identity for case in cases for figure in case.picture.figures]
    assert len(set(shown)) == len(shown)
    for case in cases:
        assert combination_split(case.picture) == "heldout"
        assert case.latent_width == (16 if len(words) == 1 else 24)
        for word in words:
            assert word in case.prompt
            assert half_of(case.figure(word).identity) == half
            assert case.reference(word).shape == (28, 28, 3)


def test_the_sealed_set_is_another_one() -> None:
    """Other subjects, other pictures, other noise, from the same seed; and by default nobody draws it."""
    sealed, development = (draw_cases(("pet",), 12, seed=1, split=half) for half in ("sealed", "development"))
    assert [c.prompt for c in draw_cases(("pet",), 12, seed=1)] == [c.prompt for c in development]
    assert not {c.seed for c in sealed} & {c.seed for c in development}
    assert [c.prompt for c in sealed] != [c.prompt for c in development]
    assert Counts().half == "development"


def test_the_background_is_what_no_figure_comes_near() -> None:
    cases = draw_cases(("person", "pet"), 2, seed=3)
    outside, rgb = background(cases), true_drawings(cases)
    assert outside.shape == rgb.shape[:3] == (2, 32, 48) and 0 < outside.mean() < 0.6
    brighter = np.where(outside[..., None], rgb.astype(int) + 5, rgb).clip(0, 260)
    assert change(brighter, rgb.astype(int), outside) == 5.0
    assert change(brighter, rgb.astype(int), ~outside) == 0.0


@pytest.mark.parametrize("word", SUBJECTS)
def test_judges_know_the_true_drawings(word: str) -> None:
    """The ceiling of every figure: judges that could not tell true drawings apart would measure nothing."""
    shipped, cases = Judges.load(), draw_cases((word,), 60, seed=77)
    counts = Counts(subjects=60, twins=5)
    found = score_identity(shipped, true_drawings(cases), cases, word, counts)
    assert all(found[scorer]["top1"]["rate"] >= 0.95 for scorer in SCORERS)
    prompt = score_prompt(shipped, true_drawings(cases), cases)
    assert prompt["all"]["rate"] >= 0.95 and prompt["balanced"]["rate"] >= 0.85


def of_weights(hashes: dict[str, str]) -> dict[str, str]:
    """Without the code's hash, which is on record and changes with every comment."""
    return {name: value for name, value in hashes.items() if name != "code"}


def test_the_committed_figures_belong_to_the_shipped_weights() -> None:
    """Stale figures are worse than none: run `make acceptance` after training."""
    stale = "weights changed since `make acceptance` ran: run it again"
    assert of_weights(read()["hashes"]) == of_weights(records.hashes()), stale


def test_the_committed_figures_are_of_full_counts_on_the_sealed_set() -> None:
    document = read()
    counts, full = document["run"]["counts"], Counts()
    assert counts["subjects"] >= 100 and counts["pairs"] >= 100
    assert counts["pose_and_style"] == full.pose_and_style and counts["twins"] == 20
    assert counts["half"] == "sealed" and document["runs"] >= document["run"]["number"] >= 1
    for word in SUBJECTS:
        for scorer in SCORERS:
            hits = document[word]["personalised"]["identity"][scorer]["hits"]
            assert {len(each) for each in hits.values()} == {100}


@torch.no_grad()
def test_a_word_s_own_value_changes_nothing(judges: Judges, quick: None) -> None:
    """The control's value, taken from the prompt itself in place of a description, is what was there."""
    cases, world = draw_cases(("person",), 2, seed=5), judges.world
    context, _, ids = world.text([case.prompt for case in cases])
    tokens = context[torch.arange(2), noun_places(ids, "person")][:, None]
    own = Attached(word_values(world, "person"), tokens, "person", SubjectSettings())
    base = generate(judges, cases)
    assert np.abs(generate(judges, cases, [own]).astype(int) - base).max() <= 1


@torch.no_grad()
def test_a_described_value_is_one_a_layer_and_changes_the_picture(judges: Judges, quick: None) -> None:
    cases = draw_cases(("pet",), 2, seed=5)
    attached = described_value(judges.world, cases, "pet")
    assert attached.tokens.shape == (2, 1, 256) and attached.encoder.config.alpha is None
    _, _, ids = judges.world.text([case.described for case in cases])
    nouns = [case.described.split() for case in cases]
    for row, words in enumerate(nouns):
        first = next(i for i, each in enumerate(words) if each.strip(",") in ("pet", "cat", "dog"))
        commas = sum(each.endswith(",") for each in words[:first])
        assert int(noun_places(ids, "pet")[row]) == 1 + first + commas
    for key, _ in attached.encoder.project(attached.tokens).values():
        assert not key.any()
    assert (generate(judges, cases, [attached]) != generate(judges, cases)).any()
    with pytest.raises(ValueError, match="no noun for a person"):
        noun_places(ids, "person")


@torch.no_grad()
def test_pose_and_background_stay_at_one_noise(judges: Judges, quick: None) -> None:
    """Of a model that hardly minds who is attached: other noises change everything, other subjects little."""
    found = steady(judges, FEW, lambda line: None)
    for by in found.values():  # pairs of four pictures, with an interval over prompts
        assert (by["place"]["pictures"], by["place"]["subjects"]) == (12, 2)
    assert found["subjects"]["background"] < 0.5 * found["noises"]["background"]


def test_figures_agree_where_they_stand_and_look_wherever_that_is(judges: Judges) -> None:
    """True drawings, some of them moved to where no prompt puts a figure, as a model may draw them. Laughing
    eyes are shut and say nothing."""

    def cases_of(expression: str, *poses: tuple[int, int, int]) -> list[Case]:
        (case,) = draw_cases(("person",), 1, seed=5)
        (figure,) = case.picture.figures
        figures = [
            replace(
                figure, placement="middle", clothes="plain", accessory="none", pose=Pose(*pose, expression)
            )
            for pose in poses
        ]
        return [replace(case, picture=replace(case.picture, figures=(each,))) for each in figures]

    cases = [
        *cases_of("calm", (16, 8, 0), (16, 8, 1), (16, 9, 0), (21, 11, 0)),
        *cases_of("laughing", *[(16, 8, 0)] * 8),
    ]
    found = steadiness._agreement(judges, true_drawings(cases), cases)
    assert found["place"]["mean"] == pytest.approx((1 + 6 + 6) / 18) and found["place"]["subjects"] == 3
    assert found["place"]["low"] < found["place"]["mean"] < found["place"]["high"]
    assert found["gaze"]["mean"] == pytest.approx(3 / 6) and found["gaze"]["subjects"] == 1


def test_maps_are_measured_on_the_development_half() -> None:
    """The sealed half is for the final figures alone."""
    rng, halves = np.random.default_rng(0), set()
    for _ in range(12):
        picture = maps._case(rng, "pet", "heldout")[0]
        halves.add(half_of(picture.figures[0].identity))
        assert combination_split(picture) == "heldout"
        assert split_of(maps._case(rng, "pet", "train")[0].figures[0].identity) == "train"
    assert halves == {"development"}


def test_a_balanced_rate_is_the_mean_of_its_strata() -> None:
    hits = torch.tensor([True] * 90 + [True, False] * 5)
    strata = torch.tensor([0] * 90 + [3] * 10)
    found = balanced(hits, strata)
    assert found["rate"] == pytest.approx(0.75) and found["trials"] == 100
    # As uncertain as 36 trials: 2² / (1/90 + 1/10).
    assert {**found, "trials": 36} == pytest.approx(wilson(27, 36))
    assert balanced(hits[:90], strata[:90]) == wilson(90, 90)
    equal = torch.arange(100) % 4
    assert balanced(torch.ones(100, dtype=torch.bool), equal) == pytest.approx(wilson(100, 100))
    with pytest.raises(ValueError, match="at least one trial"):
        balanced(hits[:0], strata[:0])


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A whole run on the development set with tiny counts and random weights. Figures of the ControlNet and
    of the LoRA, which have no random weights here, are made up."""
    lines: list[str] = []
    parts = {name: part for name, part in acceptance.PARTS.items() if name != "pose_and_style"}
    judges = random_judges()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(judging, "AS_SHIPPED", Sampling(steps=1))
        patch.setattr(acceptance, "LAMBDAS", (1.0, 2.0))
        patch.setattr(Judges, "load", lambda folder: judges)
        found = acceptance.run(FEW, lines.append, parts=parts)
    assert len(lines) > 30
    half = wilson(1, 2)
    pose = {"columns": 1.0, "rows": 0.5, "there": 0.5, "identity": half}
    style = {"distance": 1.0, "identity": half}
    made_up = {"pose": {"without": pose, "with": pose}, "style": {"without": style, "with": style}}
    written: dict[str, Any] = json.loads(json.dumps({**found, "pose_and_style": made_up, "runs": 3}))
    written["run"]["number"] = 2
    return written


def test_a_run_measures_everything_and_the_pages_show_it(document: dict[str, Any]) -> None:
    assert document["run"]["counts"]["half"] == "development"
    for word in SUBJECTS:
        kinds = document[word]
        assert list(kinds) == ["personalised", "floor", "described", "constant", "ceiling"]
        assert kinds["floor"]["outside"] == 0 < kinds["described"]["outside"]
        for found in kinds.values():
            assert list(found["identity"]) == list(SCORERS)
            for by in found["identity"].values():
                assert list(by) == ["top1", "among_twins", "marks", "hits"]
                assert rate(from_text(by["hits"]["top1"])) == by["top1"]
        assert [point["attention_scale"] for point in document["curve"][word]] == [1.0, 2.0]
        assert document["curve"][word][0]["identity"] == kinds["personalised"]["identity"]
        against = document[f"references_{word}"]
        assert list(against["against"]) == list(HIDING) and TOGETHER in against["kinds"]
    for found in document["pair"].values():
        for scorer in SCORERS:
            each = [from_text(found[word][scorer]["hits"]["top1"]) for word in SUBJECTS]
            assert found["both"][scorer] == rate(each[0] & each[1])
    page = figures(document)
    for title in ("One person", "One pet", "A person and a pet", "Two people", "λ", "Other subjects at one"):
        assert f"### {title}" in page or title in page
    assert "Run 2 of 3 begun on the sealed set" in page and "not corrected for the number of tests" in page
    one = document["person"]["personalised"]["prompt"]["balanced"]
    assert f"| expression, balanced | {percent(one)} |" in page and "By chance, 1 % are" in page
    assert "| one value a layer, from that description |" in page and "McNemar" in page
    assert all(len(set(map(len, _rows(block)))) <= 1 for block in page.split("\n\n"))
    assert "person among 20 near-twins" in summary(document)


def _rows(block: str) -> list[list[str]]:
    """The cells of a Markdown table's lines."""
    return [line.split(" | ") for line in block.splitlines() if line.startswith("| ")]


def test_targets_are_met_by_both_judges_or_not_at_all(document: dict[str, Any]) -> None:
    found = {name: (target, *cells, met) for name, target, *cells, met in targets(document)}
    by = document["person"]["personalised"]["identity"]
    assert found["person, top-1 of 100"][-1] == all(by[s]["top1"]["rate"] >= 0.8 for s in SCORERS)
    perfect, nothing = wilson(100, 100), wilson(0, 100)
    changed = json.loads(json.dumps(document))
    for scorer in SCORERS:
        changed["person"]["personalised"]["identity"][scorer]["top1"] = perfect
        changed["person"]["constant"]["identity"][scorer]["top1"] = wilson(50, 100)
    found = {name: met for name, *_, met in targets(changed)}
    assert found["person, top-1 of 100"]
    assert found["person: one value from a description, of what the encoder reaches"]
    changed["person"]["personalised"]["identity"][SCORERS[1]]["top1"] = nothing
    found = {name: met for name, *_, met in targets(changed)}
    assert not found["person, top-1 of 100"]
    assert not found["person: one value from a description, of what the encoder reaches"]


def test_the_curve_is_drawn_with_all_three(document: dict[str, Any]) -> None:
    from xml.etree import ElementTree

    drawn = ElementTree.fromstring(curve.picture(document["curve"]))
    lines = [each.attrib["points"] for each in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 2 * 4 and all(len(points.split()) == 2 for points in lines)
    last = document["curve"]["person"][1]["outside"]
    most = max(p["outside"] for points in document["curve"].values() for p in points)
    top, bottom = curve.TOP, curve.HEIGHT - curve.BOTTOM
    _, y = lines[3].split()[1].split(",")
    assert float(y) == pytest.approx(bottom - last / most * (bottom - top), abs=0.1)
    said = "".join(drawn.itertext())
    assert "background change" in said and "prompt" in said and all(name in said for name in SCORERS)


def test_every_run_on_the_sealed_set_is_counted_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, out = tmp_path / "acceptance.json", tmp_path / "elsewhere.json"
    committed.write_text(json.dumps({"person": 1}))
    monkeypatch.setattr(acceptance, "RESULTS", committed)

    def stopped(*_: Any, **__: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(acceptance, "run", stopped)
    CliRunner().invoke(app, ["world", "acceptance", "--out", str(out)])
    assert json.loads(committed.read_text()) == {"person": 1, "runs": 1} and not out.exists()
    seen: list[Counts] = []

    def made(counts: Counts, *_: Any, **__: Any) -> dict[str, Any]:
        seen.append(counts)
        return {"person": 2, "run": {}}

    monkeypatch.setattr(acceptance, "run", made)
    for options, written, runs in ((["--out", str(out)], out, 2), ([], committed, 3)):
        assert CliRunner().invoke(app, ["world", "acceptance", *options]).exit_code == 0
        document = json.loads(written.read_text())
        assert document["person"] == 2 and document["run"] == {"number": runs} and document["runs"] == runs
        assert json.loads(committed.read_text())["runs"] == runs
    assert [counts.half for counts in seen] == ["sealed", "sealed"]
    other = tmp_path / "development.json"
    asked = ["world", "acceptance", "--out", str(other), "--development", "--part", "pair"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert "runs" not in json.loads(other.read_text()) and seen[-1].half == "development"
    for wrong, said in (
        (["--part", "pair"], "as a whole"),
        (["--development", "--part", "x"], "no such part"),
    ):
        refused = CliRunner().invoke(app, ["world", "acceptance", "--out", str(other), *wrong])
        assert refused.exit_code == 1 and said in refused.output


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.parent.name)
def test_pages_show_the_committed_figures(path: Path) -> None:
    page = path.read_text()
    assert page == insert(page, PAGES[path]()), "run `nested-attention world report`"


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_show_the_committed_figures(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PICTURES[path](), "run `nested-attention world report`"


def test_a_page_without_a_place_for_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines"):
        insert("# nothing here", "figures")


def test_percentages_carry_their_interval() -> None:
    assert percent(wilson(50, 100)) == "50 % (40 %–60 %)"


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "acceptance.json"
    records.write({"person": {}}, path, {"unet": "1"})
    assert json.loads(path.read_text()) == {"person": {}, "hashes": {"unet": "1"}}
    assert list(tmp_path.iterdir()) == [path]


def test_parts_measured_at_once_give_what_they_give_one_after_the_other(
    judges: Judges, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes import the library by name, which conftest.py does not need.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parent.parent)])
    save_judges(judges, tmp_path)
    parts: dict[str, acceptance.Part] = dict.fromkeys(("one", "other"), acceptance.attention_to_word)
    alone, together = (
        acceptance.measure(parts, FEW, print, folder=tmp_path, workers=workers) for workers in (1, 2)
    )
    assert list(together) == list(alone) == list(parts)
    assert together == alone
    assert capfd.readouterr().out.count("person P[s*]") == 4


def test_the_figures_of_maps_belong_to_the_weights_and_hold_what_the_gallery_says() -> None:
    document = read(maps.RESULTS)
    assert of_weights(document["hashes"]) == of_weights(records.hashes()), "run `nested-attention world maps`"
    for word in ("person", "pet"):
        for found in document[word]["place"].values():
            assert found["half"]["trials"] == document["subjects"]
            assert found["iou"] >= 0.5 and found["half"]["rate"] >= 0.9
    assert document["time"]["decoder"] <= 1.25
