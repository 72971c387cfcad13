"""Packs that copy all of model_options while sampling, as some pre-CFG nodes do."""

from __future__ import annotations

import copy
from typing import Any

import torch


def test_copied_options_are_the_same_subjects(world: Any) -> None:
    from tiny import encode, same, sample

    from nested_attention.hosts.comfy.prompts.marks import KEY

    copies: list[Any] = []

    def pre_cfg(args: dict[str, Any]) -> Any:
        copies.append(copy.deepcopy(args["model_options"]))
        return args["conds_out"]

    region = torch.zeros(1, 8, 8)
    region[..., :4] = 1
    model, clip = world.apply(world.model, world.clip, region=region)
    conds = encode(clip, "a person"), encode(clip, "bad")
    expected = sample(model, *conds)
    copying = model.clone()
    copying.set_model_sampler_pre_cfg_function(pre_cfg)
    assert same(sample(copying, *conds), expected)
    ours = [copied["transformer_options"][KEY] for copied in copies]
    assert len(ours) == 3 and all(one is ours[0] for one in ours)  # nothing large was copied
