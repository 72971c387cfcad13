"""The arithmetic of a pass that is learned from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends.cuda import allow_fp16_bf16_reduction_math_sdp, fp16_bf16_reduction_math_sdp_allowed
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def arithmetic(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Mixed precision in bfloat16 or float16, nothing in float32.

    On a CPU, attention is then made of plain products: the gradient of PyTorch's fused one takes up to five
    times as long in bfloat16 (PyTorch 2.14, 64 queries and 77 tokens), half of a whole step of a small model.
    """
    if dtype is torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        if device.type != "cpu":
            yield
            return
        before = fp16_bf16_reduction_math_sdp_allowed()
        allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            allow_fp16_bf16_reduction_math_sdp(before)
