"""A blind comparison: the page tells nothing of whose pictures are whose, and answers are counted right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nested_attention.cli.app import app
from nested_attention.errors import NestedAttentionError
from nested_attention.evaluation import run
from nested_attention.evaluation.figures import FORMAT, read_figures
from nested_attention.evaluation.preferences import (
    ANSWERS_FORMAT,
    QUESTIONS,
    count_preferences,
    pairs_of,
    read_answers,
    read_key,
    write_preferences,
)

PAIRS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two evaluations of the same names; the second's pictures are bright."""
    root = tmp_path_factory.mktemp("evaluations")
    made = []
    for model, level in (("dark", 40), ("bright", 200)):
        folder = root / model
        (folder / "pictures").mkdir(parents=True)
        pictures = []
        Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / "reference.png")
        for number in range(PAIRS):
            name = f"prompt{number}"
            Image.new("RGB", (32, 32), (level,) * 3).save(folder / "pictures" / f"{name}.png")
            pictures.append(
                {
                    "name": name,
                    "prompt": f"prompt {number} <b>",
                    "picture": f"pictures/{name}.png",
                    "references": [["reference.png"]],
                }
            )
        document = {"format": FORMAT, "title": f"the {model} model", "pictures": pictures}
        (folder / "figures.json").write_text(json.dumps(document))
        made.append(folder)
    return made[0], made[1]


@pytest.fixture(scope="module")
def page(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "ab.html"
    found = CliRunner().invoke(app, ["preferences", "page", *map(str, folders), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert f"with {PAIRS} pairs" in found.output
    return out


def test_a_study_is_not_written_over(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study.html"
    typed = ["preferences", "page", *map(str, folders), "--out", str(out)]
    assert CliRunner().invoke(app, typed).exit_code == 0
    key = out.with_suffix(".key.json")
    first = key.read_bytes()
    for there in (out, key):
        said = CliRunner().invoke(app, typed)
        assert said.exit_code == 1 and f"{there.name} is there already" in said.output.replace("\n", "")
        out.unlink(missing_ok=True)
        assert key.read_bytes() == first and not out.exists()
    order: list[str] = []
    monkeypatch.setattr(run, "write", lambda path, text: order.append(path.name))
    assert CliRunner().invoke(app, [*typed, "--replace"]).exit_code == 0
    assert order == ["study.key.json", "study.html"], "a page is never without its key"


def brightness(address: str) -> float:
    import base64
    import io

    data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    return float(np.array(Image.open(io.BytesIO(data))).mean())


def test_the_page_is_whole_and_blind(page: Path) -> None:
    text, key = page.read_text(encoding="utf-8"), read_key(page.with_suffix(".key.json"))
    assert "dark model" not in text and "bright model" not in text and "pictures/" not in text
    addresses = re.findall(r'src="([^"]+)"', text)
    assert len(addresses) == 3 * PAIRS and all(address.startswith("data:") for address in addresses)
    assert "http" not in text.replace("http-equiv", "") and "prompt 0 &lt;b&gt;" in text
    assert set(re.findall(r'data-pair="(\w+)"', text)) == set(key["pairs"])
    assert not any(pair["name"] in text for pair in key["pairs"].values())
    # Where A is, differs from pair to pair, and the key says where.
    lefts = [pair["left"] for pair in key["pairs"].values()]
    assert sorted(lefts) == ["A"] * (PAIRS // 2) + ["B"] * (PAIRS // 2)
    sections = re.findall(r'data-pair="(\w+)".*?left picture', text, re.S)
    assert len(sections) == PAIRS
    for section in re.findall(r"<section.*?</section>", text, re.S):
        (pair,) = re.findall(r'data-pair="(\w+)"', section)
        (left,) = re.findall(r'src="([^"]+)" alt="left picture"', section)
        assert (brightness(left) < 100) == (key["pairs"][pair]["left"] == "A")
        assert section.count("<fieldset") == len(QUESTIONS) == 3


def answers(key: dict[str, Any], person: str, choose: Any) -> dict[str, Any]:
    given = [
        {"pair": pair, "question": question, "side": choose(entry, question)}
        for pair, entry in key["pairs"].items()
        for question in QUESTIONS
    ]
    return {"format": ANSWERS_FORMAT, "study": key["study"], "person": person, "answers": given}


def prefers(model: str) -> Any:
    return lambda entry, question: "left" if entry["left"] == model else "right"


def test_win_rates_are_counted_for_the_model_not_the_side(page: Path, tmp_path: Path) -> None:
    key = read_key(page.with_suffix(".key.json"))
    found = count_preferences(key, [answers(key, "ann", prefers("A")), answers(key, "bob", prefers("A"))])
    assert found["people"] == 2 and found["A"] == "the dark model"
    for question in QUESTIONS:
        wins = found[question]["wins_of_a"]
        assert wins["rate"] == 1 and wins["trials"] == 2 * PAIRS
        assert wins["low"] == pytest.approx(0.7575, abs=1e-3)  # Wilson, 12 of 12
    # Whoever always takes the left one prefers nobody; and "neither" is no win.
    found = count_preferences(key, [answers(key, "cat", lambda entry, question: "left")])
    assert found["overall"]["wins_of_a"]["rate"] == 0.5
    sides = {"prompt": "neither", "identity": "left", "overall": "right"}
    found = count_preferences(key, [answers(key, "dan", lambda entry, question: sides[question])])
    assert found["prompt"] == {"wins_of_a": None, "neither": PAIRS}
    # Answers that a person sends again replace the first.
    found = count_preferences(key, [answers(key, "ann", prefers("A")), answers(key, "ann", prefers("B"))])
    assert found["people"] == 1 and found["overall"]["wins_of_a"]["rate"] == 0
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers(key, "ann", prefers("B"))))
    said = (
        CliRunner()
        .invoke(app, ["preferences", "count", str(page.with_suffix(".key.json")), str(file)])
        .output
    )
    assert "B: the bright model" in said and "identity  A preferred in 0 % (0–39 %) of 6 answers" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study": "another"}, "are to the page 'another'"),
        ({"format": "x"}, "has the format 'x'"),
        ({"answers": []}, "the answers are empty"),
        ({"answers": [{"pair": "x", "question": "overall", "side": "left"}]}, "expected a pair of the key"),
        ({"answers": [{"pair": "x"}]}, "expected a pair of the key"),
        ({"answers": [{"pair": [], "question": {}, "side": 1}]}, "expected a pair of the key"),
        ({"answers": ["x"]}, "expected a pair of the key"),
        ({"answers": None}, "answers 1 are damaged: person is 'ann', answers are NoneType"),
        ({"person": None}, "answers 1 are damaged: person is None"),
    ],
)
def test_answers_to_something_else_are_refused(page: Path, change: dict[str, Any], said: str) -> None:
    key = read_key(page.with_suffix(".key.json"))
    with pytest.raises(NestedAttentionError, match=said):
        count_preferences(key, [{**answers(key, "ann", prefers("A")), **change}])


def test_two_people_of_one_name_are_no_one_person(page: Path) -> None:
    key = read_key(page.with_suffix(".key.json"))
    first, second = ({**answers(key, "Anna", prefers(one)), "id": one} for one in "AB")
    with pytest.raises(NestedAttentionError, match="ones have the name 'Anna' and come from two browsers"):
        count_preferences(key, [first, second])
    assert count_preferences(key, [first, {**second, "person": "Anna K."}])["people"] == 2
    assert count_preferences(key, [first, first])["people"] == 1
    text = page.read_text(encoding="utf-8")
    assert "{format, study, id, person" in text and "id = before.id || id" in text


def test_nothing_that_others_know_says_which_picture_is_whose(folders: tuple[Path, Path]) -> None:
    """No seed repeats the sides."""
    pairs = pairs_of(*map(read_figures, folders), PAIRS, seed=0)
    drawn = [write_preferences(pairs, ("a", "b"))[1]["pairs"].values() for _ in range(12)]
    assert len({tuple(pair["left"] for pair in each) for each in drawn}) > 1


def test_files_of_another_kind_are_refused(page: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(NestedAttentionError, match="has the format"):
        read_answers(page.with_suffix(".key.json"))
    with pytest.raises(NestedAttentionError, match="cannot be read as JSON"):
        read_key(page)
    other = json.loads((folders[0] / "figures.json").read_text())
    for picture in other["pictures"]:
        picture["name"] += "x"
    (tmp_path / "figures.json").write_text(json.dumps(other))
    said = CliRunner().invoke(app, ["preferences", "page", str(folders[0]), str(tmp_path)])
    assert said.exit_code == 1 and "no picture of one name and prompt" in " ".join(said.output.split())
