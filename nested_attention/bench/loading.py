"""Loading an encoder of SDXL's full width and applying a subject with it, on random weights in a temporary
file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import save_subject_encoder
from ..encoder import SubjectEncoder, SubjectEncoderConfig
from .in_comfyui import run_in_comfyui
from .report import table


def run_loading(
    config: SubjectEncoderConfig | None = None,
    *,
    threads: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """config: of the encoder; the paper's (70 sites, 1024 tokens) if left out."""
    config = config or SubjectEncoderConfig()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.safetensors"
        say("writing an encoder of random weights")
        save_subject_encoder(random_encoder(config), path)
        say("loading it and applying a subject")
        return run_in_comfyui(
            "loading", path=str(path), tokens=config.num_queries, width=config.token_dim, threads=threads
        )


def random_encoder(config: SubjectEncoderConfig, dtype: torch.dtype = torch.float16) -> SubjectEncoder:
    """Weights of a plausible size, from one block of random numbers: a whole set would take longer than what
    is measured."""
    with torch.device("meta"):
        encoder = SubjectEncoder(config)
    encoder = encoder.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    block = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    for parameter in encoder.parameters():
        scaled = (block * parameter.shape[-1] ** -0.5).to(dtype)
        repeats = -(-parameter.numel() // len(block))
        parameter.copy_(scaled.repeat(repeats)[: parameter.numel()].view_as(parameter))
    return encoder


def loading_table(found: dict[str, Any]) -> str:
    size = found["file bytes"] + found["subject bytes"]
    rows = [
        ["load and apply, s", f"{found['seconds']:.1f}"],
        ["of that, load, s", f"{found['seconds to load']:.1f}"],
        ["CPU time, s", f"{found['CPU seconds']:.1f}"],
        ["encoder file, MB", f"{found['file bytes'] / 1e6:.0f}"],
        ["subject in use, MB", f"{found['subject bytes'] / 1e6:.0f}"],
        ["peak memory, MB", f"{found['peak bytes'] / 1e6:.0f}"],
        ["peak / (file + subject)", f"{found['peak bytes'] / size:.2f}"],
    ]
    return table([f"{found['sites']} sites, {found['tokens']} tokens", ""], rows)
