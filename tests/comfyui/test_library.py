"""Sites and encoders of the library against ComfyUI's own modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unet_layouts import SMALL_WORLD, SSD_1B

from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.sites import UNetLayout

VEGA = UNetLayout(
    transformer_depth=(0, 0, 1, 1, 2, 2),
    transformer_depth_output=(0, 0, 0, 1, 1, 1, 2, 2, 2),
    transformer_depth_middle=-1,
)
KOALA = UNetLayout(
    num_res_blocks=(1, 1, 1),
    transformer_depth=(0, 2, 6),
    transformer_depth_output=(0, 0, 2, 2, 6, 6),
    transformer_depth_middle=6,
)
LAYOUTS = {"SDXL": UNetLayout(), "small world": SMALL_WORLD, "SSD-1B": SSD_1B, "Vega": VEGA, "KOALA": KOALA}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_addresses_agree_with_comfyui(comfyui: Path, layout: UNetLayout) -> None:
    import comfy.utils

    config = {
        "num_res_blocks": list(layout.num_res_blocks),
        "channel_mult": list(layout.channel_mult),
        "transformer_depth": list(layout.transformer_depth),
        "transformer_depth_output": list(layout.transformer_depth_output),
        "transformer_depth_middle": layout.transformer_depth_middle,
    }
    mapping = comfy.utils.unet_to_diffusers(config)  # diffusers' path → ComfyUI's, of every weight
    theirs = {}
    for path, address in mapping.items():
        if path.endswith(".attn2.to_k.weight"):
            # input_blocks.4.1.transformer_blocks.0.…, middle_block.1.transformer_blocks.0.…
            kind, rest = address.split("_block", 1)
            number = int(rest.split(".")[1]) if kind != "middle" else 0
            index = int(address.split("transformer_blocks.")[1].split(".")[0])
            theirs[kind, number, index] = path.removesuffix(".to_k.weight")
    assert {address: site.name for address, site in layout.comfy_sites.items()} == theirs


def test_widths_and_heads_agree_with_comfyui_modules(comfyui: Path) -> None:
    """Every attn2 of a small ComfyUI UNet, built without memory, is the site its address says."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    layout = SMALL_WORLD
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=layout.model_channels,
        num_res_blocks=list(layout.num_res_blocks),
        channel_mult=layout.channel_mult,
        num_head_channels=layout.num_head_channels,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        context_dim=layout.context_dim,
        transformer_depth=list(layout.transformer_depth),
        transformer_depth_output=list(layout.transformer_depth_output),
        transformer_depth_middle=layout.transformer_depth_middle,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    seen = {}
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            parts = name.split(".")
            kind = parts[0].split("_")[0]
            address = (kind, 0 if kind == "middle" else int(parts[1]), int(parts[-2]))
            width = module.to_q.weight.shape[0]
            seen[address] = (width, module.heads, module.to_k.weight.shape[1])
    assert seen == {a: (s.inner_dim, s.heads, s.context_dim) for a, s in layout.comfy_sites.items()}


@pytest.mark.parametrize("operations", ["manual_cast", "disable_weight_init"])
@pytest.mark.usefixtures("either_memory")
def test_comfyui_operations(comfyui: Path, tmp_path: Path, operations: str) -> None:
    """With ComfyUI's layers an encoder computes the same; with manual cast, from fp16 weights in fp32."""
    import comfy.ops

    torch.manual_seed(0)
    sites = SMALL_WORLD.sites[:3]
    config = SubjectEncoderConfig(
        vision_dim=12, token_dim=48, num_queries=6, width=16, depth=2, heads=2, head_dim=8, sites=sites
    )
    path = tmp_path / "encoder.safetensors"
    save_subject_encoder(SubjectEncoder(config), path, dtype=torch.float16)
    dtype = None if operations == "manual_cast" else torch.float32
    encoder = load_subject_encoder(path, operations=getattr(comfy.ops, operations), dtype=dtype)
    reference = load_subject_encoder(path, dtype=torch.float32)
    assert encoder.fingerprint == reference.fingerprint
    features = torch.randn(2, 9, 12)
    tokens = encoder(features)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, reference(features), rtol=1e-5, atol=1e-5)
    expected = reference.project(tokens[0])
    for name, projected in encoder.project(tokens[0]).items():
        torch.testing.assert_close(projected, expected[name], rtol=1e-5, atol=1e-5)
