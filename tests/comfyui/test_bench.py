"""The parts of the benchmark that run in ComfyUI, at reduced sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nested_attention.encoder import SubjectEncoderConfig
from nested_attention.sites import sdxl_sites


@pytest.mark.once
@pytest.mark.slow
def test_loading_at_a_quarter_of_the_sites_keeps_its_bounds(comfyui: Path) -> None:
    from nested_attention.bench.loading import loading_table, run_loading

    config = SubjectEncoderConfig(depth=1, sites=sdxl_sites()[:18], num_queries=512)
    found = run_loading(config, threads=1)
    assert found["sites"] == 18
    assert found["subject bytes"] == 2 * 2 * 512 * sum(site.inner_dim for site in config.sites)
    assert found["CPU seconds"] < 15
    # 60 MB are for what any process takes that computes at all, which counts less at full size.
    assert found["peak bytes"] <= 1.2 * (found["file bytes"] + found["subject bytes"]) + 60e6
    assert "18 sites, 512 tokens" in loading_table(found)


@pytest.mark.once
@pytest.mark.slow
def test_pictures_are_timed_with_and_without_subjects(comfyui: Path) -> None:
    from nested_attention.bench.in_comfyui import pictures_table, run_in_comfyui

    found: dict[str, Any] = run_in_comfyui(
        "pictures", repeats=1, threads=1, clock="cpu", counts=(0, 2), steps=2
    )
    assert found["seconds per picture"].keys() == {"0", "2"}
    assert found["bytes of a subject on disk"] == 4 * found["tokens"] * 257
    assert "| 2 subjects |" in pictures_table(found)


@pytest.mark.slow
def test_steps_of_sampling_are_measured_in_every_form(comfyui: Path) -> None:
    from nested_attention.bench.in_comfyui import run_sampling, sampling_table

    tiny = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
        "num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
        "transformer_depth_middle": 1, "context_dim": 96, "adm_in_channels": 64 + 6 * 256,
        "num_classes": "sequential", "use_linear_in_transformer": True, "use_spatial_transformer": True,
        "use_temporal_attention": False, "use_temporal_resblock": False, "use_checkpoint": False,
        "legacy": False,
    }  # fmt: skip
    found = run_sampling(
        size=64, tokens=[4, 8], subjects=[1, 2], batches=[1], steps=1, repeats=1, threads=1, unet=tiny
    )
    forms = [
        "plain", "1 subject, 4 tokens", "1 subject, 8 tokens", "2 subjects, 8 tokens",
        "decoupled, 16 tokens, projected at each step, both halves",
        "decoupled, 8 tokens, kept, positive rows",
    ]  # fmt: skip
    assert [one["form"] for one in found["forms"]] == forms
    assert all(one["wall"] > 0 and one["kernels"] is None for one in found["forms"])
    assert sampling_table(found).count(" = 1.00 × | – |") == 1


@pytest.mark.once
@pytest.mark.slow
def test_the_slots_of_a_layer_keep_close_to_the_floor(comfyui: Path) -> None:
    from nested_attention.bench.in_comfyui import run_slots, slots_table

    found = run_slots(size=256, tokens=[1024], repeats=3, threads=1, clock="cpu")
    assert [(one["layer"], one["function"], one["rows"]) for one in found["layers"]] == [
        (layer, function, rows)
        for function in ("sub_quad", "pytorch")
        for rows in (1, 2)
        for layer in ("256×640", "64×1280")
    ]
    for one in found["layers"]:
        ms = {form: timing["median"] for form, timing in one["ms"].items()}
        assert ms["empty slot"] <= 1.6 * (ms["plain"] + ms["floor"]), one
    assert "| 256×640 | 1024 | 1 | sub_quad |" in slots_table(found)


def test_a_failure_is_told_with_its_reason(comfyui: Path) -> None:
    from nested_attention.bench.in_comfyui import run_in_comfyui
    from nested_attention.errors import NestedAttentionError

    with pytest.raises(NestedAttentionError, match="loading in ComfyUI failed:(.|\n)*nowhere.safetensors"):
        run_in_comfyui("loading", path="nowhere.safetensors", tokens=1, width=1, threads=1)
