"""Refuses what would make the host wait for a device: also on a CPU, where nobody would notice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_READS = {
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.__bool__, Tensor.__float__,
    Tensor.__int__, Tensor.__index__,
}  # fmt: skip


class NoHostReads(TorchFunctionMode):
    """Within it, reading a tensor's content on the host is an error."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        assert func not in _READS, f"{func} reads a tensor on the host"
        return func(*args, **(kwargs or {}))


class OwnHostWork(TorchFunctionMode):
    """Counts what this library's own code does on the host with tensors that a GPU would have to wait for:
    `reads` of their content, and `copies` to a device of tensors that are made or kept on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        caller = sys._getframe(1)
        place = f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno} {caller.f_code.co_name}"
        if "nested_attention" in Path(caller.f_code.co_filename).parts:
            read = func in _READS - {
                Tensor.cpu,
                Tensor.numpy,
                Tensor.tolist,
            }  # of marks, which are on the CPU
            if read:
                self.reads.append(place)
            devices = [x for x in (*args[1:], *(kwargs or {}).values()) if isinstance(x, torch.device)]
            if (
                func is Tensor.to and devices and caller.f_code.co_name != "forward"
            ):  # of K̆ and V̆, if offloaded
                self.copies.append(place)
        return func(*args, **(kwargs or {}))
