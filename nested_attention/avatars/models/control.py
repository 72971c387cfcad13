"""The pose ControlNet of the small world: its network, its file, and what it adds to the UNet.

Its file is in the layout of the first ControlNets, which ComfyUI's own loader recognises from the tensors, as
it does any other: heads of 64 channels, the size that loader assumes, and no size or pooled conditioning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as functional
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from ...errors import NestedAttentionError
from ...paths import SMALL_WORLD
from ...storage.tensors import write_tensors
from ..drawing.picture import ENLARGE
from . import model
from .pixels import channels_first
from .storage import read_float

HEAD = 64
"""Channels of a head: ComfyUI's loader takes this for any ControlNet whose sizes it does not know."""

PATH = SMALL_WORLD / "controlnet" / "avatars_pose.safetensors"
"""In a folder of its own: ComfyUI lists everything in a folder of ControlNets."""


def new_control() -> ControlNetModel:
    """A randomly initialised ControlNet that fits the UNet of the small world."""
    shared = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block")
    more = ("cross_attention_dim", "use_linear_projection", "norm_num_groups")
    return ControlNetModel(
        **{name: model.UNET[name] for name in (*shared, *more)},
        attention_head_dim=[max(1, width // HEAD) for width in model.UNET["block_out_channels"]],
    )


def control_from(unet: UNet2DConditionModel) -> ControlNetModel:
    """One that begins as a copy of the UNet's first half and adds nothing yet, as the paper's do."""
    control = new_control()
    own = control.state_dict()
    shared = {name: value for name, value in unet.state_dict().items() if name in own}
    control.load_state_dict({**own, **shared})
    return control


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet with a control picture for each of a batch's prompts."""

    network: ControlNetModel
    maps: np.ndarray  # (B, 32, W, 3) uint8

    def rows(self, rows: slice) -> Control:
        """The same for some of the prompts."""
        return replace(self, maps=self.maps[rows])

    def residuals(self, x: Tensor, t: Tensor, context: Tensor) -> dict[str, Any]:
        """What the UNet is called with beside its inputs, for x (B, 12, 16, w) and context (B, 77, 256)."""
        return residuals(self.network, x, t, context, to_hint(self.maps))


def residuals(
    network: ControlNetModel, x: Tensor, t: Tensor, context: Tensor, hint: Tensor
) -> dict[str, Any]:
    """A ControlNet's outputs under the names by which diffusers' UNet takes them. hint (B, 3, 128, 8·w)"""
    down, middle = network(x, t, context, hint, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def to_hint(maps: np.ndarray | Tensor) -> Tensor:
    """Control pictures (n, 32, W, 3) uint8 → what a ControlNet reads, (n, 3, 128, 4·W) in [0, 1]."""
    pixels = channels_first(maps).div(255)
    return functional.interpolate(pixels, scale_factor=ENLARGE, mode="nearest")


def save_control(network: ControlNetModel, path: Path) -> None:
    """Write a ControlNet as fp16 safetensors, under the names of the first ControlNets."""
    names = dict(_names(network.config))
    state = {names[key]: value.half().contiguous() for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, {})


def load_control(path: Path = PATH) -> ControlNetModel:
    """Read one back, in fp32. Raises NestedAttentionError if the file is missing, damaged or of another
    world."""
    state, network = read_float(path), new_control()
    names = dict(_names(network.config))
    wrong = sorted(state.keys() ^ set(names.values()))
    if wrong:
        raise NestedAttentionError(
            f"{path.name}: {len(wrong)} tensors do not fit the small world's ControlNet, the first is "
            f"{wrong[0]}; expected the file that comes with the pack. Install the pack again"
        )
    network.load_state_dict({key: state[name] for key, name in names.items()})
    return network.eval().requires_grad_(False)


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


def _names(config: Any) -> Iterator[tuple[str, str]]:
    """(diffusers' name, the first ControlNets' name) of every tensor."""
    own = ControlNetModel.from_config(config).state_dict()
    prefixes = dict(_prefixes(config))
    for key in own:
        prefix = max((p for p in prefixes if key.startswith(f"{p}.")), key=len)
        yield key, prefixes[prefix] + key.removeprefix(prefix)


def _prefixes(config: Any) -> Iterator[tuple[str, str]]:
    """(diffusers' name, the first ControlNets' name) of modules that have the same names inside."""
    widths, kinds, blocks = (
        config["block_out_channels"],
        config["down_block_types"],
        config["layers_per_block"],
    )
    yield "conv_in", "input_blocks.0.0"
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    number = 1
    for level, kind in enumerate(kinds):
        for i in range(blocks):
            yield from _resnet(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{number}.0")
            if kind.startswith("CrossAttn"):
                yield f"down_blocks.{level}.attentions.{i}", f"input_blocks.{number}.1"
            number += 1
        if level + 1 < len(widths):
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    yield from ((f"controlnet_down_blocks.{i}", f"zero_convs.{i}.0") for i in range(number))
    yield "controlnet_mid_block", "middle_block_out.0"
    steps = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    yield "controlnet_cond_embedding.conv_in", "input_hint_block.0"
    yield from (
        (f"controlnet_cond_embedding.blocks.{i}", f"input_hint_block.{2 * i + 2}") for i in range(steps)
    )
    yield "controlnet_cond_embedding.conv_out", f"input_hint_block.{2 * steps + 2}"


def _resnet(there: str, here: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{there}.{a}", f"{here}.{b}") for a, b in _RESNET.items())
    yield f"{there}.conv_shortcut", f"{here}.skip_connection"
