"""The arithmetic of passes that are learned from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.backends.cuda import allow_fp16_bf16_reduction_math_sdp, fp16_bf16_reduction_math_sdp_allowed
from torch.nn.attention import SDPBackend, sdpa_kernel

PLAIN = [SDPBackend.MATH]
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def arithmetic(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Of a forward pass: mixed precision in bfloat16 or float16, nothing in float32."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)


@contextmanager
def attention_to_learn_by(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Around whole steps, for checkpointed layers run again in the backward pass: in bfloat16 and float16,
    attention is computed by what has a good gradient.

    On a GPU that is all but cuDNN's: with 77 keys in bfloat16 its gradients were not finite (H100, PyTorch
    2.11). On a CPU it is plain products: the gradient of PyTorch's fused attention takes up to five times as
    long in bfloat16 (PyTorch 2.14, 64 queries and 77 tokens), half of a whole step of a small model.
    """
    if dtype is torch.float32:
        yield
        return
    on_cpu, before = device.type == "cpu", fp16_bf16_reduction_math_sdp_allowed()
    allow_fp16_bf16_reduction_math_sdp(before or on_cpu)
    try:
        with sdpa_kernel(PLAIN if on_cpu else FUSED):
            yield
    finally:
        allow_fp16_bf16_reduction_math_sdp(before)
