"""How ComfyUI names what diffusers and transformers files contain: configurations and state-dict keys.

The small world is stored as its training left it, in diffusers' and transformers' layout, and runs in
ComfyUI. These functions are the whole difference. They convert small models of SDXL's kind with any number of
levels, which ComfyUI's own converters (written for the released checkpoints) do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...errors import NestedAttentionError

Config = Mapping[str, Any]
Weights = dict[str, Tensor]

VOCABULARY = 49408
"""Rows of CLIP's token embedding."""


def unet_config(config: Config) -> dict[str, Any]:
    """The `unet_config` from which ComfyUI builds what a diffusers UNet2DConditionModel's config describes.

    Raises NestedAttentionError if ComfyUI cannot express it.
    """
    widths = config["block_out_channels"]
    levels = len(widths)
    if any(width % widths[0] for width in widths):
        raise NestedAttentionError(
            f"UNet config: block_out_channels is {list(widths)}; ComfyUI builds a UNet only from whole "
            f"multiples of its first width, {widths[0]}"
        )
    blocks = _per_level(config["layers_per_block"], levels)
    layers = _per_level(config.get("transformer_layers_per_block", 1), levels)
    crossed = [kind.startswith("CrossAttn") for kind in config["down_block_types"]]
    heads = _per_level(config["attention_head_dim"], levels)  # diffusers' name for the number of heads
    sizes = {w // h for w, h, cross in zip(widths, heads, crossed, strict=True) if cross}
    sizes.add(widths[-1] // heads[-1])  # the middle block attends on every path
    if len(sizes) > 1:
        raise NestedAttentionError(
            f"UNet config: head sizes {sorted(sizes)}; ComfyUI builds a UNet of one head size"
        )
    depths = [layer if cross else 0 for layer, cross in zip(layers, crossed, strict=True)]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": blocks,
        "transformer_depth": [d for d, n in zip(depths, blocks, strict=True) for _ in range(n)],
        "transformer_depth_output": [d for d, n in zip(depths, blocks, strict=True) for _ in range(n + 1)],
        "transformer_depth_middle": layers[-1],
        "context_dim": config["cross_attention_dim"],
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "num_classes": "sequential",
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "legacy": False,
        "num_heads": -1,
        "num_head_channels": sizes.pop(),
    }


def unet_weights(weights: Mapping[str, Tensor], comfy_config: Config) -> Weights:
    """A diffusers UNet's state dict under ComfyUI's names."""
    names = comfy.utils.unet_to_diffusers(dict(comfy_config))
    return _rename(weights, names, "UNet")


def vae_params(config: Config) -> dict[str, Any]:
    """The `params` from which ComfyUI builds a diffusers AutoencoderKL's config.

    Raises NestedAttentionError if ComfyUI cannot express it.
    """
    widths = config["block_out_channels"]
    if any(width % widths[0] or width % 32 for width in widths):
        raise NestedAttentionError(
            f"VAE config: block_out_channels is {list(widths)}; ComfyUI builds a VAE only from whole "
            "multiples of its first width, each a multiple of 32"
        )
    channels = config["latent_channels"]
    return {
        "embed_dim": channels,
        "ddconfig": {
            "double_z": True,
            "z_channels": channels,
            "resolution": config.get("sample_size", 32),
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }


def vae_weights(weights: Mapping[str, Tensor], config: Config) -> Weights:
    """A diffusers AutoencoderKL's state dict under ComfyUI's names.

    ComfyUI's autoencoder always attends in the middle. Where the file does not, zeros are put there: its
    attention is residual, so that a zero projection leaves its input as it is.
    """
    levels, blocks = len(config["block_out_channels"]), config["layers_per_block"]
    converted = _rename(weights, dict(_vae_names(levels, blocks)), "VAE")
    for name, weight in converted.items():
        if ".attn_1." in name and weight.dim() == 2:
            converted[name] = weight[:, :, None, None]  # a linear layer there, a 1×1 convolution here
    for half in ("encoder", "decoder"):
        width = config["block_out_channels"][-1]
        for part in ("q", "k", "v", "proj_out"):
            converted.setdefault(f"{half}.mid.attn_1.{part}.weight", torch.zeros(width, width, 1, 1))
            converted.setdefault(f"{half}.mid.attn_1.{part}.bias", torch.zeros(width))
        for part in ("weight", "bias"):
            converted.setdefault(f"{half}.mid.attn_1.norm.{part}", torch.zeros(width))
    return converted


def text_weights(weights: Mapping[str, Tensor]) -> Weights:
    """A transformers CLIPTextModel's state dict (with or without projection) under ComfyUI's names.

    The token embedding may be stored as the rows in use, `…token_embedding.rows` with their ids in
    `…token_embedding.token_ids`: the other rows are zero. A model without projection gets the identity, as
    ComfyUI does with CLIP-L.
    """
    converted = {}
    for name, weight in weights.items():
        if not name.endswith("position_ids"):
            prefix = "" if name.startswith("text_projection.") else "text_model."
            converted[prefix + name.removeprefix("text_model.")] = weight
    embedding = "text_model.embeddings.token_embedding."
    if embedding + "rows" in converted:
        rows, ids = converted.pop(embedding + "rows"), converted.pop(embedding + "token_ids")
        table = torch.zeros(VOCABULARY, rows.shape[-1], dtype=rows.dtype)
        table[ids.long()] = rows
        converted[embedding + "weight"] = table
    width = converted["text_model.final_layer_norm.weight"].shape[0]
    converted.setdefault("text_projection.weight", torch.eye(width))
    return converted


def _per_level(value: int | list[int] | tuple[int, ...], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)


def _rename(weights: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> Weights:
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise NestedAttentionError(
            f"{what}: {len(unknown)} tensors have no place in ComfyUI's model, the first is {unknown[0]}; "
            "expected a file of the small world in diffusers' layout"
        )
    return {names[name]: weight for name, weight in weights.items()}


def _vae_names(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """(diffusers' name, ComfyUI's name) of every tensor an AutoencoderKL may have."""
    pairs = [("encoder", "down", blocks), ("decoder", "up", blocks + 1)]
    for half, path, count in pairs:
        for end in ("conv_in", "conv_out", "norm_out"):
            yield from _ends(f"{half}.{end.replace('norm_out', 'conv_norm_out')}", f"{half}.{end}")
        for step in range(levels):
            # ComfyUI numbers levels from the finest, diffusers in order of execution.
            level = step if path == "down" else levels - 1 - step
            for i in range(count):
                yield from _resnet(
                    f"{half}.{path}_blocks.{step}.resnets.{i}", f"{half}.{path}.{level}.block.{i}"
                )
            sampler = f"{half}.{path}_blocks.{step}.{path}samplers.0.conv"
            yield from _ends(sampler, f"{half}.{path}.{level}.{path}sample.conv")
        for i in (0, 1):
            yield from _resnet(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}")
        attention = [
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ]
        for there, here in attention:
            yield from _ends(f"{half}.mid_block.attentions.0.{there}", f"{half}.mid.attn_1.{here}")
    yield from _ends("quant_conv", "quant_conv")
    yield from _ends("post_quant_conv", "post_quant_conv")


def _resnet(there: str, here: str) -> Iterator[tuple[str, str]]:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield from _ends(f"{there}.{part}", f"{here}.{part}")
    yield from _ends(f"{there}.conv_shortcut", f"{here}.nin_shortcut")


def _ends(there: str, here: str) -> Iterator[tuple[str, str]]:
    for end in ("weight", "bias"):
        yield f"{there}.{end}", f"{here}.{end}"
