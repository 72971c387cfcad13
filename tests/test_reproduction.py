"""The paper's comparisons: runs differ in nothing but what they are about, what is complete is not repeated,
and every sentence of the page follows from figures of single cases."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from random_world import random_judges
from torch import Tensor
from typer.testing import CliRunner

from nested_attention.avatars.figures.cases import true_drawings
from nested_attention.avatars.figures.judges import NEAREST, Judges
from nested_attention.avatars.figures.reproduction import command, estimate, page, runs
from nested_attention.avatars.figures.reproduction.claims import CLAIMS, Claim, Shown
from nested_attention.avatars.figures.reproduction.drawings import KINDS, Bench
from nested_attention.avatars.figures.reproduction.estimate import Left
from nested_attention.avatars.figures.reproduction.findings import Summary, find
from nested_attention.avatars.figures.reproduction.matrix import (
    ALPHAS,
    COUNTS,
    DEPARTURES,
    NOUNS,
    QUESTIONS,
    SEEDS,
    Drawing,
    Run,
    Selection,
    Size,
    curve,
    plan,
)
from nested_attention.avatars.figures.reproduction.measures import MEASURES
from nested_attention.avatars.figures.reproduction.published import (
    FIGURES,
    PAGE,
    read_summary,
    shown_before,
    take_over,
)
from nested_attention.avatars.figures.reproduction.runs import Place, new_encoder, train
from nested_attention.avatars.models.nearest import NearestDrawing
from nested_attention.avatars.models.world import Attached, Sampling, World, attention_of
from nested_attention.avatars.train import encoders
from nested_attention.avatars.train.data import draw_both
from nested_attention.avatars.train.encoders import EncoderData, encode_data
from nested_attention.cli.app import app
from nested_attention.errors import NestedAttentionError
from nested_attention.evaluation.charts import Point, drawing
from nested_attention.evaluation.statistics import mcnemar
from nested_attention.training.mechanisms import MECHANISMS, mechanism
from nested_attention.training.stopping import Stopped

TINY = Size(steps=1, batch=2, reading=2, pictures=6, cases=4, sampling=Sampling(steps=1, batch=4))


@pytest.fixture(scope="module")
def judges() -> Judges:
    return random_judges()


@pytest.fixture(scope="module")
def world(judges: Judges) -> World:
    return judges.world


@pytest.fixture(scope="module")
def examples(world: World) -> dict[str, list[EncoderData]]:
    """Pictures of one figure, and half as many of two."""
    return {word: encode_data(world, draw_both(word, 6, 9, workers=1)) for word in ("person", "pet")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "precision").write_text("torch.float32")
    return Place(tmp_path, tmp_path / "drawn", TINY)


def test_the_matrix_holds_what_was_asked_for() -> None:
    wanted = plan()
    names = [run.name for run in wanted]
    assert len(set(names)) == len(names)
    for seed in SEEDS:
        assert len(SEEDS) == 3
        for name in MECHANISMS:
            assert set(curve(name)) <= set(wanted[Run(mechanism=name, seed=seed)])
        for name in ("nested", "decoupled"):
            pets = wanted[Run(mechanism=name, words=("pet",), seed=seed)]
            assert any(each.kind == "pair" for each in pets)
    assert {each.value for each in wanted[Run()] if each.kind == "references"} == {2, 4}
    assert {run.alpha for run in wanted} == set(ALPHAS) == {None, 1.0, 2.0, 3.0}
    assert {run.queries for run in wanted} == set(COUNTS) == {4, 16, 32, 64}
    assert {each for run in wanted for each in run.departures} == set(DEPARTURES)
    assert all(len(run.departures) <= 1 for run in wanted)
    assert Run(words=("person", "pet")) in wanted
    kinds = {each.kind for asked in wanted.values() for each in asked}
    assert kinds == set(KINDS)
    assert Size().steps >= 5_000 and Size().real and Size(steps=8_000, cases=300).real
    assert not any(size.real for size in (TINY, Size(steps=4_999), Size(cases=100), Size(batch=16)))
    seeds = [run.seed for run in wanted]
    assert seeds == sorted(seeds)  # one seed of everything before the next
    for run, asked in wanted.items():
        if any(each.kind == "pair" for each in asked):
            assert names.index(run.partner.name) < names.index(run.name)
    # The headline departs from the paper's loss in nothing.
    assert all(not run.departures for run, _ in QUESTIONS[0].asked)


def test_a_selection_is_a_part_of_the_matrix() -> None:
    assert list(plan(Selection(("mechanisms",), ("global",), (1,)))) == [Run(mechanism="global", seed=1)]
    assert list(plan(Selection(("pair",), ("nested",), (0,)))) == [Run(), Run(words=("pet",))]
    with pytest.raises(NestedAttentionError, match="no such question: pairs. There are mechanisms, pair, "):
        Selection(("pairs",))
    with pytest.raises(NestedAttentionError, match="no such mechanism: ipa. There are nested, decoupled"):
        Selection(mechanisms=("ipa",))
    with pytest.raises(NestedAttentionError, match="no such seed: 7"):
        Selection(seeds=(7,))


def flat(state: dict[str, Tensor], part: str) -> Tensor:
    return torch.cat([value.flatten() for name, value in state.items() if part in name])


def test_mechanisms_are_trained_alike_but_for_the_mechanism(
    place: Place, world: World, examples: dict[str, list[EncoderData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After no step all encoders of a seed are one; in the first step all read the same examples, noise and
    timesteps; after it they differ, and what a mechanism does not use is as it was."""
    read: dict[str, list[Tensor]] = {}
    losses = encoders.latent_losses

    def spy(predict: Any, scheduler: Any, batch: Any, noise: Any) -> Any:
        assert bool((batch["loss_weight"] == 1).all())
        read[name] = [batch["row"], batch["latents"], batch["features"], noise["latent"], noise["timestep"]]
        return losses(predict, scheduler, batch, noise)

    monkeypatch.setattr(encoders, "latent_losses", spy)
    after = {}
    for name in MECHANISMS:
        run = Run(mechanism=name)
        runs.read(place, world, run)
        start = runs.start_of(place, world, run).state_dict()
        for key, value in runs.start_of(place, world, Run()).state_dict().items():
            assert torch.equal(start[key], value)
        train(place, world, run, examples.__getitem__)
        after[name] = runs.load_encoder(place, world, run).state_dict()
        assert not torch.equal(flat(after[name], "qformer"), flat(start, "qformer"))
        for part in mechanism(name).unused:
            assert torch.equal(flat(after[name], part), flat(start, part))
        training = place.read(run)["training"]
        assert training["steps"] == 1 and len(training["losses"]) == 1
        assert training["parameters"] == sum(
            value.numel()
            for key, value in start.items()
            if not set(mechanism(name).unused) & set(key.split("."))
        )
    for name in MECHANISMS:
        assert all(torch.equal(a, b) for a, b in zip(read[name], read["nested"], strict=True))
    parts = [flat(state, "qformer") for state in after.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(parts) for b in parts[:i])
    other = new_encoder(world, Run(seed=1)).state_dict()
    assert not torch.equal(flat(other, "qformer"), flat(new_encoder(world, Run()).state_dict(), "qformer"))


def test_what_a_run_is_about_reaches_its_encoder_and_its_loss(
    world: World, examples: dict[str, list[EncoderData]]
) -> None:
    config = new_encoder(world, Run(alpha=None, queries=4)).config
    assert (config.alpha, config.num_queries) == (None, 4)
    assert new_encoder(world, Run(mechanism="decoupled")).config.injection == "decoupled"
    data = examples["person"]

    def losses(*departures: str) -> Any:
        return runs.with_losses(Run(departures=departures), data)

    plain, noise = losses()
    assert all(bool((each.loss_weight == 1).all()) for each in plain)
    told = [noise(np.random.default_rng(i))["timestep"] for i in range(500)]
    dense = [losses("timesteps")[1](np.random.default_rng(i))["timestep"] for i in range(500)]
    assert np.mean(told) == pytest.approx(500, abs=40) and np.mean(dense) > np.mean(told) + 40
    for weighted, each in zip(losses("weights")[0], data, strict=True):
        assert torch.equal(weighted.loss_weight, each.loss_weight)
    alone, together = runs.joined([examples["person"], examples["pet"]])
    assert (alone.latents.shape, together.latents.shape) == ((12, 12, 16, 16), (6, 12, 16, 24))
    assert torch.equal(together.mask[3:], examples["pet"][1].mask)


def test_examples_are_encoded_once_and_kept(
    place: Place, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.prepare_data(place, world, ["pet"], workers=1)
    made = runs.prepared(place, world, "pet")
    monkeypatch.setattr(runs, "encode_data", None)
    for one, other in zip(made, runs.prepared(place, world, "pet"), strict=True):
        assert all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())
    assert [len(each.latents) for each in made] == [6, 3]


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    tmp_path: Path, world: World, examples: dict[str, list[EncoderData]]
) -> None:
    size, run = replace(TINY, steps=3), Run(mechanism="multiple")
    whole, parted = (Place(tmp_path / name, tmp_path, size) for name in ("whole", "parted"))
    for place in (whole, parted):
        place.folder.mkdir()
        (place.folder / "precision").write_text("torch.float32")
        runs.read(place, world, run)
    assert parted.steps(run) == 0
    with pytest.raises(Stopped, match="multiple-person-seed-0: stopped at the end of its time after step 1"):
        train(parted, world, run, examples.__getitem__, deadline=time.monotonic())
    assert parted.steps(run) == 1 and not parted.weights(run).exists()
    train(parted, world, run, examples.__getitem__)
    train(whole, world, run, examples.__getitem__)
    assert parted.steps(run) == 3
    assert not list(parted.run_folder(run).glob("step-*"))  # the encoder is enough
    one, other = (runs.load_encoder(place, world, run).state_dict() for place in (whole, parted))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_q_former_learns_to_read_once_for_all_that_begin_with_it(place: Place, world: World) -> None:
    both = Run(words=("person", "pet"), queries=4)
    with pytest.raises(Stopped, match="reading-person-pet-queries-4-seed-0: stopped at the end of its time"):
        runs.read(place, world, both, deadline=time.monotonic())
    assert not place.reader(both).exists()
    runs.read(place, world, both)  # goes on
    written = place.reader(both).stat().st_mtime_ns
    runs.read(place, world, replace(both, mechanism="decoupled"))
    assert place.reader(both).stat().st_mtime_ns == written
    assert [path.name for path in place.reader(both).parent.iterdir()] == [f"{both.reader}.safetensors"]
    random, start = (new_encoder(world, both).state_dict(), runs.start_of(place, world, both).state_dict())
    for name, value in start.items():
        assert torch.equal(value, random[name]) == (not name.startswith("qformer.")), name
    unread = replace(both, scratch=True)
    runs.read(place, world, unread)
    assert not torch.equal(
        flat(start, "latents"), flat(runs.start_of(place, world, unread).state_dict(), "latents")
    )


def test_a_loss_that_is_not_finite_stops_the_run_by_name(
    place: Place, world: World, examples: dict[str, list[EncoderData]]
) -> None:
    broken = [replace(each, latents=each.latents * torch.nan) for each in examples["person"]]
    runs.read(place, world, Run())
    with pytest.raises(NestedAttentionError, match="simple-person-seed-0: `denoise` was nan at step 1"):
        train(place, world, Run(mechanism="simple"), lambda word: broken)
    assert not place.weights(Run(mechanism="simple")).exists()


def test_runs_of_another_world_or_size_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings go on in their own world; other cases and judges ask for other figures of the same runs."""
    one = Place.of(tmp_path, TINY)
    assert Place.of(tmp_path, TINY) == one
    assert Place.of(tmp_path, replace(TINY, steps=2)).folder != one.folder
    cases = Place.of(tmp_path, replace(TINY, cases=5))
    assert cases.folder == one.folder and cases.drawn != one.drawn
    hashes = runs.world_hashes()
    for name, kept in (("scorer_prompt.safetensors", True), ("unet.safetensors", False), ("drawings", False)):
        monkeypatch.setattr(runs, "world_hashes", lambda folder, name=name: {**hashes, name: "another"})
        other = Place.of(tmp_path, TINY)
        assert (other.folder == one.folder) == kept and other.drawn != one.drawn


def untrained(place: Place, world: World, run: Run) -> None:
    """A run whose training left its encoder as it was."""
    place.run_folder(run).mkdir(parents=True)
    runs.save_file(new_encoder(world, run).state_dict(), place.weights(run))


def test_pictures_are_compared_with_every_case_as_the_recogniser_compares(
    place: Place, judges: Judges
) -> None:
    """What is kept for all runs is what the judge itself makes of each prompt."""
    bench, words = Bench(judges, place), ("person", "pet")
    cases, rgb = bench.cases(words), true_drawings(bench.cases(words))
    identities = [case.figure("pet").identity for case in cases]
    wanted = judges.recognisers["pet"].similarity(rgb, [case.shown("pet") for case in cases], identities)
    torch.testing.assert_close(bench.similarity(rgb, words, "pet"), wanted)
    again = Bench(replace(judges, recognisers={}), place)
    assert np.array_equal(again.looks(words, "pet"), bench.looks(words, "pet"))


def test_every_kind_of_drawing_gives_figures_of_every_case(place: Place, judges: Judges) -> None:
    bench, run = Bench(judges, place), Run(mechanism="global")
    untrained(place, judges.world, run)
    base = bench.base(("person",))
    asked = {
        "alone": Drawing(value=2.0),
        "references": Drawing("references", value=2),
        "mixed": Drawing("mixed", value=0.5),
        "noun": Drawing("noun", noun="child"),
        "error": Drawing("error"),
    }
    assert {*asked, "pair"} == KINDS.keys()  # a pair is drawn where the command is tested
    for kind, what in asked.items():
        found = bench.draw(run, what)
        told = [value for value in found.values() if not isinstance(value, dict)]
        told += list(found.get("prompt", {}).values())
        assert told and {len(value) for value in told} == {TINY.cases}, kind
        if kind == "noun":  # the base model's picture there is of another word
            assert "outside" not in found and {len(each) for each in found["fits"].values()} == {TINY.cases}
        if kind != "error":
            rgb = bench.pictures(f"{run.name} {what.key}")
            assert rgb is not None and len(rgb) == TINY.cases and not np.array_equal(rgb, base)
    off = bench.attached(
        run, np.stack([c.reference("person") for c in bench.cases(("person",))]), "person", 0
    )
    with bench.on_device([off]):
        drawn = judges.world.generate(
            [c.prompt for c in bench.cases(("person",))],
            [c.seed for c in bench.cases(("person",))],
            [off],
            TINY.sampling,
        )
    assert np.array_equal(drawn, base)  # at 0 the base model's pictures, byte for byte


def test_compare_makes_what_is_missing_and_says_what_is_left(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judges, "load", lambda folder: judges)
    request = command.Request(root=tmp_path, selection=Selection(("pair",), ("nested",), (0,)), size=TINY)
    place, said = request.place, list[str]()
    place.folder.mkdir(parents=True)
    (place.folder / "precision").write_text("torch.float32")
    people, pets = command.what_is_left(request)
    assert (people.run, people.steps, people.drawings) == (Run(), 1, ())  # trained for the pair alone
    assert (pets.run, pets.steps, len(pets.drawings)) == (Run(words=("pet",)), 1, 3)
    assert pets.training > 0 and pets.drawing > 0 and people.drawing == 0
    assert pets.state == "1 steps, 3 drawings left"
    assert not command.compare(replace(request, minutes=0), said.append) and not said
    assert command.compare(request, said.append)
    assert sum("steps 0 to 1" in line for line in said) == 2 and len(said) == 7
    assert sum(line.startswith("reading-") and "2 steps" in line for line in said) == 2
    assert [each.state for each in command.what_is_left(request)] == ["complete", "complete"]
    document = json.loads(place.figures(pets.run).read_text())
    assert set(document["drawn"]) == {"alone pet 1", "pair pet 1", "pair pet 2"}
    assert {len(document["drawn"]["pair pet 1"][name]) for name in ("identity", "person", "pet")} == {4}
    before = place.figures(pets.run).stat().st_mtime_ns
    said.clear()
    assert command.compare(request, said.append) and not said  # nothing is made twice
    assert place.figures(pets.run).stat().st_mtime_ns == before

    # An interrupted one goes on with the drawing that is missing.
    del document["drawn"]["pair pet 2"]
    place.write(pets.run, document)
    assert command.compare(request, said.append)
    assert len(said) == 1 and said[0].startswith("nested-pet-seed-0: pair pet 2, identity ")

    path = command.publish(request)
    assert path == place.drawn / "reproduction.md"  # a trial is not put into the documentation
    text = path.read_text()
    assert "A trial of the command at a small size: nothing here is a result" in text
    assert f"So far 2 of {len(plan())} runs are trained; drawn in full: 1." in text
    assert "| Figure 12 | A person and a pet are recognised" in text and "**not measured**" in text
    assert "| Nested Attention | person and pet, λ = 2 | 1 |" in text
    figures = path.parent / page.PICTURES / FIGURES
    assert page.written(read_summary(figures.parent)) == text  # the page follows from the figures
    # Of two cases: the pet with what was drawn of it, and the pair with what was drawn of both.
    with Image.open(path.parent / page.PICTURES / "pair.png") as sheet:
        assert sheet.height > 6 * 128 and sheet.width > 3 * 128


def test_the_time_of_a_picture_holds_that_of_its_scores(place: Place, judges: Judges) -> None:
    compared: list[tuple[int, int]] = []

    class Slow(NearestDrawing):
        def similarity(self, rgb: np.ndarray, shown: Any, candidates: Any) -> Tensor:
            compared.append((len(rgb), len(candidates)))
            time.sleep(0.4)
            return torch.zeros(len(rgb), len(candidates))

    few = replace(place, size=replace(TINY, sampling=Sampling(steps=1, batch=2)))
    assert estimate.picture_seconds(Bench(replace(judges, nearest=Slow()), few)) >= 0.2  # two in 0.4 s
    assert set(compared) == {(2, TINY.cases)}  # with all that they are compared with


def test_published_figures_spare_their_runs(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, a published run is complete; what is asked of it besides costs its training and its
    partner's."""
    monkeypatch.setattr(Judges, "load", lambda folder: judges)

    def asked(name: str) -> command.Request:
        own = command.Request(
            root=tmp_path / name, selection=Selection(("pair",), ("nested",), (0,)), size=TINY, published=out
        )
        own.place.folder.mkdir(parents=True)
        (own.place.folder / "precision").write_text("torch.float32")
        return own

    out = tmp_path / "docs" / page.PICTURES
    first, said = asked("first"), list[str]()
    assert command.compare(first, said.append) and said
    text = command.publish(first, out.parent).read_text()
    sheet = (out / "pair.png").read_bytes()

    second, heard = asked("second"), list[str]()
    assert [each.state for each in command.what_is_left(second)] == ["complete", "complete"]
    assert command.compare(second, heard.append) and not heard
    assert second.place.references.read_bytes() == first.place.references.read_bytes()
    assert command.publish(second, out.parent).read_text() == text
    assert (out / "pair.png").read_bytes() == sheet  # of pictures that were not drawn here
    training = replace(second, draws=False)
    assert command.compare(training, heard.append) and not heard

    document = json.loads((out / FIGURES).read_text())
    assert document["place"] == first.place.name
    del document["runs"]["nested-pet-seed-0"]["drawn"]["pair pet 2"]
    (out / FIGURES).write_text(json.dumps(document))
    third = asked("third")
    states = [each.state for each in command.what_is_left(third)]
    # The partner is trained again: its figures were taken over, its weights were not.
    assert states == ["1 steps, 0 drawings left", "1 steps, 1 drawings left"]
    assert command.compare(third, heard.append)
    assert sum("steps 0 to 1" in line for line in heard) == 2  # its partner is trained for the pair
    assert [line for line in heard if "pair" in line] == [line for line in heard if "pair pet 2" in line]

    # Another size is another comparison, and so are other judges.
    (out / FIGURES).write_text(json.dumps({**document, "place": "another/one"}))
    fourth = asked("fourth")
    take_over(fourth.place, out)
    assert not fourth.place.drawn.exists() and shown_before(fourth.place, out) == {}


def test_training_alone_needs_no_judges_and_is_drawn_later(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Selection(("mixing",))
    request = command.Request(root=tmp_path, selection=asked, size=TINY, draws=False)
    place, said = request.place, list[str]()
    place.folder.mkdir(parents=True)
    (place.folder / "precision").write_text("torch.float32")
    monkeypatch.setattr(command, "load_world", lambda folder: judges.world)
    monkeypatch.setattr(Judges, "load", None)  # a machine that only trains has none
    assert command.compare(request, said.append)
    wanted = ["reading-person-queries-32-seed-0", "nested-person-seed-0"]
    assert [line.split(":")[0] for line in said] == wanted
    assert place.weights(Run()).exists() and not place.figures(Run()).exists()
    assert command.compare(request, said.append) and len(said) == len(wanted)
    monkeypatch.setattr(Judges, "load", lambda folder: judges)
    drawn = replace(request, draws=True)
    assert not command.complete(place, Run(), drawn.plan[Run()])
    assert command.compare(drawn, said.append)
    assert sum("steps 0 to" in line for line in said) == 1  # it is not trained again
    assert set(json.loads(place.figures(Run()).read_text())["drawn"]) == {
        "mixed person 0",
        "mixed person 0.5",
    }


def test_all_pictures_are_drawn_before_any_is_encoded(
    place: Place, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def drawing(word: str, *args: Any, **more: Any) -> Any:
        order.append(f"draw {word}")
        return draw_both(word, *args, **more)

    def encoding(*args: Any) -> Any:
        order.append("encode")
        return encode_data(*args)

    monkeypatch.setattr(runs, "draw_both", drawing)
    monkeypatch.setattr(runs, "encode_data", encoding)
    other = Place(place.folder / "other", place.drawn, TINY)
    runs.prepare_data(other, world, ("person", "pet"), workers=1)
    assert order == ["draw person", "draw pet", "encode", "encode"]
    runs.prepare_data(other, world, ("person", "pet"), workers=1)
    assert len(order) == 4


def test_subjects_of_one_picture_have_one_mechanism(judges: Judges) -> None:
    one, other = (
        Attached(judges.encoders["person"], torch.zeros(1, 1, 1), "person", mechanism=mechanism(name))
        for name in ("simple", "multiple")
    )
    assert attention_of([one, one]) is MECHANISMS["simple"].attention
    assert attention_of([]) is None
    with pytest.raises(ValueError, match="2 mechanisms in one picture"):
        attention_of([one, other])


def hits(share: float, number: int, shift: int = 0) -> str:
    """A string in which that share of cases hits."""
    made = ["1" if i < round(share * number) else "0" for i in range(number)]
    return "".join(made[shift:] + made[:shift])


def summary(identity: dict[str, float], prompt: dict[str, float], number: int = 200) -> Summary:
    """The mechanisms' figures at every value of their controls. identity: the rate of a mechanism; prompt: of
    a mechanism, or of one at a value."""
    found = {}
    for seed in SEEDS:
        for name, rate in identity.items():
            drawn = {
                each.key: {
                    "identity": hits(rate, number, 3 * seed),
                    "prompt": {"scene": hits(prompt.get(f"{name} {each.value:g}", prompt[name]), number)},
                    "outside": [prompt[name]] * number,
                }
                for each in curve(name)
            }
            found[Run(mechanism=name, seed=seed).name] = {"drawn": drawn, "training": {}}
    base = {"prompt": {"scene": hits(0.9, number)}, "identity": hits(0.0, number)}
    return Summary(Size(cases=number), found, {"person": {"base": base}})


def claims(question: str, measure: str) -> list[Claim]:
    return [c for c in CLAIMS if c.question == question and c.measure == measure]


def test_findings_agree_disagree_and_say_when_nothing_is_shown() -> None:
    identity = {"nested": 0.6, "decoupled": 0.4, "simple": 0.6, "global": 0.8}
    found = summary(identity, dict.fromkeys(identity, 0.9))
    best = {c.second.run.mechanism: find(found, c) for c in claims("mechanisms", "identity")[:4] if c.second}
    assert {name: each.verdict for name, each in best.items()} == {
        "decoupled": "agrees",
        "simple": "cannot be told",
        "global": "disagrees",
        "multiple": "not measured",
    }
    decoupled, same = best["decoupled"], best["simple"]
    assert decoupled.difference is not None and len(decoupled.seeds) == len(decoupled.tests) == 3
    assert decoupled.means[0] > decoupled.means[1] and all(test["p"] < 0.001 for test in decoupled.tests)
    assert decoupled.tests[0]["only_second"] == 0
    assert same.difference is not None and same.difference["mean"] == 0
    # At one seed McNemar's test is asked too, and its smallest difference is told.
    alone = replace(found, runs={name: each for name, each in found.runs.items() if name.endswith("-0")})
    single = find(alone, claims("mechanisms", "identity")[1])
    assert len(single.tests) == 1 and single.smallest == pytest.approx(6 / 150)
    few = replace(alone, runs=dict(alone.runs))
    few.runs["decoupled-person-seed-0"] = {
        "drawn": {
            each.key: {**alone.runs["nested-person-seed-0"]["drawn"]["alone person 1"]}
            for each in curve("decoupled")
        }
    }
    told = few.runs["decoupled-person-seed-0"]["drawn"]
    for each in told.values():  # four cases fewer, and none more: too few to be more than chance
        each["identity"] = "".join("0" if 60 <= i < 64 else hit for i, hit in enumerate(each["identity"]))
    small = find(few, claims("mechanisms", "identity")[0])
    assert small.tests[0]["only_first"] == 4 and small.verdict == "cannot be told"


def test_a_trade_off_is_looked_at_where_the_prompt_is_kept() -> None:
    """Of the values that cost little of the prompt on the development cases, the one with most identity."""
    number = 200
    found = summary({"nested": 0.5}, {"nested": 0.9, "nested 3": 0.5, "nested 4": 0.5}, number)
    for seed in SEEDS:
        told = found.runs[Run(seed=seed).name]["drawn"]
        for value, rate in ((2, 0.7), (3, 0.9), (4, 1.0)):
            told[f"alone person {value}"]["identity"] = hits(1.0, round(rate * 40)).ljust(number, "0")
        told["alone person 1"]["identity"] = "0" * number
        for each in told.values():  # of the first quarter, as of the rest
            scene = each["prompt"]["scene"]
            each["prompt"]["scene"] = "".join(scene[(i * 37) % number] for i in range(number))
        told["alone person 1.5"]["identity"] = told["alone person 2.5"]["identity"] = "1" * 10 + "0" * (
            number - 10
        )
    base = found.references["person"]["base"]
    base["prompt"]["scene"] = "".join(base["prompt"]["scene"][(i * 37) % number] for i in range(number))
    chosen = found.chosen(Run(), SEEDS)
    assert chosen is not None and chosen.drawing.value == 2 and chosen.keeps
    claim = Claim(
        "mechanisms",
        "x",
        "y",
        Shown(Run(), None, "best"),
        Shown(Run(), Drawing(), "λ = 1"),
        "identity",
        "higher",
    )
    assert find(found, claim).values == ("best (λ = 2)", "λ = 1")


def test_who_loses_the_prompt_at_every_value_is_behind() -> None:
    """However many are recognised: a picture that follows the reference alone is no trade-off."""
    identity = {"nested": 0.5, "decoupled": 0.9}
    found = summary(identity, {"nested": 0.9, "decoupled": 0.4, "decoupled 0.7": 0.6})
    for document in (*(each["drawn"] for each in found.runs.values()), found.references["person"]):
        for each in document.values():  # the same share in the development cases as in all
            scene = each["prompt"]["scene"]
            each["prompt"]["scene"] = "".join(scene[(i * 37) % len(scene)] for i in range(len(scene)))
    claim = next(
        c for c in claims("mechanisms", "identity") if c.second and c.second.run.mechanism == "decoupled"
    )
    finding = find(found, claim)
    assert finding.verdict == "agrees" and finding.means[0] < finding.means[1]
    assert finding.values[1] == "Decoupled CA (scale = 0.7, costs too much of the prompt)"
    assert finding.asked is not None and finding.asked["mean"] > 0
    assert find(found, replace(claim, first=claim.second, second=claim.first)).verdict == "disagrees"


def test_who_seems_to_lose_the_prompt_on_few_cases_is_not_behind() -> None:
    """The prompt on the cases that chose the value is none of those that figures are of."""
    identity = {"nested": 0.5, "decoupled": 0.9}
    found = summary(identity, {"nested": 0.9, "decoupled": 0.9})
    claim = claims("mechanisms", "identity")[0]
    assert claim.second is not None and find(found, claim).verdict == "disagrees"
    first = found.size.development
    for seed in SEEDS:
        for each in found.runs[Run(mechanism="decoupled", seed=seed).name]["drawn"].values():
            scene = each["prompt"]["scene"]
            each["prompt"]["scene"] = "0" * 5 + scene[5:]
    found.references["person"]["base"]["prompt"]["scene"] = "1" * 200
    finding = find(found, claim)
    assert finding.values[1].endswith("costs too much of the prompt)") and first > 5
    assert finding.verdict == "no difference shown"
    # Nor is one that keeps less of it there.
    for seed in SEEDS:
        for each in found.runs[Run(seed=seed).name]["drawn"].values():
            each["prompt"]["scene"] = "1" * first + "01" * ((200 - first) // 2)
    assert find(found, claim).verdict == "no difference shown"
    for seed in SEEDS:
        for each in found.runs[Run(seed=seed).name]["drawn"].values():
            each["prompt"]["scene"] = "1" * 200
    assert find(found, claim).verdict == "agrees"


def test_of_equals_the_least_value_is_taken_and_expressions_count() -> None:
    number = 200
    found = summary({"nested": 0.1}, {"nested": 0.9}, number)
    base = found.references["person"]["base"]
    chosen = found.chosen(Run(), SEEDS)
    assert chosen is not None and chosen.drawing.value == 1  # all are alike
    for seed in SEEDS:
        told = found.runs[Run(seed=seed).name]["drawn"]
        for value in (2, 3, 4):
            told[f"alone person {value}"]["identity"] = "1" * number
        for value in (3, 4):
            told[f"alone person {value}"]["prompt"]["expression"] = "0" * number
        for value in (1, 1.5, 2, 2.5):
            told[f"alone person {value}"]["prompt"]["expression"] = "1" * number
    base["prompt"]["expression"] = "1" * number
    chosen = found.chosen(Run(), SEEDS)
    assert chosen is not None and chosen.drawing.value == 2 and chosen.keeps


def test_the_change_outside_is_compared_where_identity_is_alike() -> None:
    number = 200
    found = summary({"nested": 0.5, "decoupled": 0.9}, {"nested": 0.9, "decoupled": 0.9}, number)
    for seed in SEEDS:
        told = found.runs[Run(mechanism="decoupled", seed=seed).name]["drawn"]
        told["alone person 0.7"]["identity"] = hits(0.48, number)
        for each in told.values():
            each["outside"] = [5.0] * number
        told["alone person 0.7"]["outside"] = [float(i % 2) / 10 for i in range(number)]
    alike, full = sorted(claims("mechanisms", "outside"), key=lambda c: c.second.drawing is not None)
    finding = find(found, alike)
    assert finding.values[1] == "Decoupled CA (scale = 0.7)" and finding.verdict == "disagrees"
    assert find(found, full).verdict == "agrees"


def test_a_difference_that_seeds_alone_make_is_not_shown() -> None:
    """Two seeds of nested attention differ by 20 points: 15 between two runs of one seed say nothing."""
    number, key = 200, "alone person 1"
    runs_of = {
        Run(): 0.50,
        Run(seed=1): 0.70,
        Run(alpha=1.0): 0.35,
        Run(alpha=3.0): 0.85,
    }
    drawn = {run.name: {"drawn": {key: {"identity": hits(rate, number)}}} for run, rate in runs_of.items()}
    found = Summary(Size(cases=number), drawn, {})
    less, more = (find(found, claim) for claim in claims("alpha", "identity")[:2])
    assert less.verdict == "no difference shown" and less.tests[0]["p"] < 0.001
    assert less.spread == pytest.approx(0.2) == less.smallest
    assert more.verdict == "agrees" and more.difference is not None
    del drawn[Run(seed=1).name]  # nothing is known of seeds
    assert find(found, claims("alpha", "identity")[0]).verdict == "agrees"
    # What two drawings of one training differ by is not of seeds.
    assert found.spread({Drawing()}, "identity") == 0


def test_too_few_cases_that_differ_tell_nothing() -> None:
    number, key = 200, "alone person 1"
    for lost, verdict in ((5, "cannot be told"), (6, "disagrees")):
        drawn = {
            Run().name: {"drawn": {key: {"identity": "1" * number}}},
            Run(alpha=3.0).name: {"drawn": {key: {"identity": "0" * lost + "1" * (number - lost)}}},
        }
        (claim,) = [c for c in claims("alpha", "identity") if c.first.run.alpha == 3]
        finding = find(Summary(Size(cases=number), drawn, {}), claim)
        assert (finding.verdict, finding.differ) == (verdict, lost)


def complete() -> Summary:
    """Figures of everything that the matrix asks for, of any values."""
    number, words = 200, ("identity", NEAREST, "twins", "person", "pet", "first", "second", "both", "own")
    found: dict[str, Any] = {}
    for shift, (run, drawings) in enumerate(plan().items()):
        told: dict[str, Any] = {}
        for each in drawings:
            prompt = {name: hits(0.9, number, shift) for name in ("scene", "style", "clothes", "expression")}
            told[each.key] = {
                **{name: hits(0.5, number, shift) for name in words},
                "prompt": prompt,
                "outside": [float(shift)] * number,
            }
            if each.kind == "error":
                told[each.key] = {"error": [0.1 * shift] * number}
            if each.kind == "mixed":
                told[each.key] = {name: hits(0.5, number, shift) for name in ("first", "second", "both")}
            if each.kind == "noun":
                told[each.key]["fits"] = {noun: [0.1 * shift] * number for noun in NOUNS}
        training = {
            "steps": 5_000,
            "batch": 8,
            "parameters": 10,
            "minutes": 20.0,
            "precision": "float32",
            "losses": [0.3] * 100,
            "machine": "a machine",
        }
        found[run.name] = {"drawn": told, "training": training}
    base = {"prompt": {"scene": hits(0.9, number)}, "identity": hits(0.0, number), "outside": [0.0] * number}
    names = ("person", "pet", "person pet")
    return Summary(Size(cases=number), found, {name: {"base": base, "truth": base} for name in names})


def test_the_whole_page_has_no_gap() -> None:
    text = page.written(complete())
    assert "**not measured**" not in text and "*Not measured.*" not in text
    assert "No run of this part" not in text and "So far" not in text and "nan" not in text
    parts = dict(part.split("\n\n", 1) for part in text.split("\n## ")[1:])
    titles = {question.key: question.title for question in QUESTIONS}
    for key, own in titles.items():
        rows = [line for line in parts[own].splitlines() if line.startswith("|")]
        assert len(rows) > 3, key
        assert all(any(cell.strip() for cell in row.split("|")[4:]) for row in rows), key
        assert parts[own].count("\n- ") >= sum(claim.question == key for claim in CLAIMS) > 0
    assert "resembles the second" in parts[titles["mixing"]] and "prompt |" not in parts[titles["mixing"]]
    assert "| person, from 4 pictures |" in parts[titles["references"]]
    assert "Decoupled CA, from scratch" in parts[titles["scratch"]]


def test_a_run_from_scratch_neither_reads_before_nor_whitens(
    place: Place, world: World, examples: dict[str, list[EncoderData]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whitened: list[Any] = []
    real = encoders.whiten_keys
    monkeypatch.setattr(encoders, "whiten_keys", lambda *a, **k: whitened.append(a) or real(*a, **k))
    train(place, world, Run(scratch=True), examples.__getitem__)
    assert not whitened and not place.reader(Run()).exists()
    assert runs.load_encoder(place, world, Run(scratch=True)).config == new_encoder(world, Run()).config
    runs.read(place, world, Run())
    train(place, world, Run(), examples.__getitem__)
    assert len(whitened) == 1


def test_a_claim_against_chance_needs_more_than_half() -> None:
    (claim, *_) = claims("nouns", "own")
    assert claim.second is None and MEASURES["own"].hits
    key = claim.first.drawing.key if claim.first.drawing else ""
    for share, verdict in ((0.9, "agrees"), (0.5, "no difference shown"), (0.1, "disagrees")):
        drawn = {key: {"own": hits(share, 100)}}
        found = Summary(Size(), {Run().name: {"drawn": drawn}}, {})
        assert find(found, claim).verdict == verdict


def test_a_part_of_the_page_begins_with_two_drawings_of_its_own() -> None:
    """The run that all parts share is drawn with the mechanisms; alone it compares nothing."""
    text = page.written(summary({"nested": 0.6, "decoupled": 0.4}, {"nested": 0.9, "decoupled": 0.9}))
    parts = dict(part.split("\n\n", 1) for part in text.split("\n## ")[1:])
    titles = {question.key: question.title for question in QUESTIONS}
    assert "![some of the pictures](reproduction/mechanisms.png)" in parts[titles["mechanisms"]]
    for key in ("alpha", "queries", "pair", "mixing"):
        assert "No run of this part is there yet." in parts[titles[key]]
        assert ".png" not in parts[titles[key]] and "| Nested Attention |" not in parts[titles[key]]


def test_every_claim_is_about_drawings_that_the_matrix_asks_for() -> None:
    wanted = plan()
    for claim in CLAIMS:
        assert claim.question in {question.key for question in QUESTIONS}
        for shown in (claim.first, *([claim.second] if claim.second else [])):
            asked = wanted[shown.run]
            assert set(curve(shown.run.mechanism) if shown.drawing is None else [shown.drawing]) <= set(asked)
        assert bool(claim.figure) == (claim.expected is not None)


def test_mcnemar_is_exact_and_tells_the_smallest_difference() -> None:
    """b = 10, c = 2: p = 2·(1 + 12 + 66)/2¹² = 0.03857."""
    first = torch.tensor([True] * 10 + [False] * 2 + [True] * 88)
    second = torch.tensor([False] * 10 + [True] * 2 + [True] * 88)
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"]) == (10, 2)
    assert found["p"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found["smallest"] == pytest.approx(8 / 100)  # 10 to 2; 9 to 3 has p = 0.146
    nothing = mcnemar(first, first)
    assert nothing["p"] == 1 and nothing["smallest"] == pytest.approx(6 / 100)  # 2/2⁶ < 0.05 ≤ 2/2⁵


def test_a_drawing_of_curves_is_svg() -> None:
    series = {"one <a>": [Point(0.5, 0.2, 0.1, 0.3, "1"), Point(0.6, 0.4)], "two": [Point(0.7, 0.1)]}
    svg = drawing("Identity", ("prompt", "identity"), series, shares=(True, True))
    root = ElementTree.fromstring(svg)
    names = [each.tag.rpartition("}")[2] for each in root.iter()]
    assert names.count("circle") == 3 and names.count("polyline") == 2
    shown = [each.text for each in root.iter() if each.tag.endswith("text")]
    assert {"one <a>", "two", "Identity", "prompt", "50 %"} <= set(shown)
    with pytest.raises(ValueError, match="at least one point"):
        drawing("", ("", ""), {"none": []}, shares=(False, False))


def test_labels_of_a_drawing_meet_nothing_and_those_of_ends_come_first() -> None:
    crowd = {
        "crowd": [Point(0.5 + i / 1e6, 0.5, label=f"{i}") for i in range(30)],
        "far": [Point(1, 1, label="F")],
    }
    root = ElementTree.fromstring(drawing("", ("", ""), crowd, shares=(False, False)))
    small = [each for each in root.iter() if each.get("font-size") == "9"]
    shown = [each.text for each in small]
    assert {"0", "29", "F"} <= set(shown) and 3 < len(shown) < 30
    places = [(float(each.get("x", "")), float(each.get("y", ""))) for each in small]
    for number, (x, y) in enumerate(places):
        assert all(abs(x - a) > 2 or abs(y - b) > 6 for a, b in places[:number])


def test_the_command_lists_and_refuses_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[command.Request] = []

    def left(request: command.Request) -> list[Left]:
        asked.append(request)
        return [Left(Run(), 5_000, (Drawing(),), 5_000.0, 100.0), Left(Run(seed=1), 0, (), 0.0, 0.0)]

    monkeypatch.setattr(command, "what_is_left", left)
    runner, base = CliRunner(), ["world", "compare", "--runs", str(tmp_path)]
    shown = runner.invoke(app, [*base, "mechanisms", "--seed", "0", "--mechanism", "nested", "--list"])
    assert shown.exit_code == 0, shown.output
    first, second, whole = shown.output.splitlines()
    assert " ".join(first.split()) == "nested-person-seed-0 5,000 steps, 1 drawings left 1 h 25 min"
    assert "complete" in second and whole == "2 runs; left, one after the other: 1 h 25 min"
    (request,) = asked
    assert list(request.plan) == [Run()] and request.size == Size() and request.root == tmp_path
    trial = ["--steps", "2", "--cases", "4", "--pictures", "8", "--minutes", "9", "--threads", "3"]
    assert runner.invoke(app, [*base, *trial, "--list"]).exit_code == 0
    assert asked[1].size == Size(steps=2, cases=4, pictures=8)
    assert (asked[1].minutes, asked[1].threads, len(asked[1].plan)) == (9, 3, len(plan()))
    assert asked[1].draws and runner.invoke(app, [*base, "--only-train", "--list"]).exit_code == 0
    assert not asked[2].draws and set(asked[2].plan.values()) == {()}
    wrong = runner.invoke(app, [*base, "mechanism"])
    assert wrong.exit_code == 1 and "no such question: mechanism. There are mechanisms, pair" in wrong.output
    if not torch.cuda.is_available():
        none = runner.invoke(app, [*base, "--device", "cuda", "--list"])
        assert none.exit_code == 1 and "there is no GPU that torch can use" in none.output


def test_the_committed_page_follows_from_the_committed_figures(tmp_path: Path) -> None:
    """Both come with the first real comparison; neither without the other."""
    folder = PAGE.parent / page.PICTURES
    assert PAGE.exists() == (folder / FIGURES).exists()
    if PAGE.exists():
        summary = read_summary()
        stale = "the world changed since `nested-attention world compare` ran: run it again"
        place = json.loads((folder / FIGURES).read_text())["place"]
        assert place == Place.of(tmp_path, summary.size).name, stale
        assert PAGE.read_text(encoding="utf-8") == page.written(summary)
        for picture in page.charts(summary):
            assert (folder / picture).is_file()


def test_figures_of_another_shape_are_refused(tmp_path: Path) -> None:
    for text in ('{"runs": {}}', "[]", "{"):
        (tmp_path / FIGURES).write_text(text)
        with pytest.raises(NestedAttentionError, match="does not hold the figures of a comparison"):
            read_summary(tmp_path)


@pytest.mark.parametrize(("complete", "said"), [(True, "All is trained"), (False, "Not all is trained")])
def test_the_command_says_whether_all_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, complete: bool, said: str
) -> None:
    monkeypatch.setattr(command, "compare", lambda request, say: complete)
    asked = ["world", "compare", "--runs", str(tmp_path), "--only-train"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0 and shown.output.startswith(said), shown.output
