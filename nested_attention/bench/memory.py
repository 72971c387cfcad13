"""The memory that tensors made within a context take at their peak: counted, so the same at every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`peak`: bytes of storages made inside and alive at once. `on_output` sees every tensor made."""

    def __init__(self, on_output: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self.peak = 0
        self._on_output = on_output
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata not in self._live:
                self._before.setdefault(reference.cdata, reference)
        out = func(*args, **(kwargs or {}))
        self._live = {cdata: entry for cdata, entry in self._live.items() if not entry[0].expired()}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self._before:
                self._live[reference.cdata] = (reference, storage.nbytes())
                if self._on_output is not None:
                    self._on_output(tensor)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
