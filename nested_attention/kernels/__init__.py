"""How the mechanism is run: what hosts call in place of the readable form in `attention.py`.

NESTED_ATTENTION_BACKEND is "torch" (the default) or "fused". The kernels run on CUDA with Triton, for what
they support; anything else runs in PyTorch (`chunks.py`). They stay off by default until docs/performance.md
has their figures.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import NestedAttentionError
from . import chunks

BACKENDS = ("torch", "fused")
BACKEND = os.environ.get("NESTED_ATTENTION_BACKEND", "torch")


def correction(query: Tensor, *args: Any, **options: Any) -> Tensor:
    """`attention.subject_correction` by the chosen backend."""
    return _chosen(query, "fused_correction", chunks.correction)(query, *args, **options)


def nested(query: Tensor, key: Tensor, value: Tensor, subjects: Any, *, heads: int, **options: Any) -> Tensor:
    """`attention.nested_cross_attention` by the chosen backend."""
    run = _chosen(query, "fused_nested", chunks.nested)
    if run is not chunks.nested:
        from .fused import supports

        if supports(query, subjects, heads, (key, value)):
            options.pop("unmarked", None)  # the kernels run all rows alike
        else:
            run = chunks.nested
    return run(query, key, value, subjects, heads=heads, **options)


def _chosen(query: Tensor, name: str, reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if BACKEND not in BACKENDS:
        raise NestedAttentionError(
            f"NESTED_ATTENTION_BACKEND is {BACKEND!r}; expected one of {', '.join(BACKENDS)}"
        )
    if BACKEND == "torch" or not query.is_cuda:
        return reference
    try:
        from . import fused
    except ImportError as error:
        raise NestedAttentionError(
            "NESTED_ATTENTION_BACKEND is 'fused', and Triton cannot be imported "
            f"({error}); install the triton of this PyTorch, or unset the variable"
        ) from error
    run: Callable[..., Tensor] = getattr(fused, name)
    return run
