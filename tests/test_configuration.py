"""Configuration files: what is read, and how what is wrong in them is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from nested_attention.errors import NestedAttentionError
from nested_attention.paths import PACK
from nested_attention.training.prepare.settings import PrepareSettings
from nested_attention.training.reading import read_config
from nested_attention.training.settings import TrainSettings

GOOD = """
model: {base: sdxl, precision: bf16}
output: out
name: mine
licence: CC0
phases:
- {data: shards, batch: 4, steps: 10, rate: 1e-4}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_paths_are_beside_the_file_and_numbers_may_lack_a_point(tmp_path: Path) -> None:
    (tmp_path / "sdxl").mkdir()
    found = read_config(written(tmp_path, GOOD), TrainSettings)
    assert found.output == tmp_path / "out" and found.phases[0].data == tmp_path / "shards"
    assert found.model.base == str(tmp_path / "sdxl") and found.phases[0].rate == 1e-4
    (tmp_path / "sdxl").rmdir()
    assert read_config(written(tmp_path, GOOD), TrainSettings).model.base == "sdxl", "a name on the hub"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fp9: true", "config.yaml: fp9 is no field of this configuration; did you mean fp8?"),
        ("xyz: 1", "xyz is no field of this configuration; expected some of model, output"),
        ("fp8: 1", "fp8 is 1; expected true or false"),
        ("seed: true", "seed is True; expected a whole number"),
        ("seed: 1.5", "seed is 1.5; expected a whole number"),
        ("clip: much", "clip is 'much'; expected a number"),
        ("name: 3", "name is 3; expected text"),
        ("precision: fp16", "precision is 'fp16'; expected one of 'bf16', 'fp32'"),
        ("encoder: 3", "encoder holds 3; expected fields"),
        ("encoder: {alpha: []}", r"encoder.alpha is \[\]; expected a number"),
        ("loss: {pairs: [0.5]}", r"loss.pairs has 1 entries; expected 2"),
        ("loss: {pairs: [0.5, two]}", r"loss.pairs\[1\] is 'two'; expected a number"),
        ("loss: {pairs: [0, 2]}", r"loss.pairs is \[0.0, 2.0\]; expected two shares"),
        ("loss: {drop_caption: 2}", "loss.drop_caption is 2.0; expected a share"),
        ("loss: {min_snr: -1}", "loss.min_snr is -1.0; expected a number above 0, or null"),
        ("start: {kind: file}", "start.kind is 'file' and path is None"),
        ("phases: []", "phases is empty"),
        ("phases: [{batch: 1, steps: 1}]", r"phases\[0\].data is missing; expected a path"),
        ("phases: [{data: a, batch: 1}]", r"phases\[0\].steps is None and epochs is None"),
        ("phases: [{data: a, batch: 0, steps: 1}]", r"phases\[0\].batch is 0; expected at least 1"),
        ("phases: [{data: a, batch: 1, steps: 9, minutes: 0}]", r"phases\[0\].minutes is 0.0; expected more"),
        ("phases: 3", r"phases is 3; expected a list, each fields"),
        ("validation: {subjects: 0}", "validation.subjects is 0; expected at least 1"),
        ("model: {precision: bf16}", "model.base is missing; expected a folder, or a name on the model hub"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, said: str) -> None:
    name = line.partition(":")[0]
    others, skipping = [], False
    for other in GOOD.strip().splitlines():  # the field's own lines are left out
        skipping = other.startswith(f"{name}:") or (skipping and other[0] in " -")
        if not skipping:
            others.append(other)
    with pytest.raises(NestedAttentionError, match=said):
        read_config(written(tmp_path, "\n".join([*others, line])), TrainSettings)


def test_files_that_are_no_configuration_are_named(tmp_path: Path) -> None:
    for text, said in (
        ("a: [", "cannot be read as YAML"),
        ("", "the file holds nothing; expected fields"),
        ("- 1", r"the file holds \[1\]"),
        ("!!python/object:os.system {}", "cannot be read as YAML: could not determine a constructor"),
    ):
        with pytest.raises(NestedAttentionError, match=f"config.yaml: {said}|config.yaml {said}"):
            read_config(written(tmp_path, text), PrepareSettings)
    with pytest.raises(NestedAttentionError, match="there is no configuration file .*nowhere.yaml"):
        read_config(tmp_path / "nowhere.yaml", PrepareSettings)


@pytest.mark.parametrize("path", sorted((PACK / "configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_that_ships_is_one(path: Path) -> None:
    kind = {"prepare": PrepareSettings, "train": TrainSettings}[path.parent.name]
    found = read_config(path, kind)
    assert found.output.resolve().is_relative_to(PACK), "beside the repository's own folders"


def test_the_papers_runs_are_the_papers() -> None:
    faces, pets = (
        read_config(PACK / "configs" / "train" / f"{n}.yaml", TrainSettings) for n in ("faces", "pets")
    )
    assert [(p.batch, p.epochs) for p in faces.phases] == [(32, 100), (16, 100)]
    assert [(p.batch, p.epochs) for p in pets.phases] == [(128, 100), (32, 100)]
    assert (faces.encoder.num_queries, pets.encoder.num_queries) == (1024, 256)
    for run, word in ((faces, "person"), (pets, "pet")):
        for phase, resolution in zip(run.phases, (512, 1024), strict=True):
            name = f"{phase.data.name}.yaml"
            prepared = read_config(PACK / "configs" / "prepare" / name, PrepareSettings)
            assert prepared.output.resolve() == phase.data.resolve()
            assert (prepared.resolution, prepared.word) == (resolution, word)
            assert prepared.features == "last_hidden_state" and prepared.model.vision == run.model.vision
