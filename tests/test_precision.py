"""The arithmetic of training: lower precision where it is asked for, and attention whose gradient is fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.backends.cuda import fp16_bf16_reduction_math_sdp_allowed
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from nested_attention.training.precision import arithmetic, attention_to_learn_by

CPU = torch.device("cpu")


class Names(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def _gradients(dtype: torch.dtype) -> tuple[list[torch.Tensor], set[str]]:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 2, n, 16, generator=generator).requires_grad_() for n in (64, 77, 77)]
    with Names() as names, attention_to_learn_by(CPU, dtype):
        with arithmetic(CPU, dtype):
            q, k, v = (leaf @ torch.eye(16) for leaf in leaves)
            out = checkpoint(scaled_dot_product_attention, q, k, v, use_reentrant=False)
        out.float().square().sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None], names.seen


def test_attention_in_bfloat16_on_a_cpu_is_made_of_products() -> None:
    exact, plain = _gradients(torch.float32)
    rounded, names = _gradients(torch.bfloat16)
    assert any("flash" in name for name in plain) and not any("flash" in name for name in names)
    for one, other in zip(exact, rounded, strict=True):
        assert (one - other).norm() / one.norm() < 0.02


def test_what_is_switched_is_switched_back() -> None:
    before = fp16_bf16_reduction_math_sdp_allowed()
    with pytest.raises(KeyError), attention_to_learn_by(CPU, torch.bfloat16):
        assert fp16_bf16_reduction_math_sdp_allowed() and not torch.is_autocast_enabled("cpu")
        raise KeyError
    assert fp16_bf16_reduction_math_sdp_allowed() == before
    with attention_to_learn_by(CPU, torch.float32), arithmetic(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu") and fp16_bf16_reduction_math_sdp_allowed() == before
