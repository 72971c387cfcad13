"""Frozen linear layers whose weights are held in 8 bits."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class LinearInFp8(nn.Module):
    """A frozen linear layer with weights in float8 (e4m3), cast to the input's dtype at each use.

    Nothing is scaled: SDXL's weights lie well within float8's range.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)"""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


def hold_in_fp8(model: nn.Module) -> None:
    """Exchange every linear layer of the attention blocks in place: most of a UNet's weights. Layers outside,
    which embed time and sizes, keep theirs."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "attentions." in name:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LinearInFp8(module))
