"""What `nested-attention evaluate` draws: on a tiny SDXL of diffusers, and in the small world."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from small_training import training
from tiny_sdxl import make_encoder, make_pipeline
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from nested_attention.avatars.figures import evaluate
from nested_attention.avatars.figures.evaluate import WorldPromptScorer, WorldRecogniser, plan_world
from nested_attention.avatars.models.scorers import load_prompt_scorer, load_recogniser
from nested_attention.checkpoint import save_subject_encoder
from nested_attention.cli.app import app
from nested_attention.errors import NestedAttentionError
from nested_attention.evaluation.drawing import SdxlDrawer, plan, told_of
from nested_attention.evaluation.recognisers import FaceFinder
from nested_attention.evaluation.run import Output, draw
from nested_attention.evaluation.scorers import IdentityScorer, everybody
from nested_attention.evaluation.settings import (
    DrawSettings,
    EvaluatedSubject,
    EvaluateSettings,
    ScorerSettings,
    SmallWorldSettings,
    filled,
    places,
)
from nested_attention.evaluation.tasks import sdxl_task
from nested_attention.hosts.diffusers.vision import load_vision
from nested_attention.paths import SMALL_WORLD
from nested_attention.storage.files import digest_of
from nested_attention.training.frozen import BaseModel
from nested_attention.training.reading import read_config
from nested_attention.training.run import train


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of diffusers, a vision model and an encoder as they lie on a disk; two photographs."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = make_pipeline()
    pipeline.save_pretrained(folder / "sdxl")
    save_subject_encoder(make_encoder(pipeline.unet), folder / "encoder.safetensors")
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=8,
        )  # fmt: skip
    ).save_pretrained(folder / "vision")
    Image.fromarray(data.astronaut()).save(folder / "ann.png")
    Image.fromarray(data.chelsea()).save(folder / "rex.png")
    return folder


CONFIG = """
output: {out}
title: A tiny SDXL
draw:
  model: {{base: sdxl, vision: vision, precision: fp32}}
  encoder: encoder.safetensors
  subjects:
    - {{name: ann, references: [ann.png], truths: [ann.png]}}
    - {{name: rex, references: [rex.png], face: false}}
  prompts: ["a photo of a {{1}}", "a {{1}} beside a {{2}}"]
  attention_scales: [1, 4]
  seeds: [3]
  width: 32
  height: 32
  steps: 2
"""


def settings(models: Path, **more: Any) -> DrawSettings:
    given: dict[str, Any] = {
        "model": BaseModel(base=str(models / "sdxl"), vision=str(models / "vision"), precision="fp32"),
        "encoder": models / "encoder.safetensors",
        "subjects": (
            EvaluatedSubject(name="ann", references=(models / "ann.png",)),
            EvaluatedSubject(name="rex", references=(models / "rex.png",), face=False),
        ),
        "prompts": ("a photo of a {1}", "a {1} beside a {2}"),
        "attention_scales": (1.0, 4.0),
        "width": 32,
        "height": 32,
        "steps": 2,
    }
    return DrawSettings(**{**given, **more})


def test_every_prompt_meets_every_subject_scale_and_seed(models: Path) -> None:
    drawings = plan(settings(models, seeds=(0, 7)), Path("pictures"), ["person", "pet"])
    assert len(drawings) == 2 * 2 * 2 * 2 and len({d.sample.name for d in drawings}) == 16
    first, pair = drawings[0], drawings[-1]
    assert (first.text, first.sample.prompt) == ("a photo of a <ann>", "a photo of a person")
    assert first.sample.picture == Path("pictures/prompt01_ann_scale1_seed0.png")
    assert (pair.text, pair.sample.prompt, pair.seed) == (
        "a <rex> beside a <ann>",
        "a pet beside a person",
        7,
    )
    assert pair.sample.group == "λ = 4, 2 people" and [p.face for p in pair.sample.people] == [False, True]


@pytest.mark.once
def test_a_tiny_sdxl_is_drawn_and_judged(models: Path, tmp_path: Path) -> None:
    """The whole command, from a configuration to the page; random weights, so that nobody is recognised."""
    path = models / "evaluation.yaml"
    path.write_text(CONFIG.format(out=tmp_path / "out"))
    found = CliRunner().invoke(app, ["evaluate", str(path)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [g["group"] for g in document["groups"]] == [
        "λ = 1",
        "λ = 1, 2 people",
        "λ = 4",
        "λ = 4, 2 people",
    ]
    figures = document["groups"][0]["figures"]
    assert figures["packaged"]["recognised"]["trials"] == 1  # of rex's pictures no face is expected
    assert figures["packaged"]["sim_truth"]["mean"] == 0 and figures["faces"]["count"]["rate"] == 0
    pictures = sorted((tmp_path / "out" / "pictures").iterdir())
    assert len(pictures) == 8
    drawn = {path.name: np.array(Image.open(path)) for path in pictures}
    assert all(picture.shape == (32, 32, 3) for picture in drawn.values())
    one, four = (drawn[f"prompt01_ann_scale{scale}_seed3.png"] for scale in (1, 4))
    assert (one != four).any()  # λ reaches the model
    assert (one != drawn["prompt01_rex_scale1_seed3.png"]).any()  # and so does the subject
    again = CliRunner().invoke(app, ["evaluate", str(path), "--against", str(tmp_path / "out")])
    assert again.exit_code == 0, again.output
    compared = json.loads((tmp_path / "out" / "figures.json").read_text())["against"]
    assert compared["rows"] and {row["difference"]["mean"] for row in compared["rows"]} == {0.0}
    path.write_text(CONFIG.format(out=tmp_path / "out").replace("steps: 2", "steps: 3"))
    other = CliRunner().invoke(app, ["evaluate", str(path)])
    assert other.exit_code == 1 and "drawn with another steps" in other.output


def test_a_folder_keeps_to_the_encoders_it_was_drawn_with(models: Path, tmp_path: Path) -> None:
    """Wherever the files lie; and to how each subject's references were read."""
    other = tmp_path / "step-2" / "encoder.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"another")
    first = settings(models)
    ann, rex = first.subjects
    output = Output(tmp_path / "out")
    draw([], lambda drawings: iter(()), told_of(first), output)
    for changed, what in (
        (replace(first, encoder=other), "encoder"),
        (replace(first, subjects=(ann, replace(rex, encoder=other))), "encoder"),
        (replace(first, subjects=(ann, replace(rex, face=True))), "face"),
    ):
        with pytest.raises(NestedAttentionError, match=f"drawn with another {what}"):
            draw([], lambda drawings: iter(()), told_of(changed), output)
    copied = tmp_path / "elsewhere.safetensors"
    copied.write_bytes(first.encoder.read_bytes())
    draw([], lambda drawings: iter(()), told_of(replace(first, encoder=copied)), output)


@pytest.mark.parametrize("names", [("a", "b-a", "a-b"), ("A", "b-a", "a-b")])
def test_names_that_meet_in_one_file_are_said_before_anything_is_drawn(
    models: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """a-b-a is of a and b-a, and of a-b and a."""
    subjects = tuple(EvaluatedSubject(name=name, references=(Path("x"),)) for name in names)
    output = Output(tmp_path / "out")
    drawings = plan(settings(models, subjects=subjects), output.pictures, ["person"] * 3)
    drawn: list[Any] = []
    with pytest.raises(NestedAttentionError, match="a picture of a-b [+] [aA] and one of [aA] [+] b-a would"):
        draw(drawings, lambda asked: drawn.append(asked) or iter(()), {}, output)
    assert not drawn and not output.folder.exists()


def test_a_reference_without_a_face_stops_before_anything_is_drawn(models: Path, tmp_path: Path) -> None:
    cat = EvaluatedSubject(name="tom", references=(models / "rex.png",))
    given = settings(models, subjects=(cat,), prompts=("a {1}",))
    with pytest.raises(NestedAttentionError, match="rex.png, a picture of tom, shows no face"):
        sdxl_task(given, ScorerSettings(), Output(tmp_path / "out"))
    # Nor is it encoded, if a subject was to be drawn without judges of faces.
    drawer = SdxlDrawer(given, load_vision(given.model.vision), FaceFinder())
    with pytest.raises(NestedAttentionError, match="rex.png, a reference of tom: .*no face was found"):
        list(drawer(plan(given, Path("pictures"), drawer.words())))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"prompts": ("a photo of a person",)},
            r"has the places \[\]; expected \{1\} where the subject goes",
        ),
        ({"prompts": ("{1} and {3}",)}, r"has the places \[1, 3\]"),
        ({"prompts": ("{1}, {2} and {3}",)}, "has 3 places for 2 subjects"),
        ({"prompts": ()}, "prompts is empty"),
        ({"subjects": ()}, r"subjects are \[\]"),
        (
            {"subjects": tuple(EvaluatedSubject(name=n, references=(Path("x"),)) for n in ("Ann", "ann"))},
            r"subjects are \['Ann', 'ann'\]",
        ),
        ({"attention_scales": (1.0, 1.0)}, "expected one or more different numbers"),
        ({"attention_scales": (0.0,)}, "expected numbers above 0"),
        ({"seeds": ()}, "seeds is"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(models: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(NestedAttentionError, match=said):
        settings(models, **change)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: EvaluatedSubject(name="a b", references=(Path("x"),)), "name is 'a b'"),
        (lambda: EvaluatedSubject(name="ann", references=()), "references of 'ann' is empty"),
        (lambda: SmallWorldSettings(subjects=0), "subjects is 0"),
        (
            lambda: EvaluateSettings(output=Path(), images=Path(), small_world=SmallWorldSettings()),
            "small_world and images are given",
        ),
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(NestedAttentionError, match=said):
        make()


def test_the_configurations_of_the_documentation_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert len(examples) == 2
    for example in examples:
        path = tmp_path / "evaluation.yaml"
        path.write_text(example)
        found = read_config(path, EvaluateSettings)
        assert found.draw is not None or found.small_world is not None


def test_places_of_a_prompt() -> None:
    assert places("{1} and {2}, {1} again") == 2
    assert filled("{2} and {1}", ["a person", "a pet"]) == "a pet and a person"


@pytest.mark.once
def test_the_small_world_through_the_same_command(tmp_path: Path) -> None:
    path = tmp_path / "world.yaml"
    path.write_text(
        "output: out\nsmall_world: {subjects: 2, prompts: 1, attention_scales: [1, 2], steps: 6}\n"
    )
    assert read_config(path, EvaluateSettings).output == tmp_path / "out"
    found = CliRunner().invoke(app, ["evaluate", str(path)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [scorer["key"] for scorer in document["scorers"]] == ["world", "prompt", "vision"]
    assert [scorer["independent"] for scorer in document["scorers"]] == [True, True, False]
    for group in document["groups"]:
        assert group["pictures"] == 2
        world, prompt = group["figures"]["world"], group["figures"]["prompt"]
        # Held-out people, drawn in a few steps, are told apart.
        assert world["top1"]["rate"] == 1 and world["sim_truth"]["mean"] > 0.3
        assert -1 <= world["copy_paste"]["mean"] <= 1 and prompt["prompt"]["mean"] >= 0.8
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "not independent: the encoder sees with it" in page and page.count("<svg") >= 4


@pytest.mark.once
def test_what_training_has_just_written_is_evaluated(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """From a checkpoint of training to the page, with a photograph and the packaged recogniser: the small
    world's pixel art shows no face that it would know, and every picture is a failure, none a gap."""
    output = tmp_path / "run"
    train(training(world_on_disk, prepared, output, steps=2), say=lambda line: None)
    encoder = output / "phase-1" / "step-00000002" / "encoder.safetensors"
    Image.fromarray(data.astronaut()).save(tmp_path / "ann.png")
    path = tmp_path / "evaluation.yaml"
    path.write_text(
        f"""
output: out
draw:
  model: {{base: {world_on_disk}, precision: fp32}}
  encoder: {encoder}
  subjects: [{{name: ann, references: [ann.png]}}]
  prompts: ["a photo of a {{1}} in a forest", "a {{1}} at the beach"]
  attention_scales: [1]
  width: 32
  height: 32
  steps: 2
"""
    )
    found = CliRunner().invoke(app, ["evaluate", str(path)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    (group,) = json.loads((tmp_path / "out" / "figures.json").read_text())["groups"]
    assert group["pictures"] == 2 and group["figures"]["packaged"]["recognised"]["trials"] == 2
    assert group["figures"]["packaged"]["sim_ref"]["mean"] == 0
    assert group["figures"]["faces"]["count"]["rate"] == 0


@pytest.mark.parametrize("word", ["person", "pet"])
def test_the_small_worlds_judges_know_the_true_drawings(tmp_path: Path, word: Any) -> None:
    """Where the judges look, and what they compare, is right: a true picture is everybody's own."""
    planned = plan_world(
        SmallWorldSettings(word=word, subjects=5, prompts=3, attention_scales=(1.0,)), tmp_path
    )
    truths = [replace(drawing.sample, picture=drawing.sample.truth) for drawing in planned.drawings]
    assert len(truths) == 15 and len({sample.prompt for sample in truths}) == 3
    recogniser = WorldRecogniser(load_recogniser(word), planned.corners, "")
    judge = IdentityScorer(recogniser, everybody(truths))
    found = [judge(sample) for sample in truths]
    assert sum(scores["top1"] or 0 for scores in found) >= 14
    assert all(scores["sim_truth"] == pytest.approx(1) for scores in found)
    assert all(scores["copy_paste"] == pytest.approx(-1, abs=1e-3) for scores in found)
    prompt = WorldPromptScorer(load_prompt_scorer(), planned.asked, "")
    assert sum(prompt(sample)["prompt"] or 0 for sample in truths) / 15 >= 0.95


def test_what_was_drawn_or_judged_with_other_weights_of_the_small_world_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = SmallWorldSettings(word="pet", subjects=2, prompts=1), tmp_path / "weights"
    monkeypatch.setattr(evaluate, "SMALL_WORLD", folder)
    shutil.copytree(SMALL_WORLD, folder)
    for file in ("unet", "vae", "text_encoder", "text_encoder_2", "vision", "pet_encoder"):
        before = evaluate.told(settings)
        with (folder / f"{file}.safetensors").open("ab") as opened:
            opened.write(b" ")
        after = evaluate.told(settings)
        changed = [name for name in before if before[name] != after[name]]
        assert changed == [file.replace("pet_", "")]
    scorers = evaluate.world_task(settings, Output(tmp_path / "out")).scorers[1:]
    for scorer, file in zip(scorers, ("scorer_prompt", "vision"), strict=True):
        assert scorer.state == f"world 2 {digest_of(folder / f'{file}.safetensors')}"
    state = evaluate.state_of("scorer_pet")
    (folder / "scorer_pet.safetensors").write_bytes(b"")
    assert evaluate.state_of("scorer_pet") != state
