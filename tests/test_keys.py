"""Keys that are trained in coordinates of their layer's queries: the encoder is the same, its training is not
stuck."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import training
from torch import Tensor, nn

from nested_attention.checkpoint import load_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig, site_key
from nested_attention.errors import NestedAttentionError
from nested_attention.sites import Site
from nested_attention.training.keys import RIDGE, basis_of, measuring, plain, train_keys_in, whiten_keys
from nested_attention.training.run import train
from nested_attention.training.settings import StartSettings

HEADS = 2
SITE = Site(name="layer", context_dim=16, inner_dim=16, heads=HEADS)


def quietly(line: str) -> None:
    pass


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(16, 16)


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()
        self.device = torch.device("cpu")

    def forward(self, hidden: Tensor) -> Tensor:
        queries: Tensor = self.layer.to_q(hidden)
        return queries


def encoder() -> SubjectEncoder:
    torch.manual_seed(0)
    sizes = {"num_queries": 4, "width": 16, "depth": 1, "heads": 2, "head_dim": 8, "ff_mult": 2}
    return SubjectEncoder(SubjectEncoderConfig(vision_dim=8, token_dim=16, sites=(SITE,), **sizes)).train()


def one_sided() -> Tensor:
    """Hidden states (8, 64, 16) whose queries share a mean that is far larger than they differ."""
    torch.manual_seed(1)
    return 50 + torch.randn(8, 64, 16)


@pytest.fixture
def moments() -> dict[str, Tensor]:
    torch.manual_seed(2)
    unet, hidden = Unet(), one_sided()
    with torch.no_grad(), measuring(unet, (SITE,)) as measured:
        queries = [unet(half) for half in hidden.split(4)]
    unet(hidden)  # not counted any more
    by_head = torch.cat(queries).flatten(0, 1).unflatten(-1, (HEADS, -1))
    wanted = torch.einsum("nhd,nhe->hde", by_head, by_head) / len(by_head)
    torch.testing.assert_close(measured()["layer"], wanted)
    return measured()


def test_whitened_queries_differ_alike_above_the_ridge(moments: dict[str, Tensor]) -> None:
    moment, basis = moments["layer"], basis_of(moments["layer"])
    assert basis.shape == (16, 16) and not basis[:8, 8:].any() and not basis[8:, :8].any()  # heads stay apart
    for head, one in enumerate(moment):
        part = basis[8 * head : 8 * head + 8, 8 * head : 8 * head + 8]
        values = torch.linalg.eigvalsh(one)
        wanted = values / (values + RIDGE * values.mean())
        torch.testing.assert_close(torch.linalg.eigvalsh(part @ one @ part), wanted, rtol=1e-3, atol=1e-4)
        assert (
            values[-1] > 100 * values[:-1].mean() and wanted[-1] > 0.99
        )  # the mean, which stays one of many


def test_an_encoder_stays_what_it_is_or_begins_anew(moments: dict[str, Tensor]) -> None:
    tokens = torch.randn(1, 4, 16)
    for anew in (False, True):
        ours = encoder()
        before = ours.project(tokens)["layer"]
        train_keys_in(ours, moments, anew=anew)
        key, value = ours.project(tokens)["layer"]
        torch.testing.assert_close(value, before[1])
        wanted = before[0] @ basis_of(moments["layer"]) if anew else before[0]
        torch.testing.assert_close(key, wanted, rtol=1e-3, atol=1e-4)


def test_the_way_back_leaves_nothing_of_it(moments: dict[str, Tensor]) -> None:
    ours, tokens = encoder(), torch.randn(1, 4, 16)
    names = list(ours.state_dict())
    train_keys_in(ours, moments, anew=True)
    assert "parametrizations" in " ".join(ours.state_dict())
    back = plain(ours)
    assert set(back.state_dict()) == set(names) and type(back) is SubjectEncoder
    for one, other in zip(back.project(tokens)["layer"], ours.project(tokens)["layer"], strict=True):
        torch.testing.assert_close(one, other)
    assert plain(back).state_dict().keys() == back.state_dict().keys()  # of one that is plain: itself


def test_nested_attention_is_not_saturated_from_the_start(moments: dict[str, Tensor]) -> None:
    """Where queries share a large mean, plain random keys let every query read the same few tokens."""

    def spread(anew: bool | None) -> float:
        ours = encoder()
        if anew is not None:
            train_keys_in(ours, moments, anew=anew)
        torch.manual_seed(2)
        queries = Unet()(one_sided()).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (8, heads, 64, 8)
        key = ours.project(torch.randn(1, 4, 16))["layer"][0].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return float((queries @ key.mT / 8**0.5).detach().std(dim=-1).mean())

    assert spread(None) > 5 and spread(False) == pytest.approx(spread(None), rel=1e-3)
    assert 0.05 < spread(True) < 1.5


def test_queries_are_measured_with_nothing_attached() -> None:
    ours, unet, seen = encoder(), Unet(), list[bool]()

    def objective(batch: dict[str, Tensor], models: Any, noise: Any) -> None:
        assert models["encoder"] is ours
        seen.append(bool(batch["mask"].any()))
        unet(batch["hidden"])

    examples = [
        ({"hidden": part, "mask": torch.ones(4, 3, dtype=torch.bool)}, {}) for part in one_sided().split(4)
    ]
    whiten_keys(ours, unet, objective, examples, anew=True)
    assert seen == [False, False]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as the pass that is measured may be
        whiten_keys(encoder(), unet, lambda batch, models, noise: unet(batch["hidden"]), examples, anew=True)
    nan = [({"hidden": one_sided() * torch.nan, "mask": torch.ones(8, 3, dtype=torch.bool)}, {})]
    with pytest.raises(NestedAttentionError, match="queries in layer are not finite on the first examples"):
        whiten_keys(encoder(), unet, lambda batch, models, noise: unet(batch["hidden"]), nan, anew=True)
    assert ours.projections[site_key("layer")].to_key.parametrizations.weight[0].basis.shape == (16, 16)  # type: ignore[union-attr, index]


def test_a_run_with_whitened_keys_writes_a_plain_encoder_and_goes_on_as_it_was(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "whole", steps=4, whiten_keys=True)
    whole = load_subject_encoder(train(settings, say=quietly))
    assert not any("parametrizations" in name for name in whole.state_dict())
    half = replace(settings, output=tmp_path / "parted", keep=9)
    train(half, say=quietly)
    for path in (half.file, half.output / "phase-1" / "step-00000004"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    parted = load_subject_encoder(train(half, say=quietly))  # from step 2
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parted.state_dict()[name], rtol=1e-4, atol=1e-5)
    without = load_subject_encoder(
        train(replace(settings, output=tmp_path / "plain", whiten_keys=False), say=quietly)
    )
    key = f"projections.{site_key(whole.config.sites[0].name)}.to_key.weight"
    assert not torch.allclose(without.state_dict()[key], whole.state_dict()[key], atol=1e-2)
    with pytest.raises(NestedAttentionError, match="another whiten_keys than the configuration has now"):
        train(replace(settings, whiten_keys=False), say=quietly)


def test_keys_and_values_may_begin_anew_beside_a_files_q_former(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    first = train(training(world_on_disk, prepared, tmp_path / "first", steps=1), say=quietly)
    settings = training(world_on_disk, prepared, tmp_path / "second", steps=1, ema=0.0)
    still = replace(settings, phases=(replace(settings.phases[0], rate=1e-12),))
    start = StartSettings(kind="file", path=first, projections=False)
    there, ours = (
        load_subject_encoder(path).state_dict()
        for path in (first, train(replace(still, start=start), say=quietly))
    )
    for name, tensor in ours.items():
        assert torch.allclose(tensor, there[name], atol=1e-3) == name.startswith("qformer.")
    assert (
        start.keys_anew and StartSettings().keys_anew and not StartSettings(kind="file", path=first).keys_anew
    )
    with pytest.raises(
        NestedAttentionError, match="projections is false and kind 'scratch'; expected 'file'"
    ):
        StartSettings(projections=False)
