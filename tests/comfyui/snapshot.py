"""A deep picture of an object in a graph: two of them are equal exactly if nothing in it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

PATCHER = (
    "model_options", "patches", "object_patches", "weight_wrapper_patches", "attachments",
    "additional_models", "callbacks", "wrappers", "injections", "hook_patches", "forced_hooks",
    "force_cast_weights", "is_clip",
)  # fmt: skip
"""What a graph put into a ModelPatcher; the rest is where its weights are, which is ComfyUI's to change."""

_OPAQUE = (FunctionType, BuiltinFunctionType, ModuleType, type)


def snapshot(thing: Any) -> Any:
    """Everything a node could change, down to the contents of tensors, as plain comparable values."""
    return _of(thing, {})


def _of(thing: Any, seen: dict[int, int]) -> Any:
    if thing is None or type(thing) in (str, bytes, int, float, bool, torch.dtype, torch.device):
        return repr(thing)
    if isinstance(thing, _OPAQUE):
        return "is", id(thing)
    if id(thing) in seen:
        return "again", seen[id(thing)]
    seen[id(thing)] = len(seen)
    if isinstance(thing, torch.nn.Module):
        return "module", id(thing), {name: _digest(t) for name, t in thing.state_dict().items()}
    if hasattr(thing, "model_options") and hasattr(thing, "patches"):
        fields = {name: _of(getattr(thing, name), seen) for name in PATCHER if hasattr(thing, name)}
        # ComfyUI writes LoRAs into a loaded UNet's weights; nobody writes into a subject's values.
        values = _of(thing.model, seen) if type(thing.model).__name__ == "SubjectValues" else id(thing.model)
        return "patcher", id(thing), values, fields
    if hasattr(thing, "cond_stage_model"):
        kept = {name: value for name, value in vars(thing).items() if name != "tokenizer"}
        return (
            "clip",
            id(thing),
            type(thing).__name__,
            {name: _of(value, seen) for name, value in kept.items()},
        )
    if isinstance(thing, MethodType):
        return "method", id(thing.__func__), _of(thing.__self__, seen)
    return type(thing).__name__, _parts(thing, seen), _attributes(thing, seen)


def _parts(thing: Any, seen: dict[int, int]) -> Any:
    if isinstance(thing, torch.Tensor):
        return _digest(thing)
    if isinstance(thing, Mapping):
        return [(_of(key, seen), _of(value, seen)) for key, value in thing.items()]
    if isinstance(thing, (list, tuple)):
        return [_of(item, seen) for item in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(map(repr, thing))
    return int(thing) if isinstance(thing, int) else None


def _attributes(thing: Any, seen: dict[int, int]) -> dict[str, Any]:
    return {name: _of(value, seen) for name, value in getattr(thing, "__dict__", {}).items()}


def _digest(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], str]:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), tuple(tensor.shape), hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
