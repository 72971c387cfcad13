"""`nested-attention evaluate`: what is read, who judges, what is kept, and what the page shows."""

from __future__ import annotations

import json
import re
import shutil
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor
from typer.testing import CliRunner

from nested_attention.cli.app import app
from nested_attention.errors import NestedAttentionError
from nested_attention.evaluation import run
from nested_attention.evaluation.charts import Point, chart
from nested_attention.evaluation.drawing import Drawing
from nested_attention.evaluation.figures import compare, read_figures, summarise, unlike
from nested_attention.evaluation.folders import read_folder
from nested_attention.evaluation.judges import load_judges
from nested_attention.evaluation.page import write_page
from nested_attention.evaluation.recognisers import ARCFACE, FaceFinder, OnnxRecogniser, PackagedRecogniser
from nested_attention.evaluation.samples import Person, Sample
from nested_attention.evaluation.scorers import (
    CountScorer,
    IdentityScorer,
    Measure,
    Scores,
    check_keys,
    everybody,
)
from nested_attention.evaluation.settings import ScorerSettings
from nested_attention.evaluation.tasks import Task, carry_out, faceless, folder_task
from nested_attention.pictures.faces import Face
from nested_attention.pictures.files import open_picture, read_picture


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def smaller(picture: np.ndarray, side: int = 320) -> np.ndarray:
    """Faces are found sooner in it."""
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def an_astronaut() -> np.ndarray:
    return smaller(data.astronaut())


def photographer() -> np.ndarray:
    return smaller(np.repeat(data.camera()[..., None], 3, axis=-1))


def darker(picture: np.ndarray) -> np.ndarray:
    return (picture * 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def find() -> FaceFinder:
    return FaceFinder()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MultiID-Bench's layout, of the photographs that scikit-image ships."""
    root = tmp_path_factory.mktemp("bench")
    astronaut, both = an_astronaut(), np.concatenate([an_astronaut(), photographer()], axis=1)
    one = root / "0001"
    save(one / "ref_1.png", astronaut)
    save(one / "ori.png", np.ascontiguousarray(astronaut[:, ::-1]))
    save(one / "out.png", astronaut)  # a copy
    (one / "meta.json").write_text('{"prompt": "a photo of an astronaut"}')
    two = root / "p2" / "0002"
    save(two / "ref_1.png", astronaut)
    save(two / "ref_2.png", photographer())
    save(two / "ori.png", darker(both))
    save(two / "out.png", both)
    (two / "meta.json").write_text('{"caption_en": "an astronaut and a photographer", "bboxes": []}')
    three = root / "0003"
    save(three / "ref_1.png", astronaut)
    save(three / "ref_1_b.png", darker(astronaut))
    save(three / "cat.png", data.chelsea())
    (three / "cat.txt").write_text("a photo of an astronaut with a cat\n")
    return root


def test_multiid_benchs_layout_is_read(bench: Path) -> None:
    samples = {sample.name: sample for sample in read_folder(bench)}
    assert list(samples) == ["0001__out", "0003__cat", "p2__0002__out"]
    one, cat, two = samples.values()
    assert one.prompt == "a photo of an astronaut" and one.truth == bench / "0001" / "ori.png"
    assert one.people == (Person("0001", (bench / "0001" / "ref_1.png",)),)
    assert one.group == "one subject" and one.subject == "0001"
    assert two.prompt == "an astronaut and a photographer" and two.group == "2 people"
    assert [person.name for person in two.people] == ["p2/0002 1", "p2/0002 2"]
    assert cat.prompt == "a photo of an astronaut with a cat" and cat.truth is None
    assert [path.name for path in cat.people[0].references] == ["ref_1.png", "ref_1_b.png"]


def test_pets_are_left_out_by_recognisers_of_faces(tmp_path: Path) -> None:
    """As meta.json says; what macOS leaves beside files is no picture, and a byte order mark no word."""
    for name, said in {
        "rex": '{"face": false}',
        "both": '{"prompt": "a person and a pet", "pets": [2]}',
    }.items():
        for picture in ("ref_1.png", *(["ref_2.png"] if name == "both" else []), "out.png"):
            save(tmp_path / name / picture, np.zeros((32, 32, 3), np.uint8))
        (tmp_path / name / "meta.json").write_text(said, encoding="utf-8-sig")
        (tmp_path / name / "._out.png").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "rex" / "out.txt").write_text("a pet", encoding="utf-8-sig")
    both, rex = read_folder(tmp_path)
    assert [person.face for person in both.people] == [True, False] and both.prompt == "a person and a pet"
    assert [person.face for person in rex.people] == [False] and rex.prompt == "a pet"


def test_two_people_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("couple/ref_1.png", "couple/ref_2.png", "couple/out.png", "couple 1/ref_1.png"):
        save(tmp_path / name, np.zeros((32, 32, 3), np.uint8))
    assert len(read_folder(tmp_path)) == 1
    save(tmp_path / "couple 1" / "out.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(NestedAttentionError, match="two people who would both be called 'couple 1'; rename"):
        read_folder(tmp_path)


def test_references_and_truths_are_known_however_they_are_written(tmp_path: Path) -> None:
    for name in ("Ref_1.PNG", "REF_1_b.png", "Ori.png", "Out.png", ".ipynb_checkpoints/Out-checkpoint.png"):
        save(tmp_path / "anna" / name, np.zeros((32, 32, 3), np.uint8))
    (sample,) = read_folder(tmp_path)
    assert sample.name == "anna__Out" and sample.truth == tmp_path / "anna" / "Ori.png"
    assert sorted(path.name for path in sample.people[0].references) == ["REF_1_b.png", "Ref_1.PNG"]
    hidden = tmp_path / ".hidden"
    (tmp_path / "anna").rename(hidden)
    assert len(read_folder(hidden)) == 1, "what is named is read"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a/ref_1.png": None, "a/ori.png": None, "a/ori.jpg": None}, "ori.jpg and ori.png; expected one"),
        ({}, "holds no pictures to score"),
        ({"a/ref_1.png": None}, "holds no pictures to score"),
        ({"a/out.png": None}, r"a holds out.png and no reference; expected ref_1.jpg beside it"),
        ({"a/out.png": None, "a/ref_1.png": None, "a/meta.json": "{"}, "meta.json is not valid JSON"),
        ({"a/out.png": None, "a/ref_1.png": None, "a/meta.json": '{"prompt": 3}'}, "has the prompt 3"),
        ({"a/out.png": None, "a/ref_1.png": None, "a/meta.json": "[]"}, "meta.json holds list"),
        ({"a/out.png": None, "a/ref_1.png": None, "a/meta.json": '{"face": 0}'}, 'has "face": 0 and'),
        ({"a/out.png": None, "a/ref_1.png": None, "a/meta.json": '{"pets": [true]}'}, r'"pets": \[True\]'),
        ({"a/out.png": None, "a/ref_1.png": None, "a/out.txt": "caf\xe9"}, "out.txt cannot be read .*UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_scored_is_named(
    tmp_path: Path, files: dict[str, str | None], said: str
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if text is None:
            save(path, np.zeros((32, 32, 3), np.uint8))
        else:
            path.write_text(text, encoding="latin-1")
    with pytest.raises(NestedAttentionError, match=said):
        read_folder(tmp_path)
    with pytest.raises(NestedAttentionError, match="there is no folder"):
        read_folder(tmp_path / "gone")


@pytest.fixture(scope="module")
def scored(bench: Path, find: FaceFinder) -> dict[str, dict[str, Scores]]:
    samples = read_folder(bench)
    scorers = load_judges(ScorerSettings(), samples, find)
    assert [scorer.key for scorer in scorers] == ["packaged", "faces"]
    return {sample.name: {scorer.key: scorer(sample) for scorer in scorers} for sample in samples}


def test_a_copy_is_recognised_and_called_a_copy(scored: dict[str, dict[str, Scores]]) -> None:
    found = scored["0001__out"]["packaged"]
    assert found["sim_ref"] == pytest.approx(1, abs=1e-6) and found["recognised"] == 1
    assert found["sim_truth"] is not None and 0.97 < found["sim_truth"] < 1  # her mirror image
    assert found["copy_paste"] == pytest.approx(1, abs=1e-2)
    assert found["id_conf"] is None  # one person cannot be confused with another
    assert scored["0001__out"]["faces"] == {"count": 1.0}


def test_a_bystander_in_the_truth_is_nobody(tmp_path: Path) -> None:
    """The truth's faces are matched to the references' people."""
    faces = {"reference": [[1.0, 0]], "out": [[1.0, 0]], "truth": [[0, 1.0], [1.0, 0]]}
    paths = {name: tmp_path / f"{name}.png" for name in faces}
    for path in paths.values():
        path.write_bytes(b"")
    recogniser: Any = SimpleNamespace(state="", decides=False)
    judge = IdentityScorer(recogniser, [person := Person("anna", (paths["reference"],))])
    judge._seen.update({paths[name]: torch.tensor(each) for name, each in faces.items()})
    found = judge(Sample("out", paths["out"], (person,), truth=paths["truth"]))
    assert (found["sim_ref"], found["sim_truth"]) == (1.0, 1.0)


def test_a_truth_without_one_of_its_people_judges_nobody(tmp_path: Path) -> None:
    """It would raise the figure: whoever is missing would count for nothing."""
    faces = {"one": [[1.0, 0]], "two": [[0, 1.0]], "out": [[1.0, 0]], "truth": [[1.0, 0]]}
    paths = {name: tmp_path / f"{name}.png" for name in faces}
    for path in paths.values():
        path.write_bytes(b"")
    people = Person("ann", (paths["one"],)), Person("ben", (paths["two"],))
    sample = Sample("out", paths["out"], people, truth=paths["truth"])

    def find(path: Path) -> Any:
        return faces[path.stem]

    assert "truth.png, a picture of out, shows 1 of 2 faces" in faceless([sample], cast(Any, find))["out"]
    pet = replace(sample, people=(people[0], replace(people[1], face=False)))
    assert faceless([pet], cast(Any, find)) == {}
    recogniser: Any = SimpleNamespace(state="", decides=False)
    judge = IdentityScorer(recogniser, people)
    judge._seen.update({paths[name]: torch.tensor(each) for name, each in faces.items()})
    with pytest.raises(NestedAttentionError, match="the truth of out, shows 1 of 2 people"):
        judge(sample)


def test_two_people_are_told_apart(scored: dict[str, dict[str, Scores]]) -> None:
    found = scored["p2__0002__out"]["packaged"]
    assert found["sim_ref"] == pytest.approx(1, abs=0.01) and found["recognised"] == 1
    assert found["id_conf"] is not None and 0.1 < found["id_conf"] < 0.3  # dlib's cosines are all above 0.8
    assert scored["p2__0002__out"]["faces"] == {"count": 1.0}


def test_a_picture_without_the_person_is_a_failure_not_a_gap(scored: dict[str, dict[str, Scores]]) -> None:
    found = scored["0003__cat"]["packaged"]
    assert found == {
        "sim_ref": 0.0,
        "sim_truth": None,  # there is no true picture
        "copy_paste": None,
        "id_conf": None,
        "recognised": 0.0,
        "top1": 0.0,
    }
    assert scored["0003__cat"]["faces"] == {"count": 0.0}


def test_one_of_two_missing_halves_the_similarity(tmp_path: Path, find: FaceFinder) -> None:
    people = (
        Person("astronaut", (save(tmp_path / "ref_1.png", an_astronaut()),)),
        Person("photographer", (save(tmp_path / "ref_2.png", photographer()),)),
    )
    picture = save(tmp_path / "out.png", darker(an_astronaut()))
    sample = Sample("out", picture, people)
    found = IdentityScorer(PackagedRecogniser(find), people)(sample)
    assert found["sim_ref"] is not None and 0.48 < found["sim_ref"] < 0.5
    assert found["recognised"] == 0 and found["top1"] == 0 and found["id_conf"] == 0
    assert CountScorer(find)(sample) == {"count": 0.0}
    # Alone she is recognised, and closer to herself than to him.
    alone = replace(sample, people=people[:1])
    found = IdentityScorer(PackagedRecogniser(find), people)(alone)
    assert found["recognised"] == 1 and found["top1"] == 1


@pytest.mark.once
def test_who_cannot_be_judged_is_named_and_left_out(bench: Path, tmp_path: Path, find: FaceFinder) -> None:
    images = tmp_path / "images"
    shutil.copytree(bench / "0001", images / "0001")
    shutil.copytree(bench / "0001", images / "0002")
    shutil.copytree(bench / "0001", images / "0003")
    save(images / "0002" / "ref_1.png", data.chelsea())
    save(images / "0003" / "ori.png", data.chelsea())
    task = folder_task(images, ScorerSettings())
    assert [sample.name for sample in task.samples] == ["0001__out"]
    assert list(task.left_out) == ["0002__out", "0003__out"]
    assert re.search("ref_1.png, a picture of 0002, shows no face.*face: false", task.left_out["0002__out"])
    carry_out(task, run.Output(tmp_path / "out"), "A test")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "2 more could not be judged" in page and "0003__out: " in page
    shutil.rmtree(images / "0001")
    with pytest.raises(NestedAttentionError, match="a picture of 0002, shows no face"):
        folder_task(images, ScorerSettings())
    cat = Person("cat", (images / "0002" / "ref_1.png",), face=False)
    sample = Sample("out", images / "0002" / "out.png", (cat,))
    assert everybody([sample]) == () and faceless([sample], find) == {}
    with pytest.raises(NestedAttentionError, match="nobody judges the pictures"):
        load_judges(ScorerSettings(), [sample], find)


class Session:
    """What onnxruntime gives for a recogniser; its answer is the mean colour of what it sees."""

    def __init__(self, path: str, providers: Sequence[str]) -> None:
        self.shape = ["n", 3, 112, 112] if "small" not in path else [1, 3, 64, 64]
        self.seen: list[np.ndarray] = []

    def get_inputs(self) -> list[Any]:
        entry = ModuleType("entry")
        entry.name, entry.shape = "pixels", self.shape  # type: ignore[attr-defined]
        return [entry]

    def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.seen.append(given["pixels"])
        return [given["pixels"].mean(axis=(2, 3))]


def test_ones_own_recogniser_sees_arcfaces_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for onnxruntime: eyes and mouth lie where ArcFace has them, RGB in −1 … 1."""
    runtime = ModuleType("onnxruntime")
    runtime.InferenceSession = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", runtime)
    file = tmp_path / "own.onnx"
    file.write_bytes(b"weights")
    art = np.zeros((112, 112, 3), np.uint8)
    art[..., 0] = 255  # red, but for white eyes
    places = [56 + 56j + 56 * place for place in ARCFACE]
    for place in places[:2]:
        art[int(place.imag), int(place.real)] = 255
    picture = save(tmp_path / "face.png", art)
    face = Face(56 + 56j, 60, 60, *places, 0.9)
    own = OnnxRecogniser(file, FaceFinder(lambda _: [face]), threshold=0.5)
    assert (own.key, own.title, own.independent) == ("own", "own", True)
    found = own(picture)
    (seen,) = own._session.seen
    assert seen.shape == (1, 3, 112, 112) and seen.max() == 1 and seen.min() == -1
    eyes = np.argwhere(seen[0, 1] > 0.5)
    assert eyes.tolist() == [[52, 38], [52, 74]] or np.abs(eyes - [[52, 38], [52, 74]]).max() <= 1
    assert found.shape == (1, 3)
    bytes_of = OnnxRecogniser(file, own.find, pixels="0 to 255")
    assert bytes_of(picture) == pytest.approx((found + 1) * 127.5, abs=1e-3)
    assert bytes_of.state != own.state
    assert own.same(found, found[0]) is True and own.same(found, -found[0]) is False
    assert own.decides and not OnnxRecogniser(file, FaceFinder(lambda _: [])).decides
    assert own.state != OnnxRecogniser(file, own.find, threshold=0.6).state  # which decides who is recognised
    assert len(OnnxRecogniser(file, FaceFinder(lambda _: []))(picture)) == 0
    with pytest.raises(NestedAttentionError, match="there is no recogniser"):
        OnnxRecogniser(tmp_path / "gone.onnx", FaceFinder(lambda _: []))
    (tmp_path / "small.onnx").write_bytes(b"")
    with pytest.raises(NestedAttentionError, match=r"reads \[1, 3, 64, 64\]; expected \(n, 3, 112, 112\)"):
        OnnxRecogniser(tmp_path / "small.onnx", FaceFinder(lambda _: []))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(NestedAttentionError, match="needs onnxruntime.*pip install onnxruntime"):
        OnnxRecogniser(file, FaceFinder(lambda _: []))


class Brightness:
    """A judge for tests that counts how often it is asked."""

    key, title, independent = "brightness", "a judge", True
    measures = (Measure("mean", "brightness", "mean of the pixels"), Measure("red", "red", "", rate=True))
    state = "1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, sample: Sample) -> Scores:
        self.asked.append(sample.name)
        values = np.array(open_picture(sample.picture))
        return {"mean": float(values.mean()) / 255, "red": float(values[0, 0, 0] > 99)}


class Painter:
    """Draws one colour, by λ and seed."""

    def __init__(self, until: int | None = None) -> None:
        self.drawn: list[str] = []
        self.until = until

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Image.Image]:
        for drawing in drawings:
            if len(self.drawn) == self.until:
                raise KeyboardInterrupt
            self.drawn.append(drawing.sample.name)
            colour = int(40 * (drawing.sample.scale or 0)) + 10 * drawing.seed
            yield Image.new("RGB", (24, 24), (colour, colour, colour))


def drawings(folder: Path, subjects: str = "ab") -> list[Drawing]:
    reference = save(folder / "reference.png", np.full((24, 24, 3), 128, np.uint8))
    return [
        Drawing(
            Sample(
                f"{who}_{scale:g}_{seed}",
                folder / "pictures" / f"{who}_{scale:g}_{seed}.png",
                (Person(who, (reference,), face=False),),
                "a <photo> & more",
                scale=scale,
            ),
            "",
            seed,
        )
        for scale in (1.0, 4.0)
        for who in subjects
        for seed in (0, 1)
    ]


def evaluated(
    folder: Path, painter: Painter, judge: Brightness, told: int = 1, subjects: str = "ab"
) -> dict[str, Any]:
    output = run.Output(folder)
    planned = drawings(folder, subjects)
    run.draw(planned, painter, {"steps": told}, output)
    samples = [drawing.sample for drawing in planned]
    scores = run.score(samples, [judge], output)
    return run.conclude(samples, [judge], scores, output, "A test")


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, Painter(until=3), Brightness())
    painter, judge = Painter(), Brightness()
    whole = evaluated(tmp_path, painter, judge)
    assert painter.drawn == [drawing.sample.name for drawing in drawings(tmp_path)][3:]
    assert len(judge.asked) == 8
    again = Brightness()
    # Cut off as a kill would: that line alone is scored again.
    text = (tmp_path / "scores.jsonl").read_text()
    (tmp_path / "scores.jsonl").write_text(text[: text.rindex('"scores"')])
    second = evaluated(tmp_path, Painter(until=0), again)
    assert again.asked == ["b_4_1"] and second == whole
    assert evaluated(tmp_path, Painter(until=0), again) == whole and again.asked == ["b_4_1"]
    # A picture that has changed is scored again, and another judge scores all.
    save(tmp_path / "pictures" / "a_1_0.png", np.zeros((24, 24, 3), np.uint8))
    evaluated(tmp_path, Painter(until=0), again)
    assert again.asked == ["b_4_1", "a_1_0"]
    other = Brightness()
    other.state = "2"
    evaluated(tmp_path, Painter(until=0), other)
    assert len(other.asked) == 8
    with pytest.raises(NestedAttentionError, match="were drawn with another steps; choose another output"):
        evaluated(tmp_path, Painter(), Brightness(), told=2)


def test_two_pictures_of_one_name_are_both_named(tmp_path: Path) -> None:
    for picture in ("ref_1.png", "out.png", "out.jpg"):
        save(tmp_path / "anna" / picture, np.zeros((32, 32, 3), np.uint8))
    said = r"anna/out.jpg and .*anna/out.png have one name, anna__out; expected a name for each picture"
    with pytest.raises(NestedAttentionError, match=said):
        run.score(read_folder(tmp_path), [Brightness()], run.Output(tmp_path))


def test_more_prompts_and_subjects_go_into_the_same_folder(tmp_path: Path) -> None:
    output = run.Output(tmp_path)
    run.draw([], Painter(), {"steps": 2, "prompts": {"prompt 1": "a {1}"}}, output)
    more = {"prompt 1": "a {1}", "prompt 2": "the {1}"}
    run.draw([], Painter(), {"steps": 2, "prompts": more, "size": [64, 64]}, output)
    run.draw([], Painter(), {"steps": 2, "prompts": {"prompt 1": "a {1}"}, "size": [64, 64]}, output)
    with pytest.raises(NestedAttentionError, match="drawn with another prompts;"):
        run.draw([], Painter(), {"steps": 2, "prompts": {"prompt 2": "some {1}"}}, output)


def test_figures_are_means_over_subjects_and_shares(tmp_path: Path) -> None:
    document = evaluated(tmp_path, Painter(), Brightness())
    low, high = document["groups"]
    assert (low["group"], low["scale"], low["people"], low["pictures"]) == ("λ = 1", 1.0, 1, 4)
    mean = low["figures"]["brightness"]["mean"]
    assert mean["mean"] == pytest.approx(45 / 255) and (mean["pictures"], mean["subjects"]) == (4, 2)
    assert low["figures"]["brightness"]["red"]["rate"] == 0
    assert high["figures"]["brightness"]["red"] == pytest.approx(
        {"rate": 1.0, "low": 0.5101, "high": 1.0, "trials": 4}, abs=1e-3
    )
    picture = document["pictures"][0]
    assert picture["picture"] == "pictures/a_1_0.png" and picture["references"] == [["reference.png"]]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in ("figures.json", "reference.png"):
        (moved / path).write_bytes((tmp_path / path).read_bytes())
    assert Path(read_figures(moved)["pictures"][0]["references"][0][0]) == moved / "reference.png"


def test_a_later_run_is_compared_picture_by_picture(tmp_path: Path) -> None:
    document = evaluated(tmp_path, Painter(), Brightness(), subjects="abc")
    before = json.loads(json.dumps(document))
    for picture in before["pictures"]:
        picture["scores"]["brightness"]["mean"] -= 0.1 if picture["group"] == "λ = 1" else 0
    before["pictures"].append({**before["pictures"][0], "name": "another"})
    rows = {(row["measure"], row["group"]): row for row in compare(document, before)}
    assert len(rows) == 4
    assert rows["mean", "λ = 1"]["difference"]["mean"] == pytest.approx(0.1)
    assert rows["mean", "λ = 1"]["verdict"] == "better"
    assert rows["mean", "λ = 4"]["verdict"] == "no difference shown"
    two = {**document, "pictures": [each for each in document["pictures"] if each["subject"] != "c"]}
    told = {row["verdict"] for row in compare(two, before)}
    assert told == {"too few subjects"}, "whatever the difference"
    assert unlike(document, before) == []
    others = json.loads(json.dumps(before))
    others["pictures"][0]["prompt"] = "an oil painting"
    fewer = {
        (row["measure"], row["group"]): row["difference"]["pictures"] for row in compare(document, others)
    }
    group = others["pictures"][0]["group"]
    assert fewer["mean", group] == rows["mean", group]["difference"]["pictures"] - 1
    assert unlike(document, others) == [f"1 of {len(document['pictures'])} pictures, whose prompts differ"]
    others["scorers"][0]["state"] = "of other weights"
    said = "a judge, then and now of other weights or settings"
    assert compare(document, others) == [] and unlike(document, others)[0] == said
    others["scorers"][0]["title"] = "another judge"
    assert compare(document, others) == [] and "another judge then" in unlike(document, others)[0]
    del others["scorers"][0]["state"]  # as figures of before are
    assert compare(document, others) == []
    others["scorers"][0]["title"] = "a judge"
    assert compare(document, others)
    worse = {(row["measure"], row["group"]): row["verdict"] for row in compare(before, document)}
    assert worse["mean", "λ = 1"] == "worse"
    path = tmp_path / "before.json"
    path.write_text(json.dumps(before))
    output, samples = run.Output(tmp_path), [drawing.sample for drawing in drawings(tmp_path, "abc")]
    scores = run.score(samples, [Brightness()], output)
    found = run.conclude(samples, [Brightness()], scores, output, "A test", path)
    assert found["against"]["title"] == "A test" and len(found["against"]["rows"]) == 4
    assert "+0.100 (+0.100 to +0.100)" in output.page.read_text(encoding="utf-8")


def test_groups_in_a_circle_are_too_few_to_compare(tmp_path: Path) -> None:
    """Four people, each beside the one who follows: four groups, two of which share nobody."""
    people = [drawing.sample.people[0] for drawing in drawings(tmp_path, "abcd")[::2][:4]]
    samples = [
        Sample(f"{n}", tmp_path / f"{n}.png", (people[n], people[(n + 1) % 4]), scale=1.0) for n in range(4)
    ]
    now, before = (
        summarise(samples, [Brightness()], {s.name: {"brightness": score} for s in samples}, "", tmp_path)
        for score in ({"mean": 0.9, "red": None}, {"mean": 0.1, "red": None})
    )
    assert now["groups"][0]["figures"]["brightness"]["mean"]["low"] is None
    (row,) = compare(now, before)
    assert row["difference"]["mean"] == pytest.approx(0.8) and row["verdict"] == "too few subjects"


def test_a_recogniser_is_the_same_judge_of_other_people(tmp_path: Path) -> None:
    """And another one with other weights, though both are called alike."""
    people = [drawing.sample.people for drawing in drawings(tmp_path)[::2]]
    ones: list[Any] = [SimpleNamespace(key="own", title="own", independent=True, state=s) for s in "aab"]
    judges = [IdentityScorer(*each) for each in zip(ones, (people[0], people[1], people[1]), strict=True)]
    first, same, other = (summarise([], [judge], {}, "", tmp_path)["scorers"][0] for judge in judges)
    assert judges[0].state != judges[1].state and first == same != other


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read as JSON"), ("[]", "format 'list'"), ("{}", "format None")]
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(NestedAttentionError, match=said):
        read_figures(tmp_path)
    with pytest.raises(NestedAttentionError, match="there is no file"):
        read_figures(tmp_path / "gone")


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(tmp_path: Path) -> None:
    document = evaluated(tmp_path, Painter(), Brightness(), subjects="abc")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 9 and all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert "<script" not in page and "url(" not in page
    assert "a &lt;photo&gt; &amp; more" in page and "<photo>" not in page
    assert page.count("<svg") == 2  # each measure over λ
    assert "0 independent recognisers:" in page
    assert "100 % (61–100)" in page and "0.176 (" in page
    samples = [replace(drawing.sample, scale=None) for drawing in drawings(tmp_path, "abc")]
    document = summarise(
        samples, [Brightness()], {s.name: {"brightness": Brightness()(s)} for s in samples}, "", tmp_path
    )
    assert "<svg" not in write_page({**document, "date": "", "left_out": {}}, samples)


def test_two_independent_recognisers_make_a_headline(tmp_path: Path) -> None:
    """Side by side, by the truth only where both have it; one that is not independent stays out of it."""
    own, other, seen = Brightness(), Brightness(), Brightness()
    other.key, other.title = "other", "another <judge>"
    seen.key, seen.title, seen.independent = "seen", "the encoder's own", False
    similarity = (
        Measure("sim_ref", "identity, to the reference", ""),
        Measure("sim_truth", "to the truth", ""),
    )
    for judge in (own, other, seen):
        judge.measures = similarity
    samples = [drawing.sample for drawing in drawings(tmp_path, "abc")]
    scores: dict[str, dict[str, Scores]] = {
        sample.name: {
            judge.key: {"sim_ref": 0.25, "sim_truth": 0.5 if judge is own else None}
            for judge in (own, other, seen)
        }
        for sample in samples
    }
    (tmp_path / "pictures").mkdir()
    for sample in samples:
        save(sample.picture, np.zeros((24, 24, 3), np.uint8))
    run.conclude(samples, [own, other, seen], scores, run.Output(tmp_path), "A test")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    headline = page[page.index("Headline: identity, to the reference") : page.index("<h2>a judge")]
    assert "<th>a judge</th><th>another &lt;judge&gt;</th>" in headline and "own" not in headline
    assert headline.count("0.250 (0.250 to 0.250)") == 4
    for each in scores.values():
        each["other"]["sim_truth"] = 0.75
    run.conclude(samples, [own, other, seen], scores, run.Output(tmp_path), "A test")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Headline: to the truth" in page and "0.750 (0.750 to 0.750)" in page


def test_what_went_wrong_is_listed(tmp_path: Path) -> None:
    evaluated(tmp_path, Painter(), Brightness())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "4 of 8 pictures" in page and page.count("a judge: not red") == 4


def test_a_charts_points_lie_in_it_and_its_ticks_are_round() -> None:
    drawn = chart("t", "λ", [Point(1, 0.2, 0.1, 0.3), Point(4, 0.4, 0.35, 0.5)])
    assert [text for _, text in drawn.x_ticks] == ["1", "2", "3", "4"]
    assert [text for _, text in drawn.y_ticks] == ["0.1", "0.2", "0.3", "0.4", "0.5"]
    for x, y, _ in drawn.points:
        assert drawn.left <= x <= drawn.right and drawn.top <= y <= drawn.bottom
    (_, first, _), (_, second, _) = drawn.points
    assert second < first  # larger is higher
    assert len(drawn.band.split()) == 4
    shares = chart("t", "λ", [Point(1, 1.0, 0.6, 1.0), Point(2, 0.9, 0.5, 1.0)], share=True)
    assert [text for _, text in shares.y_ticks] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    assert shares.points[0][1] == shares.top and shares.y_ticks[0][0] == shares.bottom
    flat = chart("t", "λ", [Point(1, 0.5), Point(1, 0.5)])
    assert flat.band == "" and flat.points[0] == flat.points[1]
    with pytest.raises(ValueError, match="at least one point"):
        chart("t", "λ", [])


def test_two_judges_of_one_name_are_refused() -> None:
    with pytest.raises(NestedAttentionError, match="two scorers are called 'brightness'"):
        check_keys([Brightness(), Brightness()])


def test_two_judges_of_one_name_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    painter, planned = Painter(), drawings(tmp_path)
    samples = [drawing.sample for drawing in planned]
    with pytest.raises(NestedAttentionError, match="two scorers are called 'brightness'"):
        carry_out(Task(samples, [Brightness(), Brightness()], {}, planned, painter), run.Output(tmp_path), "")
    assert painter.drawn == []


def test_pictures_are_read_upright_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[274] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 30)
    (tmp_path / "half.png").write_bytes((tmp_path / "clear.png").read_bytes()[:40])
    Image.fromarray(np.zeros((20, 30), np.float32)).save(tmp_path / "float.tiff")
    for name, said in (
        ("half.png", "half.png cannot be read as a picture"),
        ("float.tiff", "floating-point numbers; save it with 8 or 16 bits"),
        ("gone.png", "there is no picture"),
    ):
        with pytest.raises(NestedAttentionError, match=said):
            open_picture(tmp_path / name)


def entries(*found: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, kind, count, value)."""
    lines = b"".join(struct.pack("<HHI4s", *each) for each in found)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(found)) + lines + b"\0" * 4


TURNED = (274, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (entries(TURNED, (282, 2, 3, b"72\0\0")), (30, 40)),
        (entries((271, 11, 1, struct.pack("<f", 1.5)), TURNED), (30, 40)),
        (entries((256, 11, 1, struct.pack("<f", 40)), TURNED), (30, 40)),
        (b"Exif\0\0no TIFF", (40, 30)),
    ],
    ids=["a resolution that is text", "a maker that is a number", "a width that is none", "no entries"],
)
def test_odd_exif_entries_stop_nothing(tmp_path: Path, exif: bytes, size: tuple[int, int]) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "odd.jpg", exif=exif)
    assert open_picture(tmp_path / "odd.jpg").size == size


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, turn: int) -> None:
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    exif = picture.getexif()
    exif[274] = turn
    for ending in ("png", "webp", "tiff"):
        path = tmp_path / f"{turn}.{ending}"
        picture.save(path, exif=exif, lossless=True)
        with Image.open(path) as opened:
            assert open_picture(path).tobytes() == ImageOps.exif_transpose(opened).convert("RGB").tobytes()


def test_whatever_pillow_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trip(path: Path) -> None:
        raise AttributeError("'NoneType' object has no attribute 'read'")

    monkeypatch.setattr(Image, "open", trip)
    with pytest.raises(NestedAttentionError, match="odd.jpg cannot be read as a picture .'NoneType'"):
        open_picture(tmp_path / "odd.jpg")


def test_few_decoded_pictures_are_kept(tmp_path: Path) -> None:
    """One of a camera takes a quarter of a gigabyte."""
    paths = [save(tmp_path / f"{n}.png", np.full((32, 32, 3), n, np.uint8)) for n in range(3)]
    first = weakref.ref(read_picture(paths[0]))
    assert first() is not None
    for path in paths[1:]:
        read_picture(path)
    assert first() is None


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, ending: str) -> None:
    shades = np.linspace(0, 65_535, 600).astype(np.uint16).reshape(20, 30)
    Image.fromarray(shades).save(tmp_path / f"grey.{ending}")
    found = np.array(open_picture(tmp_path / f"grey.{ending}"))
    assert np.abs(found - shades[..., None] / 257).max() <= 0.5
    Image.fromarray(np.arange(200, dtype=np.int32).reshape(10, 20)).save(tmp_path / "bytes.tiff")
    assert np.array(open_picture(tmp_path / "bytes.tiff")).max() == 199  # 8 bits in a wider file


@pytest.mark.once
def test_photographs_from_a_folder_to_the_page(bench: Path, tmp_path: Path) -> None:
    """What a user of any other workflow types."""
    images = tmp_path / "images"
    shutil.copytree(bench, images, ignore=shutil.ignore_patterns("p2"))
    found = CliRunner().invoke(
        app, ["evaluate", "--images", str(images), "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [group["group"] for group in document["groups"]] == ["one subject"]
    one = document["groups"][0]["figures"]["packaged"]
    assert one["recognised"]["rate"] == 0.5 and one["sim_ref"]["mean"] == pytest.approx(0.5)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 independent recogniser:" in page and "ResNet): not recognised" in page
    missing = CliRunner().invoke(app, ["evaluate", "--images", str(tmp_path / "gone")])
    assert missing.exit_code == 1 and "there is no folder" in missing.output
    assert CliRunner().invoke(app, ["evaluate"]).exit_code == 1


def test_smaller_pictures_of_one_person_stay_recognisable(tmp_path: Path, find: FaceFinder) -> None:
    """A descriptor does not depend on the size of the picture: the packaged detector and chip see to it."""
    paths = [save(tmp_path / "a.png", data.astronaut()), save(tmp_path / "b.png", an_astronaut())]
    first, second = (PackagedRecogniser(find)(path)[0] for path in paths)
    assert isinstance(first, Tensor) and float(torch.dist(first, second)) < 0.25
