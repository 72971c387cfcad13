"""Probes: what an encoder's tokens hold of a subject's traits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nested_attention.avatars.drawing.identity import Pet
from nested_attention.avatars.figures.probe import probe, traits
from nested_attention.avatars.models.world import World, load_world
from nested_attention.avatars.train.encoders import new_encoder
from nested_attention.checkpoint import load_subject_encoder
from nested_attention.cli.app import app
from nested_attention.paths import SMALL_WORLD


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def test_the_shipped_tokens_hold_what_the_features_offer(world: World) -> None:
    """Within what 300 crops can tell; the encoders of before were 30 points short in coat and eyes."""
    read = probe(world, load_subject_encoder(SMALL_WORLD / "pet_encoder.safetensors"), trained=600, held=300)
    offered, held = read["image features"], read["subject tokens"]
    assert list(offered) == list(held) == list(traits(Pet))
    assert {each.right["trials"] for each in held.values()} == {300}
    assert "places" not in held and "outline" not in held  # seeds
    for name in ("species", "coat", "pattern", "ears"):
        assert held[name].right["rate"] > offered[name].right["rate"] - 0.1, name
    ramps = {name for name, each in held.items() if each.off is not None}
    assert ramps == {"fur", "second", "eyes"}
    assert all(held[name].off < read["one answer"][name].off for name in ramps)  # type: ignore[operator]


def test_a_token_that_is_the_same_for_everybody_holds_nothing(world: World) -> None:
    encoder = new_encoder(world, "pet", queries=4)
    with torch.no_grad():
        encoder.qformer.proj_out.weight.zero_()
    read = probe(world, encoder.eval(), trained=200, held=100)
    nothing, all_there = (
        read[name]["species"].right["rate"] for name in ("subject tokens", "image features")
    )
    assert nothing < 0.7 and all_there > nothing + 0.15


def test_the_command_names_every_trait(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    said = CliRunner().invoke(
        app, ["world", "probe", str(SMALL_WORLD / "pet_encoder.safetensors"), "--number", "40"]
    )
    assert said.exit_code == 0, said.output
    assert [line.split()[0] for line in said.output.splitlines()] == list(traits(Pet))
    missing = CliRunner().invoke(app, ["world", "probe", str(tmp_path / "none.safetensors")])
    assert missing.exit_code == 1 and "none.safetensors" in missing.output
