"""`--dry-run`: a step on the meta device, and what is counted on the way."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import SIZES, training
from torch import Tensor, nn

from nested_attention.paths import SMALL_WORLD
from nested_attention.training import estimate as estimating
from nested_attention.training.estimate import CARDS, META, estimate, report
from nested_attention.training.settings import LossSettings, StartSettings
from nested_attention.training.subjects import SubjectObjective

pytestmark = pytest.mark.once


def test_what_a_step_takes_on_the_small_world(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "run")
    (found,) = estimate(settings)
    files = sum(path.stat().st_size for path in (world_on_disk / "unet").glob("*.safetensors"))
    assert settings.precision == "fp32" and found.frozen == pytest.approx(files, rel=0.02)
    (half,) = estimate(replace(settings, precision="bf16"))
    assert half.frozen == pytest.approx(files / 2, rel=0.02)
    assert half.more.activations < 0.6 * found.more.activations
    assert found.prepared and found.examples == 12 and found.side == 32
    shards = sum(path.stat().st_size for path in (prepared / "shards").glob("*.safetensors"))
    assert 16 * found.example == pytest.approx(shards, rel=0.1)
    (checkpointed,) = estimate(replace(settings, gradient_checkpointing=True))
    assert checkpointed.more.activations < 0.8 * found.more.activations
    assert checkpointed.more.operations > 1.1 * found.more.operations
    (eight,) = estimate(replace(settings, fp8=True))
    assert eight.frozen < 0.9 * found.frozen
    (larger,) = estimate(replace(settings, encoder=replace(SIZES, num_queries=64)))
    assert larger.more.activations > found.more.activations
    (several,) = estimate(replace(settings, loss=LossSettings(references=3)))
    assert several.more.operations > 1.02 * found.more.operations
    assert several.more.activations > found.more.activations and several.example == found.example
    start = StartSettings(kind="file", path=SMALL_WORLD / "person_encoder.safetensors")
    phases = [replace(settings.phases[0], freeze_qformer=frozen) for frozen in (False, True)]
    (free,), (kept,) = (estimate(replace(settings, start=start, phases=(each,))) for each in phases)
    assert kept.trained < 0.8 * free.trained and kept.held < free.held
    assert kept.more.operations < free.more.operations
    lines = report([found])
    parts = re.findall(r"(\d+\.\d+) GB", report([replace(found, frozen=5.1e9, held=14.4e9)])[1])
    assert parts == ["5.10", "9.30"], "which add up to what is held"
    assert "12 pictures (as prepared)" in lines[0] and "Assumed: 35%" in lines[-1]
    assert sum("GB: " in line and "pictures/s" in line for line in lines) == len(CARDS)
    assert not list(tmp_path.iterdir()), "it writes nothing"


def test_a_step_that_waits_for_the_device_fails(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to be read on the meta device: that a step runs there shows that none is read."""
    scaled = SubjectObjective.scaled

    def waiting(self: SubjectObjective, *args: Tensor) -> Tensor:
        out = scaled(self, *args)
        assert bool(out.isfinite().all())
        return out

    monkeypatch.setattr(SubjectObjective, "scaled", waiting)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        estimate(training(world_on_disk, prepared, tmp_path / "run"))


def test_shapes_that_do_not_fit_are_found(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = estimating._largest

    def wrong(*args: object) -> dict[str, Tensor]:
        batch = shapes(*args)  # type: ignore[arg-type]
        return {**batch, "context": torch.empty(1, 77, 255, device=META)}

    monkeypatch.setattr(estimating, "_largest", wrong)
    with pytest.raises(RuntimeError, match="255|size"):
        estimate(training(world_on_disk, prepared, tmp_path / "run"))


def test_what_is_alive_is_counted_as_it_comes_and_goes() -> None:
    layer = nn.Linear(10, 10, bias=False, device=META)
    with estimating._Alive(layer) as alive:
        x = torch.empty(100, 10, device=META)
        assert alive.now == alive.most == 4000
        y = layer(x)  # reads a view of the weight, which is not counted
        assert alive.now == 8000
        del y
        assert alive.now == 4000 and alive.most == 8000
        x.view(10, 100)
        assert alive.now == 4000


def test_attention_makes_no_matrix_and_counts_its_operations() -> None:
    q, k = (torch.empty(2, 4, n, 8, device=META, requires_grad=True) for n in (1000, 500))
    before = torch.nn.functional.scaled_dot_product_attention
    with estimating._Alive() as alive, estimating._FlashAttention() as flash:
        torch.nn.functional.scaled_dot_product_attention(q, k, k).sum().backward()
    assert torch.nn.functional.scaled_dot_product_attention is before
    assert flash.operations == 14 * 2 * 4 * 1000 * 500 * 8
    assert alive.most < 2 * 4 * 1000 * 500
    assert q.grad is not None and q.grad.shape == q.shape
