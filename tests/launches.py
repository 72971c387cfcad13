"""Counts what would launch a kernel on a GPU: PyTorch's operations, without views and allocations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided",
    "expand", "lift_fresh", "new_empty", "permute", "promote_types", "select", "slice", "split", "squeeze",
    "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """`names`: of the operations that launch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in _FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Attention as one launch, with its output laid out as the fused kernels of a GPU do it.

    On the meta device PyTorch takes its unfused form.
    """

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query: Tensor = args[0]
            batch, heads, length, size = query.shape
            self.launches.names.append("scaled_dot_product_attention")
            return query.new_empty(batch, length, heads, size).transpose(1, 2)
        return func(*args, **(kwargs or {}))
