"""Whether ComfyUI's attention gives some rows of a batch the same bits as it gives them within the batch.

It mostly does, for rows do not meet in attention; but the libraries that multiply matrices choose how by the
batch's size, too, and another choice may round otherwise. Nobody documents when, so each shape is tried once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import torch
from torch import Tensor

from ....kernels.rows import Rows

EXACT = (
    comfy_attention.attention_pytorch,
    comfy_attention.attention_sub_quad,
    comfy_attention.attention_split,
    comfy_attention.attention_basic,
)
"""ComfyUI's own functions that compute attention as it is defined, and no approximation of it."""

OVERRIDE = "optimized_attention_override"
"""In the transformer options: what ComfyUI calls in place of its attention function, which it is given."""


def attends_in_parts(q: Tensor, k: Tensor, rows: Rows, options: dict[str, Any]) -> bool:
    """Whether an empty slot may leave to ComfyUI only the rows that carry no subject: they keep their bits.

    On a CPU only, where computing the others as a whole is faster, and only where nobody but ComfyUI has a
    say: no other pack's attention, and no compiler, which would have to follow the trial.
    q: (B, L, inner), k: (B, T, inner), options: the layer's extra_options.
    """
    attend = comfy_attention.optimized_attention
    foreign = attend not in EXACT or OVERRIDE in options
    if q.device.type != "cpu" or foreign or torch.compiler.is_compiling():
        return False
    if len(rows.groups) == 1:
        return True
    part = next((group.rows for group in rows.groups if not group.carried), None)
    if part is None:
        return True
    if not isinstance(part, slice):
        return False  # rows that are no neighbours are rare, and each choice of them would be another trial
    return _same_bits(
        attend, (part.start, part.stop), tuple(q.shape), k.shape[1], options["n_heads"], q.dtype,
        options["attn_precision"], torch.get_num_threads(),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _same_bits(
    attend: Any, part: tuple[int, int], shape: tuple[int, ...], tokens: int, heads: int,
    dtype: torch.dtype, precision: torch.dtype | None, threads: int,
) -> bool:  # fmt: skip
    """threads: of PyTorch now; how a product is split among them may decide how it is rounded."""
    batch, queries, inner = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, length, inner, generator=generator, device="cpu").to(dtype)
        for length in (queries, tokens, tokens)
    )
    here = slice(*part)
    whole = attend(q, k, v, heads=heads, attn_precision=precision)[here]
    return torch.equal(attend(q[here], k[here], v[here], heads=heads, attn_precision=precision), whole)
