"""Low-rank changes of the small world's UNet (LoRA), by peft; files in the layout of kohya's scripts.

ComfyUI's LoRA loaders, and most others, read that layout: for a layer `down_blocks.0.….to_q`, the tensors
`lora_unet_down_blocks_0_…_to_q.lora_down.weight`, `….lora_up.weight` and `….alpha`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from ...errors import NestedAttentionError
from ...paths import SMALL_WORLD
from ...storage.tensors import write_tensors
from .storage import read_float

ADAPTER = "style"

PATH = SMALL_WORLD / "loras" / "avatars_ink.safetensors"
"""In a folder of its own: ComfyUI lists everything in a folder of LoRAs."""


def lora_sites(unet: UNet2DConditionModel) -> list[str]:
    """The linear layers that a LoRA changes: all of the transformer blocks, by name."""
    linear = (nn.Linear, LoraLayer)
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, linear)
        and ".attentions." in name
        # Inside a layer that carries a LoRA:
        and not any(part in name for part in (".base_layer", ".lora_"))
    ]


def add_lora(unet: UNet2DConditionModel, rank: int) -> nn.ModuleDict:
    """Put a LoRA that changes nothing yet at every site, in place; returns its weights.
    `unet.unload_lora()` takes it out again."""
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=lora_sites(unet), init_lora_weights="gaussian"),
        ADAPTER,
    )
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    return nn.ModuleDict(
        {
            name.replace(".", "_"): nn.ModuleDict(
                {"down": layer.lora_A[ADAPTER], "up": layer.lora_B[ADAPTER]}
            )
            for name, layer in layers.items()
        }
    )


def lora_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The tensors of the LoRA on a UNet, by kohya's names."""
    state = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    return convert_state_dict_to_kohya({f"unet.{name}": value for name, value in state.items()})


def save_lora(state: dict[str, Tensor], path: Path) -> None:
    """Write a LoRA's tensors as fp16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {name: value.detach().half().contiguous() for name, value in state.items()}, {})


@contextmanager
def lora_applied(unet: UNet2DConditionModel) -> Iterator[None]:
    """The UNet with the LoRA of `PATH` at its layers, for as long as the block runs.

    Raises NestedAttentionError, naming the file, if it is missing or damaged, or changes a layer that the
    UNet does not have.
    """
    state = read_float(PATH)
    sites = {"lora_unet_" + name.replace(".", "_") for name in lora_sites(unet)}
    unknown = sorted({key.split(".", 1)[0] for key in state} - sites)
    if unknown:
        raise NestedAttentionError(
            f"{PATH.name}: {len(unknown)} of its layers are not in the small world's UNet, the first is "
            f"{unknown[0]}; expected a LoRA of the small world"
        )
    weights, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(state)
    unet.load_lora_adapter(weights, network_alphas=alphas, prefix="unet", adapter_name=ADAPTER)
    try:
        yield
    finally:
        unet.unload_lora()
