"""A second GPU that is none: tensors on the CPU that are said to be elsewhere, and may not meet others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

SECOND = torch.device("cuda", 1)
DEVICE = Tensor.device.__get__  # type: ignore[attr-defined]


class SecondGPU(TorchFunctionMode):
    """Within it, `.to(SECOND)` and `device=SECOND` give tensors whose device is SECOND.

    An operation on tensors of both devices is an error, as with two GPUs. A tensor without dimensions may be
    on any.
    """

    def __init__(self) -> None:
        super().__init__()
        self._there: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((args, kwargs)))
        if func == DEVICE:
            return SECOND if args[0] in self._there else func(*args)
        places = {one in self._there for one in tensors if one.dim()}
        to = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device)]
        if func is Tensor.to and len(tensors) == 2:  # the second one's device and dtype
            to, places = [SECOND if args[1] in self._there else torch.device("cpu")], {False}
        assert len(places) < 2 or func is Tensor.copy_, f"{func} of tensors on two devices"
        there = to[0] == SECOND if to else func is not Tensor.cpu and places == {True}
        here = torch.device("cpu")
        args, kwargs = tree_map(lambda x: here if isinstance(x, torch.device) else x, (args, kwargs))
        out = func(*args, **kwargs)
        if (
            isinstance(out, Tensor)
            and any(out is one for one in tensors)
            and there is not (out in self._there)
        ):
            out = out.view_as(out)  # the same tensor on the other device
        for one in _tensors(out) if there else ():
            self._there[one] = True
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))
