"""How the mechanism is run: what hosts call in place of the readable form in `attention.py`.

On NVIDIA GPUs with Triton that is `epilogue.py`, for what it supports; everywhere else it is `chunks.py`, in
PyTorch. The first layer on a device decides, and says so in the log. NESTED_ATTENTION_BACKEND chooses: "auto"
(the default), "torch", or "triton", which is an error where Triton does not run. What anchored subjects add
(`anchored.py`) comes on top of either, from `additions.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from ..anchored import AnchoredSubject
from ..attention import BoundSubject, plain_attention
from ..errors import NestedAttentionError
from . import chunks
from .additions import add_anchored
from .rows import Rows, read_rows

BACKENDS = ("auto", "torch", "triton")
BACKEND = os.environ.get("NESTED_ATTENTION_BACKEND", "auto")

logger = logging.getLogger("nested_attention")


def nested(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int,
    rows: Rows | None = None, unmarked: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """`attention.nested_cross_attention`.

    rows: `read_rows(subjects, query.device)`, where several layers have subjects with these masks.
    unmarked: the attention of rows that carry no subject, (q, k, v) → out; plain attention if None.
    """
    rows = read_rows(subjects, query.device) if rows is None else rows
    own = _nested_only(subjects, rows)
    epilogue = _epilogue(query, key, value, subjects, heads, own)
    if epilogue is None:
        out = chunks.nested(query, key, value, subjects, heads=heads, rows=own, unmarked=unmarked)
    else:
        out = unmarked(query, key, value) if unmarked else plain_attention(query, key, value, heads=heads)
        out = epilogue.add_correction(out, query, key, value, subjects, heads=heads, rows=own)
    return out if own is rows else add_anchored(out, query, key, subjects, heads=heads, rows=rows)


def correction(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int,
    rows: Rows | None = None,
) -> Tensor:  # fmt: skip
    """`attention.subject_correction`. rows: as in `nested`."""
    rows = read_rows(subjects, query.device) if rows is None else rows
    own = _nested_only(subjects, rows)
    epilogue = _epilogue(query, key, value, subjects, heads, own)
    if epilogue is None:
        change = chunks.correction(query, key, value, subjects, heads=heads, rows=own)
    else:
        change = torch.zeros_like(query, memory_format=torch.contiguous_format)
        change = epilogue.add_correction(change, query, key, value, subjects, heads=heads, rows=own)
    return change if own is rows else add_anchored(change, query, key, subjects, heads=heads, rows=rows)


def add_correction(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], *, heads: int,
    plain: bool, rows: Rows | None = None,
) -> Tensor:  # fmt: skip
    """What a host has computed already, plus `attention.subject_correction`.

    plain: whether `out` is the plain text attention and nobody else's: it is written over then.
    rows: as in `nested`.
    """
    rows = read_rows(subjects, query.device) if rows is None else rows
    own = _nested_only(subjects, rows)
    epilogue = _epilogue(query, key, value, subjects, heads, own)
    if epilogue is None or out.dtype != query.dtype:
        out = chunks.add_correction(out, query, key, value, subjects, heads=heads, plain=plain, rows=own)
    else:
        out = out if plain and out.stride(-1) == 1 else out.clone(memory_format=torch.contiguous_format)
        out = epilogue.add_correction(out, query, key, value, subjects, heads=heads, rows=own)
    return out if own is rows else add_anchored(out, query, key, subjects, heads=heads, rows=rows)


def _nested_only(subjects: Sequence[BoundSubject], rows: Rows) -> Rows:
    """The rows without their anchored subjects; `rows` itself where there are none."""
    nested = [number for number, one in enumerate(subjects) if not isinstance(one, AnchoredSubject)]
    return rows if len(nested) == len(subjects) else rows.only(nested)


def _epilogue(
    query: Tensor, key: Tensor, value: Tensor, subjects: Sequence[BoundSubject], heads: int, rows: Rows
) -> ModuleType | None:
    """The Triton back end, where it is to run."""
    if torch.compiler.is_compiling():  # a compiler fuses the other form
        return None
    found = _on_device(query.device, BACKEND)
    return found if found and found.supports(query, key, value, subjects, heads, rows) else None


@lru_cache
def _on_device(device: torch.device, wanted: str) -> ModuleType | None:
    """The Triton back end if it runs on a GPU; says in the log which one is taken, and why."""
    if wanted not in BACKENDS:
        raise NestedAttentionError(
            f"NESTED_ATTENTION_BACKEND is {wanted!r}; expected one of {', '.join(BACKENDS)}"
        )
    reason = "NESTED_ATTENTION_BACKEND is 'torch'" if wanted == "torch" else _why_not(device)
    if reason is None:
        from . import epilogue

        logger.info(f"Nested Attention: subjects run on Triton kernels on {device}")
        return epilogue
    if wanted == "triton":
        raise NestedAttentionError(
            f"NESTED_ATTENTION_BACKEND is 'triton', and Triton does not run on {device}: {reason}. Unset the "
            "variable to run in PyTorch"
        )
    logger.info(f"Nested Attention: subjects run in PyTorch on {device}: {reason}")
    return None


def _why_not(device: torch.device) -> str | None:
    """Why Triton's kernel does not run there; None if it does: it is tried, for it needs a C compiler too."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels are for compute capability 8.0 and above"
    try:
        from . import epilogue

        return epilogue.tried(device)
    except Exception as error:  # whatever a compiler, a driver or a missing package may raise
        first = str(error).strip().splitlines()
        return f"{type(error).__name__}: {first[0] if first else 'no message'}"
