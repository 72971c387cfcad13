"""A deep picture of an object: two of them are equal exactly if nothing in it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

_PLAIN = (str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device, type)
_BY_IDENTITY = (FunctionType, BuiltinFunctionType, ModuleType)


def snapshot(thing: Any, leave_out: frozenset[str] = frozenset()) -> Any:
    """Values and tensors' contents all the way down, with identities where something is held by reference.

    leave_out: names of attributes that are not looked into (what ComfyUI keeps there of its own memory).
    """
    return _of(thing, leave_out, {})


def _of(thing: Any, leave_out: frozenset[str], seen: dict[int, Any]) -> Any:
    if isinstance(thing, _PLAIN) and not hasattr(thing, "__dict__"):
        return type(thing).__name__, repr(thing)
    if isinstance(thing, (*_BY_IDENTITY, type)):
        return "same", id(thing)
    if id(thing) in seen:
        return "again", seen[id(thing)]
    seen[id(thing)] = len(seen)
    if isinstance(thing, MethodType):
        return "method", id(thing.__func__), _of(thing.__self__, leave_out, seen)
    parts: dict[str, Any] = {}
    if isinstance(thing, torch.Tensor):
        parts["tensor"] = _tensor(thing)
    elif isinstance(thing, Mapping):
        parts["items"] = [
            (repr(key) if isinstance(key, _PLAIN) else _of(key, leave_out, seen), _of(value, leave_out, seen))
            for key, value in thing.items()
        ]
    elif isinstance(thing, (list, tuple)):
        parts["items"] = [_of(item, leave_out, seen) for item in thing]
    elif isinstance(thing, (set, frozenset)):
        parts["items"] = sorted(map(repr, thing))
    attributes = getattr(thing, "__dict__", {})
    parts["attributes"] = {
        name: _of(value, leave_out, seen) for name, value in attributes.items() if name not in leave_out
    }
    if isinstance(thing, int):
        parts["value"] = int(thing)
    return type(thing).__name__, parts


def _tensor(thing: torch.Tensor) -> tuple[Any, ...]:
    data = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(data.data if data.size else b"", digest_size=16)
    return str(thing.dtype), tuple(thing.shape), digest.hexdigest()
