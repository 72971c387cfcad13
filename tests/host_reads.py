"""Refuses what would make the host wait for a device: also on a CPU, where nobody would notice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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
