"""The cross-attention layers of a UNet ("sites") and the two ways their hosts name them.

A site is named after diffusers' module path, `down_blocks.1.attentions.0.transformer_blocks.0.attn2`.
ComfyUI addresses the same layer as block `("input", 4)`, transformer 0. Which block holds which path follows
from how the UNet is built, so it is derived from the UNet's structure (`UNetLayout`) and holds for SDXL, for
its distilled relatives and for small worlds alike.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import NestedAttentionError

ComfyAddress = tuple[str, int, int]
"""(block kind, block number, transformer index): ComfyUI's `block` and `block_index` of one layer."""

_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_.")
_LARGEST = 2**18  # of any layer's sizes
_ORDER = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
_SDXL_CONTEXT = 2048
SD15_CONTEXT = 768
SMALL_WORLD = "the small world"
_FAMILIES = {
    (70, _SDXL_CONTEXT): "SDXL",
    (16, SD15_CONTEXT): "SD 1.5",
    (16, 1024): "SD 2",
    (7, 256): SMALL_WORLD,
}
"""(cross-attention layers, width of their context) → what a user calls such a base model."""


def check_size(what: str, size: object) -> None:
    """Refuse what cannot be a layer's size, before a damaged file makes torch allocate or overflow on it."""
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _LARGEST:
        raise NestedAttentionError(f"{what} is {size!r:.40}; expected an integer from 1 to {_LARGEST}")


@dataclass(frozen=True)
class Site:
    """One cross-attention layer.

    name: diffusers' module path. inner_dim: width of its queries, keys and values (all heads).
    heads: number of heads. context_dim: width of the text context it attends to.
    """

    name: str
    inner_dim: int
    heads: int
    context_dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or set(self.name) - _NAME_CHARACTERS:
            raise NestedAttentionError(
                f"a site's name is {self.name!r}; expected a diffusers module path such as "
                "'down_blocks.1.attentions.0.transformer_blocks.0.attn2'"
            )
        for label in ("inner_dim", "heads", "context_dim"):
            check_size(f"site {self.name}: {label}", getattr(self, label))
        if self.inner_dim % self.heads:
            raise NestedAttentionError(
                f"site {self.name}: inner_dim {self.inner_dim} cannot be divided into {self.heads} heads"
            )


@dataclass(frozen=True, kw_only=True)
class UNetLayout:
    """Where a UNet of SDXL's kind has cross-attention. The defaults are SDXL base.

    channel_mult, num_res_blocks: one entry a level, from the finest to the coarsest.
    transformer_depth: transformer layers after each residual block of the down path, in order of execution
        (sum(num_res_blocks) entries). transformer_depth_output: the same for the up path, one more a level,
        but listed from the finest level to the coarsest, that is from the last block executed to the first.
    transformer_depth_middle: layers of the middle block; 0 or less if it has none.
    num_heads, num_head_channels: as in ComfyUI's `unet_config`: the head size if it is not -1, else the
    number.
    """

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    transformer_depth: tuple[int, ...] = (0, 0, 2, 2, 10, 10)
    transformer_depth_output: tuple[int, ...] = (0, 0, 0, 2, 2, 2, 10, 10, 10)
    transformer_depth_middle: int = 10
    context_dim: int = 2048
    num_heads: int = -1
    num_head_channels: int = 64

    def __post_init__(self) -> None:
        if len(self.num_res_blocks) != len(self.channel_mult):
            raise NestedAttentionError(
                f"UNet layout: {len(self.num_res_blocks)} entries in num_res_blocks and "
                f"{len(self.channel_mult)} in channel_mult; expected one each per level"
            )
        down, up = sum(self.num_res_blocks), sum(n + 1 for n in self.num_res_blocks)
        if (len(self.transformer_depth), len(self.transformer_depth_output)) != (down, up):
            raise NestedAttentionError(
                f"UNet layout: {len(self.transformer_depth)} entries in transformer_depth and "
                f"{len(self.transformer_depth_output)} in transformer_depth_output; expected {down} and {up} "
                f"for num_res_blocks {self.num_res_blocks}"
            )
        if self.num_heads < 1 and self.num_head_channels < 1:
            raise NestedAttentionError("UNet layout: neither num_heads nor num_head_channels is given")

    @classmethod
    def from_comfy_config(cls, unet_config: Mapping[str, Any]) -> UNetLayout:
        """The layout of a ComfyUI model (`model.model_config.unet_config`)."""
        needed = {"model_channels", "channel_mult", "num_res_blocks", "context_dim"}
        needed |= {"transformer_depth", "transformer_depth_output"}
        missing = sorted(key for key in needed if unet_config.get(key) is None)
        if missing:
            raise NestedAttentionError(
                f"this model's UNet configuration lacks {', '.join(missing)}: nested attention needs a UNet "
                "of SDXL's kind; connect an SDXL checkpoint"
            )
        levels = tuple(unet_config["channel_mult"])
        blocks = unet_config["num_res_blocks"]
        return cls(
            model_channels=unet_config["model_channels"],
            channel_mult=levels,
            num_res_blocks=(blocks,) * len(levels) if isinstance(blocks, int) else tuple(blocks),
            transformer_depth=tuple(unet_config["transformer_depth"]),
            transformer_depth_output=tuple(unet_config["transformer_depth_output"]),
            transformer_depth_middle=unet_config.get("transformer_depth_middle") or 0,
            context_dim=unet_config["context_dim"],
            num_heads=unet_config.get("num_heads", -1),
            num_head_channels=unet_config.get("num_head_channels", -1),
        )

    @cached_property
    def comfy_sites(self) -> dict[ComfyAddress, Site]:
        """Every site by its ComfyUI address, in diffusers' order: down, up, mid."""
        return dict(self._walk())

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in diffusers' order: down, up, mid."""
        return tuple(self.comfy_sites.values())

    def _walk(self) -> Iterator[tuple[ComfyAddress, Site]]:
        # Block ("input", 0) is the first convolution; each level but the last ends with a downsampler, which
        # is a block of its own on the way down and part of the last block on the way up.
        depths = iter(self.transformer_depth)
        number = 1
        for level, blocks in enumerate(self.num_res_blocks):
            for i in range(blocks):
                path = f"down_blocks.{level}.attentions.{i}"
                yield from self._block(("input", number), path, self.channel_mult[level], next(depths))
                number += 1
            number += 1

        depths = reversed(self.transformer_depth_output)
        number = 0
        for step, level in enumerate(reversed(range(len(self.channel_mult)))):
            for i in range(self.num_res_blocks[level] + 1):
                path = f"up_blocks.{step}.attentions.{i}"
                yield from self._block(("output", number), path, self.channel_mult[level], next(depths))
                number += 1

        middle = self.transformer_depth_middle
        yield from self._block(("middle", 0), "mid_block.attentions.0", self.channel_mult[-1], middle)

    def _block(
        self, block: tuple[str, int], path: str, mult: int, depth: int
    ) -> Iterator[tuple[ComfyAddress, Site]]:
        width = self.model_channels * mult
        heads = width // self.num_head_channels if self.num_head_channels > 0 else self.num_heads
        for index in range(depth):
            name = f"{path}.transformer_blocks.{index}.attn2"
            yield (*block, index), Site(name, width, heads, self.context_dim)


def sdxl_sites() -> tuple[Site, ...]:
    """The 70 cross-attention layers of SDXL base, in diffusers' order: down, up, mid."""
    return UNetLayout().sites


def sd15_sites() -> tuple[Site, ...]:
    """The 16 of SD 1.5, in the same order."""
    layout = UNetLayout(
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=(2, 2, 2, 2),
        transformer_depth=(1, 1, 1, 1, 1, 1, 0, 0),
        transformer_depth_output=(*(1,) * 9, *(0,) * 3),
        transformer_depth_middle=1,
        context_dim=SD15_CONTEXT,
        num_heads=8,
        num_head_channels=-1,
    )
    return layout.sites


def uncompiled(unet: Any) -> Any:
    """The module itself, where `torch.compile` has wrapped it in another."""
    return getattr(unet, "_orig_mod", unet)


def diffusers_sites(unet: Any) -> tuple[Site, ...]:
    """The cross-attention layers of a diffusers UNet2DConditionModel, in diffusers' order: down, up, mid."""
    found = [
        Site(name, module.inner_dim, module.heads, module.cross_attention_dim)
        for name, module in uncompiled(unet).named_modules()
        if name.endswith(".attn2") and hasattr(module, "cross_attention_dim")
    ]
    if not found:
        raise NestedAttentionError(
            f"{type(unet).__name__} has no cross-attention layers (modules named …attn2); expected a "
            "UNet2DConditionModel of SDXL's kind"
        )
    return tuple(sorted(found, key=lambda site: _ORDER.get(site.name.split(".")[0], len(_ORDER))))  # stable


def check_sites(encoder_sites: Iterable[Site], unet_sites: Iterable[Site]) -> None:
    """Refuse, by name, an encoder whose sites are not exactly those of the UNet it is used on.

    Fewer or more layers mean another base model than the one the encoder was trained with (SSD-1B's sites,
    for one, are a subset of SDXL's), so both are refused. Raises NestedAttentionError.
    """
    wanted = {site.name: site for site in encoder_sites}
    present = {site.name: site for site in unet_sites}
    trained, found = _family(wanted), _family(present)
    misfit = (
        f"the subject encoder does not fit this UNet: it was trained for {trained}, and this base model is "
        f"{found}"
    )
    advice = (
        "Use the base model the encoder was trained with, or choose a subject encoder trained for this one"
    )
    for here, there, what in ((wanted, present, "the UNet lacks"), (present, wanted, "the UNet has besides")):
        odd = [name for name in here if name not in there]
        if odd:
            raise NestedAttentionError(
                f"{misfit}. {advice} ({what} {len(odd)} layers, the first is {odd[0]})"
            )
    for name, site in wanted.items():
        other = present[name]
        if site != other:
            raise NestedAttentionError(
                f"{misfit}. {advice} (at {name} the encoder needs inner width {site.inner_dim}, {site.heads} "
                f"heads, context width {site.context_dim}; the UNet has {other.inner_dim}, {other.heads}, "
                f"{other.context_dim})"
            )


def base_model(sites: Sequence[Site]) -> str | None:
    """The base model that has these sites, as a user knows it; None for another."""
    return _FAMILIES.get((len(sites), sites[0].context_dim)) if sites else None


def family(layers: int, context_dim: int) -> str:
    """A base model as a user knows it: `SDXL (70 cross-attention layers of context width 2048)`."""
    size = f"{layers} cross-attention layers of context width {context_dim}"
    name = _FAMILIES.get((layers, context_dim))
    if name is None and context_dim == _SDXL_CONTEXT:
        name = "another relative of SDXL"
    return f"{name} ({size})" if name else f"a UNet with {size}"


def _family(sites: Mapping[str, Site]) -> str:
    return family(len(sites), next((site.context_dim for site in sites.values()), 0))
