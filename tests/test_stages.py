"""The folders of the small world's stages: which run goes on from which, and what none writes over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nested_attention.avatars.train.stages import STAGES, Recipe, train
from nested_attention.errors import NestedAttentionError
from nested_attention.paths import SMALL_WORLD
from nested_attention.training.schedule import Schedule


def stage_of_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Recipe, list[str], Callable[..., bytes]]:
    """With a stage in place of `base` that writes the name of its folder: a recipe, what each start found
    there, and a function that trains."""
    told: list[str] = []

    def run(recipe: Recipe, folder: Path, drawn: Any, schedule: Schedule) -> tuple[Path, ...]:
        begun = folder / "step-1"
        told.append("went on" if begun.exists() else "began")
        begun.mkdir(parents=True, exist_ok=True)
        if told == ["began"] and recipe.threads == 2:
            raise KeyboardInterrupt
        file = recipe.weights / "unet.safetensors"
        file.write_text(folder.name)
        return (file,)

    stage = replace(STAGES["base"], draw=lambda recipe: None, run=run)
    monkeypatch.setitem(STAGES, "base", stage)
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("text_encoder", "text_encoder_2", "unet"):
        (weights / f"{name}.safetensors").write_text(name)
    recipe = Recipe(runs=tmp_path / "runs", weights=weights, threads=1)

    def trained(**changed: Any) -> bytes:
        train({"base": 1.0}, replace(recipe, **changed), say=lambda line: None)
        return (weights / "unet.safetensors").read_bytes()

    return recipe, told, trained


def test_a_run_that_begins_with_other_weights_does_not_go_on_from_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, told, trained = stage_of_base(monkeypatch, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(threads=2, onward=True)
    first = trained(onward=True)
    assert told == ["began", "went on"]  # an interrupted run goes on
    second = trained(onward=True)  # from what the first wrote
    assert told.pop() == "began" and second != first
    (recipe.weights / "text_encoder.safetensors").write_text("retrained")
    third = trained(onward=True)
    assert told.pop() == "began" and third not in (first, second)
    assert trained(pictures=4, onward=True) != third and told.pop() == "began"


def test_a_complete_run_does_not_write_over_newer_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, told, trained = stage_of_base(monkeypatch, tmp_path)
    first = trained()
    assert trained() == first and told == ["began", "went on"]  # it is what that run wrote
    newer = trained(onward=True)
    with pytest.raises(NestedAttentionError, match=r"unet.safetensors is not what .*base-.*--runs"):
        trained()
    assert (recipe.weights / "unet.safetensors").read_bytes() == newer != first
    (recipe.weights / "unet.safetensors").rename(tmp_path / "kept")
    assert trained() == first


def test_what_a_stage_reads_is_there() -> None:
    """A name that no file has would tell no run from another."""
    for stage in STAGES.values():
        of_world = [*stage.reads, *([stage.onward] if stage.onward else [])]
        assert all((SMALL_WORLD / file).is_file() for file in of_world)
        assert not stage.size or isinstance(getattr(Recipe(), stage.size), int)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_that_train_nothing_are_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(NestedAttentionError, match=r"base has .* minutes; expected .* above 0.*base=4\.5"):
        train({"base": minutes}, Recipe(runs=tmp_path, weights=tmp_path))
    assert not list(tmp_path.iterdir())
