"""Weights of the small world on disk: fp16 in a file, fp32 in use."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ...storage.tensors import read_tensors, write_tensors


def write_half(module: nn.Module, path: Path) -> None:
    """A module's state as fp16 safetensors, in one piece or not at all."""
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in module.state_dict().items()
        if not key.endswith("position_ids")
    }
    write_tensors(path, state, {})


def read_float(path: Path) -> dict[str, Tensor]:
    """A state in fp32. Raises NestedAttentionError, naming the file, if it is missing or damaged."""
    tensors = read_tensors(path, safetensors_only=True).tensors
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
