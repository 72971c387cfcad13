"""Encoder files as others write them, with random weights at any width: what the loader must recognise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nested_attention.sites import Site, UNetLayout

# A small UNet of SDXL's build: cross-attention at two resolutions, with several transformers in a block.
TINY_LAYOUT = UNetLayout(
    model_channels=16,
    transformer_depth=(0, 0, 1, 1, 2, 2),
    transformer_depth_output=(0, 0, 0, 1, 1, 1, 2, 2, 2),
    transformer_depth_middle=2,
    context_dim=24,
    num_head_channels=8,
)
TINY_SITES = TINY_LAYOUT.sites


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a resampler; the defaults are small. `FULL` below has the published widths."""

    vision_dim: int = 12
    token_dim: int = 24
    queries: int = 6
    width: int = 16
    depth: int = 2
    inner: int = 128  # two heads of 64, the size that cannot be read off the shapes
    ff_mult: int = 4


FULL = Sizes(vision_dim=1280, token_dim=2048, queries=1024, width=1280, depth=4, inner=1280)


def resampler(
    sizes: Sizes, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of a perceiver resampler under IP-Adapter's names."""

    def weight(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    s = sizes
    tensors = {
        "latents": weight(1, s.queries, s.width),
        "proj_in.weight": weight(s.width, s.vision_dim),
        "proj_in.bias": weight(s.width),
        "proj_out.weight": weight(s.token_dim, s.width),
        "proj_out.bias": weight(s.token_dim),
        "norm_out.weight": weight(s.token_dim),
        "norm_out.bias": weight(s.token_dim),
    }
    for i in range(s.depth):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors[f"layers.{i}.{norm}.weight"] = weight(s.width)
            tensors[f"layers.{i}.{norm}.bias"] = weight(s.width)
        tensors[f"layers.{i}.0.to_q.weight"] = weight(s.inner, s.width)
        tensors[f"layers.{i}.0.to_kv.weight"] = weight(2 * s.inner, s.width)
        tensors[f"layers.{i}.0.to_out.weight"] = weight(s.width, s.inner)
        tensors[f"layers.{i}.1.1.weight"] = weight(s.ff_mult * s.width, s.width)
        tensors[f"layers.{i}.1.3.weight"] = weight(s.width, s.ff_mult * s.width)
    return tensors


@dataclass(frozen=True)
class NamingScheme:
    """How a file names its parts: a prefix for the resampler, and a name per projection."""

    resampler: str
    projection: Callable[[int, Site, str], str]  # ordinal, site, "k" or "v"


NAMING = {
    "published": NamingScheme("image_proj.", lambda i, s, kv: f"ip_adapter.{2 * i + 1}.to_{kv}_ip.weight"),
    "training dump": NamingScheme(
        "image_proj_model.", lambda i, s, kv: f"adapter_modules.{2 * i + 1}.to_{kv}_ip.weight"
    ),
    "no prefix": NamingScheme("", lambda i, s, kv: f"{i}.to_{kv}_ip.weight"),
    "two lists": NamingScheme("encoder.qformer.", lambda i, s, kv: f"encoder.nested_{kv}.{i}.weight"),
    "full words": NamingScheme(
        "a.b.", lambda i, s, kv: f"layers.{i}.{'key' if kv == 'k' else 'value'}_projection.weight"
    ),
    "as in our state dict": NamingScheme(
        "qformer.", lambda i, s, kv: f"projections.{i}.to_{'key' if kv == 'k' else 'value'}.weight"
    ),
    "by path": NamingScheme("image_proj.", lambda i, s, kv: f"unet.{s.name}.processor.to_{kv}_ip.weight"),
}


def encoder_tensors(
    naming: str = "published",
    *,
    sizes: Sizes = Sizes(),  # noqa: B008 (frozen)
    sites: Sequence[Site] = TINY_SITES,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A whole encoder under one of NAMING's schemes; a seed gives the same weights under each of them."""
    generator = torch.Generator().manual_seed(seed)
    scheme = NAMING[naming]
    tensors = {scheme.resampler + name: t for name, t in resampler(sizes, generator, dtype).items()}
    for i, site in enumerate(sites):
        for kv in "kv":
            shape = (site.inner_dim, sizes.token_dim)
            weight = torch.randn(shape, generator=generator) / sizes.token_dim**0.5
            tensors[scheme.projection(i, site, kv)] = weight.to(dtype)
    return tensors


def plain_tensors(
    *,
    sizes: Sizes = Sizes(queries=4),  # noqa: B008 (frozen)
    sites: Sequence[Site] = TINY_SITES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A plain IP-Adapter as it is published: `sizes` but for the resampler's own."""
    generator = torch.Generator().manual_seed(seed)
    scheme = NAMING["published"]
    shapes = {
        "image_proj.proj.weight": (sizes.queries * sizes.token_dim, sizes.vision_dim),
        "image_proj.proj.bias": (sizes.queries * sizes.token_dim,),
        "image_proj.norm.weight": (sizes.token_dim,),
        "image_proj.norm.bias": (sizes.token_dim,),
    }
    for i, site in enumerate(sites):
        shapes |= {scheme.projection(i, site, kv): (site.inner_dim, sizes.token_dim) for kv in "kv"}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    """As safetensors, or for a name that ends with .bin as IP-Adapter's nested PyTorch file."""
    if path.suffix != ".bin":
        save_file(tensors, path)
        return path
    content: dict[str, Any] = {}
    for name, tensor in tensors.items():
        part, dot, rest = name.partition(".")
        if dot:
            content.setdefault(part, {})[rest] = tensor
        else:
            content[name] = tensor
    torch.save(content, path)
    return path
