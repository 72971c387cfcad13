"""Sites: their names, order and widths, against diffusers' modules (tests/comfyui holds them to ComfyUI)."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from unet_layouts import SMALL_WORLD, SSD_1B

from nested_attention import paths
from nested_attention.encoder import SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.sites import (
    Site,
    UNetLayout,
    check_sites,
    diffusers_sites,
    sdxl_sites,
)
from nested_attention.storage.tensors import read_tensors


def test_sdxl_has_70_sites_in_diffusers_order() -> None:
    sites = sdxl_sites()
    assert len(sites) == len({site.name for site in sites}) == 70
    assert [site.inner_dim for site in sites] == [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [
        1280
    ] * 10
    assert {site.context_dim for site in sites} == {2048}
    assert {site.inner_dim // site.heads for site in sites} == {64}
    ordinal = {site.name: i for i, site in enumerate(sites)}
    # Corners of the published numbering N = 2·ordinal + 1.
    for name, number in {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2": 1,
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2": 47,
        "up_blocks.0.attentions.0.transformer_blocks.0.attn2": 49,
        "up_blocks.1.attentions.2.transformer_blocks.1.attn2": 119,
        "mid_block.attentions.0.transformer_blocks.0.attn2": 121,
    }.items():
        assert 2 * ordinal[name] + 1 == number


@pytest.mark.parametrize(
    ("block", "index", "name"),
    [
        (("input", 4), 1, "down_blocks.1.attentions.0.transformer_blocks.1.attn2"),
        (("input", 8), 9, "down_blocks.2.attentions.1.transformer_blocks.9.attn2"),
        (("middle", 0), 3, "mid_block.attentions.0.transformer_blocks.3.attn2"),
        (("output", 2), 0, "up_blocks.0.attentions.2.transformer_blocks.0.attn2"),
        (("output", 5), 1, "up_blocks.1.attentions.2.transformer_blocks.1.attn2"),
    ],
)
def test_comfy_addresses_of_sdxl(block: tuple[str, int], index: int, name: str) -> None:
    site = UNetLayout().comfy_sites[(*block, index)]
    assert site.name == name
    assert site in sdxl_sites()


def diffusers_unet(layout: UNetLayout, **kwargs: object) -> torch.nn.Module:
    """The same UNet in diffusers, without memory behind it; needs equal depths within a level."""
    from diffusers import UNet2DConditionModel

    widths = tuple(layout.model_channels * mult for mult in layout.channel_mult)
    blocks = layout.num_res_blocks[0]
    depths = layout.transformer_depth[::blocks]
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=widths,
            layers_per_block=blocks,
            down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths),
            up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)),
            transformer_layers_per_block=tuple(max(d, 1) for d in depths),
            attention_head_dim=tuple(
                width // layout.num_head_channels for width in widths
            ),  # number of heads
            cross_attention_dim=layout.context_dim,
            use_linear_projection=True,
            norm_num_groups=8,
            **kwargs,
        )


@pytest.mark.parametrize("layout", [UNetLayout(), SMALL_WORLD], ids=["SDXL", "small world"])
def test_diffusers_modules_are_the_same_sites_in_the_same_order(layout: UNetLayout) -> None:
    # The small world's middle block has as many transformers as a level above it, which has none at its own.
    unet = diffusers_unet(layout)
    found = diffusers_sites(unet)
    assert found == layout.sites
    processors = [n.removesuffix(".processor") for n in unet.attn_processors if n.endswith("attn2.processor")]
    assert processors == [site.name for site in found]  # the order in which IP-Adapter numbers its layers


def test_a_module_without_cross_attention_is_refused() -> None:
    with pytest.raises(NestedAttentionError, match="no cross-attention"):
        diffusers_sites(torch.nn.Linear(2, 2))


def test_from_comfy_config() -> None:
    config = {
        "model_channels": 64,
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 2,
        "transformer_depth": [1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 48,
        "num_heads": -1,
        "num_head_channels": 32,
    }
    assert UNetLayout.from_comfy_config(config) == SMALL_WORLD
    by_number = UNetLayout.from_comfy_config({**config, "num_heads": 4, "num_head_channels": -1})
    assert {site.heads for site in by_number.sites} == {4}
    with pytest.raises(NestedAttentionError, match="lacks context_dim, transformer_depth"):
        UNetLayout.from_comfy_config({**config, "transformer_depth": None, "context_dim": None})
    with pytest.raises(NestedAttentionError, match="5 entries in transformer_depth and .* expected 6 and 9"):
        UNetLayout.from_comfy_config({**config, "transformer_depth": [1, 1, 1, 1, 0]})


def test_check_sites_accepts_the_same_sites_in_any_order() -> None:
    check_sites(sdxl_sites(), reversed(sdxl_sites()))


@pytest.mark.parametrize(("encoder", "unet"), [(UNetLayout(), SSD_1B), (SSD_1B, UNetLayout())])
def test_check_sites_refuses_another_set_by_name(encoder: UNetLayout, unet: UNetLayout) -> None:
    with pytest.raises(NestedAttentionError) as error:
        check_sites(encoder.sites, unet.sites)
    names = {site.name for site in encoder.sites} ^ {site.name for site in unet.sites}
    assert any(name in str(error.value) for name in names)
    assert str(len(encoder.sites)) in str(error.value)
    assert str(len(unet.sites)) in str(error.value)


SD_15 = UNetLayout(
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=(2, 2, 2, 2),
    transformer_depth=(1, 1, 1, 1, 1, 1, 0, 0),
    transformer_depth_output=(1,) * 9 + (0,) * 3,
    transformer_depth_middle=1,
    context_dim=768,
)


def small_world_sites() -> tuple[Site, ...]:
    encoder = read_tensors(paths.SMALL_WORLD / "person_encoder.safetensors")
    return SubjectEncoderConfig.from_json(encoder.metadata["config"]).sites


def test_base_models_are_named_as_their_users_know_them() -> None:
    families = {"SDXL": sdxl_sites(), "SD 1.5": SD_15.sites, "the small world": small_world_sites()}
    for trained, sites in families.items():
        for found, others in families.items():
            if trained == found:
                continue
            with pytest.raises(NestedAttentionError) as error:
                check_sites(sites, others)
            said = str(error.value)
            # First what a user can tell apart, then what to do, then the layer.
            parts = [f"trained for {trained} (", f"this base model is {found} (", "choose a", "_blocks."]
            places = [said.index(part) for part in parts]
            assert places == sorted(places)
    with pytest.raises(NestedAttentionError, match="base model is another relative of SDXL"):
        check_sites(sdxl_sites(), SSD_1B.sites)


@pytest.mark.parametrize("change", [{"context_dim": 768}, {"inner_dim": 320}, {"heads": 5}])
def test_check_sites_refuses_other_widths(change: dict[str, int]) -> None:
    first, *rest = sdxl_sites()
    with pytest.raises(NestedAttentionError, match=f"{re.escape(first.name)}.*{next(iter(change.values()))}"):
        check_sites(sdxl_sites(), [dataclasses.replace(first, **change), *rest])


@pytest.mark.parametrize(
    "change",
    [{"name": ""}, {"name": "a-b"}, {"inner_dim": 0}, {"heads": True}, {"heads": 7}, {"context_dim": 1.5}],
)
def test_a_site_refuses_impossible_values(change: dict[str, object]) -> None:
    with pytest.raises(NestedAttentionError):
        dataclasses.replace(sdxl_sites()[0], **change)


def test_sites_are_values() -> None:
    site = Site("mid_block.attentions.0.transformer_blocks.0.attn2", 1280, 20, 2048)
    assert site in sdxl_sites()
    assert hash(site) == hash(dataclasses.replace(site))
