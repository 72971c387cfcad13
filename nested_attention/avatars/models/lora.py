"""Low-rank changes of the small world's UNet (LoRA): trained beside frozen layers, kept as kohya's files are.

ComfyUI's LoRA loaders, and most others, read that layout: for a layer `down_blocks.0.….to_q`, the tensors
`lora_unet_down_blocks_0_…_to_q.lora_down.weight`, `….lora_up.weight` and `….alpha`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ...errors import NestedAttentionError
from ...paths import SMALL_WORLD
from ...storage.tensors import write_tensors
from .storage import read_float

PREFIX = "lora_unet_"

PATH = SMALL_WORLD / "loras" / "avatars_ink.safetensors"
"""In a folder of its own: ComfyUI lists everything in a folder of LoRAs."""


class LoRALayer(nn.Module):
    """A frozen linear layer W plus scale · up · down; up begins at zero, so that nothing changes at first."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.alpha, self.scale = layer, alpha, alpha / rank
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)"""
        return self.layer(x) + self.scale * self.up(self.down(x))


def lora_sites(unet: UNet2DConditionModel) -> dict[str, nn.Linear]:
    """The linear layers that a LoRA changes: all of the transformer blocks, by name."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in name
    }


def add_lora(unet: UNet2DConditionModel, rank: int, alpha: float | None = None) -> nn.ModuleDict:
    """Put a LoRA layer at every site, in place; returns the layers, by kohya's names."""
    layers = nn.ModuleDict()
    for name, layer in lora_sites(unet).items():
        parent, _, last = name.rpartition(".")
        layers[_kohya(name)] = LoRALayer(layer, rank, float(rank if alpha is None else alpha))
        setattr(unet.get_submodule(parent), last, layers[_kohya(name)])
    return layers


def remove_lora(unet: UNet2DConditionModel) -> None:
    """Take all LoRA layers out again, in place."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, LoRALayer):
            parent, _, last = name.rpartition(".")
            setattr(unet.get_submodule(parent), last, module.layer)


def save_lora(layers: nn.ModuleDict, path: Path) -> None:
    """Write LoRA layers as fp16 safetensors, in kohya's layout."""
    tensors: dict[str, Tensor] = {}
    for name, module in layers.items():
        layer: Any = module
        tensors[f"{name}.lora_down.weight"] = layer.down.weight.detach().half().contiguous()
        tensors[f"{name}.lora_up.weight"] = layer.up.weight.detach().half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {})


@contextmanager
def lora_applied(unet: UNet2DConditionModel, path: Path = PATH, strength: float = 1.0) -> Iterator[None]:
    """The UNet with a LoRA file added to its weights, for as long as the block runs.

    Raises NestedAttentionError, naming the file, if it is missing or damaged, or changes a layer that the
    UNet does not have.
    """
    state, sites = read_float(path), {_kohya(name): layer for name, layer in lora_sites(unet).items()}
    names = {key.split(".", 1)[0] for key in state}
    unknown = sorted(names - sites.keys())
    if unknown:
        raise NestedAttentionError(
            f"{path.name}: {len(unknown)} of its layers are not in the small world's UNet, the first is "
            f"{unknown[0]}; expected a LoRA of the small world"
        )
    before = {name: sites[name].weight.data for name in names}
    for name in names:
        up, down = state[f"{name}.lora_up.weight"], state[f"{name}.lora_down.weight"]
        scale = strength * float(state[f"{name}.alpha"]) / len(down)
        sites[name].weight.data = before[name] + scale * (up @ down)
    try:
        yield
    finally:
        for name in names:
            sites[name].weight.data = before[name]


def _kohya(name: str) -> str:
    return PREFIX + name.replace(".", "_")
