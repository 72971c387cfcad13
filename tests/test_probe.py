"""Probes: what of a close-up is redrawn from an encoder's tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_world import small_encoder

from nested_attention.avatars.drawing.canvas import Part
from nested_attention.avatars.figures.probe import IMAGE, PARTS, TOKENS, TWINS, _asked, _nearest, probe
from nested_attention.avatars.models.world import World, load_world
from nested_attention.checkpoint import load_subject_encoder
from nested_attention.cli.app import app
from nested_attention.paths import SMALL_WORLD


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def test_the_shipped_tokens_can_be_read(world: World) -> None:
    """Better than the features that they are made of: a Q-Former has learned to, a head learns here."""
    encoder = load_subject_encoder(SMALL_WORLD / "pet_encoder.safetensors")
    found = probe(world, encoder, trained=400, held=40, steps=100)
    tokens, image = found[TOKENS], found[IMAGE]
    assert list(tokens.parts) == [part for part in PARTS if part != Part.HAIR]  # a pet's fur is its face
    assert tokens.told > image.told > 0
    assert tokens.parts[Part.FACE] > 0.3
    assert tokens.top1["trials"] == tokens.twins["trials"] == 40
    assert tokens.top1["rate"] > 0.15 > 1 / 40


def test_tokens_that_are_the_same_for_everybody_hold_nothing(world: World) -> None:
    encoder = small_encoder(world, "pet", 4)
    with torch.no_grad():
        encoder.qformer.proj_out.weight.zero_()
    found = probe(world, encoder.eval(), trained=200, held=40, steps=60)
    assert abs(found[TOKENS].told) < 0.1 < found[IMAGE].told
    assert found[TOKENS].top1["rate"] <= 0.1


def test_a_tie_is_a_miss_and_no_near_twin_looks_like_the_subject(world: World) -> None:
    """Of twenty people, five have a near-twin whose close-up is their own."""
    asked = _asked(world, "person", 20, 7001)
    assert asked.twins.shape == (20, TWINS - 1, 28, 28, 3)
    assert not (asked.twins == asked.close_ups[:, None]).all(dim=(2, 3, 4)).any()
    alike = torch.stack([asked.close_ups, asked.close_ups], dim=1)
    first = torch.zeros(20, dtype=torch.int64)
    assert not _nearest(asked.close_ups, alike, asked.weight, first).any()
    told = torch.stack([asked.close_ups, asked.twins[:, 0]], dim=1)
    assert _nearest(asked.close_ups, told, asked.weight, first).all()


def test_the_command_names_every_part(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    file = str(SMALL_WORLD / "pet_encoder.safetensors")
    said = CliRunner().invoke(app, ["world", "probe", file, "--number", "40", "--steps", "3"])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert [line.split(":")[0] for line in lines] == [IMAGE, TOKENS]
    assert all(name in line for name in ("face", "eyes", "mouth", "ears") for line in lines)
    missing = CliRunner().invoke(app, ["world", "probe", str(tmp_path / "none.safetensors")])
    assert missing.exit_code == 1 and "none.safetensors" in missing.output
