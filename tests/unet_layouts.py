"""UNets of other sizes than SDXL's, for tests of sites on both hosts."""

from __future__ import annotations

from nested_attention.sites import UNetLayout

SMALL_WORLD = UNetLayout(
    model_channels=64,
    channel_mult=(1, 2, 2),
    num_res_blocks=(2, 2, 2),
    transformer_depth=(1, 1, 1, 1, 0, 0),
    transformer_depth_output=(1, 1, 1, 1, 1, 1, 0, 0, 0),
    transformer_depth_middle=1,
    context_dim=48,
    num_head_channels=32,
)
SSD_1B = UNetLayout(
    transformer_depth=(0, 0, 2, 2, 4, 4),
    transformer_depth_output=(0, 0, 0, 1, 1, 2, 10, 4, 4),
    transformer_depth_middle=-1,
)
