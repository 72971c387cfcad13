"""SubjectSettings: what is refused, what is left to the encoder, and what reaches a layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nested_attention.encoder import SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.settings import SubjectSettings
from nested_attention.sites import Site

SITE = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
CONFIG = SubjectEncoderConfig(
    vision_dim=4,
    token_dim=4,
    num_queries=2,
    width=4,
    depth=1,
    heads=1,
    head_dim=4,
    sites=(Site(SITE, 4, 1, 4),),
    word="pet",
    alpha=3.0,
    norm="head",
)


def test_what_is_left_to_the_encoder_is_filled_in() -> None:
    filled = SubjectSettings().trained_as(CONFIG)
    assert (filled.word, filled.alpha, filled.norm) == ("pet", 3.0, "head")
    chosen = SubjectSettings(word=" big   dog ", alpha=None, norm="inner").trained_as(CONFIG)
    assert (chosen.word, chosen.alpha, chosen.norm) == ("big dog", None, "inner")
    assert chosen.called.name == "big dog"
    assert SubjectSettings(word="dog").called.name == "dog"


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"attention_scale": 0.0}, "attention_scale (λ) is 0.0; expected above 0"),
        ({"attention_scale": math.inf}, "attention_scale (λ) is inf"),
        ({"attention_scale": None}, "attention_scale (λ) is None"),
        ({"alpha": 0}, "alpha is 0; expected above 0, or None"),
        ({"alpha": "two"}, "alpha is two"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"norm": "rows"}, "norm is 'rows'; expected 'inner' or 'head'"),
        ({"strength": 1.5}, "strength is 1.5; expected 0 to 1"),
        ({"strength": math.nan}, "strength is nan"),
        ({"start": 0.5, "end": 0.4}, "start is 0.5 and end is 0.4; expected 0 ≤ start ≤ end ≤ 1"),
        ({"injection": "added"}, "injection is 'added'; expected one of 'trained', 'nested', 'anchored'"),
        ({"weight": 0.0}, "weight is 0.0; expected above 0"),
        ({"weight": math.nan}, "weight is nan"),
        ({"when_missing": "ignore"}, "when_missing is 'ignore'; expected 'error' or 'warn'"),
        ({"region": torch.ones(3)}, "the region has shape (3,); expected a MASK (pictures, height, width)"),
        ({"region": [[1.0]]}, "the region has list"),
        ({"region": torch.full((2, 2), 2.0)}, "the region's values go from 2 to 2"),
        ({"region": torch.full((2, 2), math.nan)}, "the region's values go from nan to nan"),
        ({"word": ""}, "word is ''; expected a word"),
        ({"name": "<x"}, "name is '<x'; expected a word"),
    ],
)
def test_what_is_out_of_range_is_named(knobs: dict[str, Any], expected: str) -> None:
    with pytest.raises(NestedAttentionError) as refused:
        SubjectSettings(**{"word": "dog", **knobs})
    assert expected in str(refused.value)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(NestedAttentionError, match="^alpha is -1; .*; strength is 2; "):
        SubjectSettings(word="dog", name="rex", alpha=-1, strength=2)


def test_a_region_is_kept_as_pictures_height_width() -> None:
    for shape in ((2, 3), (1, 2, 3), (1, 1, 2, 3)):
        region = SubjectSettings(region=torch.full(shape, 1.0005)).region
        assert region is not None
        assert (region.shape, float(region.max())) == ((1, 2, 3), 1.0)


def test_a_layer_gets_what_was_set() -> None:
    key, value, mask = torch.randn(1, 2, 4), torch.randn(1, 2, 4), torch.ones(1, 1, dtype=torch.bool)
    settings = SubjectSettings(attention_scale=2.0, strength=0.5, bounded=True, blocks="up:0.5")
    settings = settings.trained_as(CONFIG)
    factor = settings.factors([SITE])[SITE]
    here = settings.bind(key, value, mask, factor=factor, region=torch.ones(1, 1))
    assert (here.alpha, here.norm, here.attention_scale, here.strength) == (3.0, "head", 2.0, 0.25)
    assert here.bounded
    assert not settings.bind(key, value, mask).bounded  # without a region it does nothing
    assert settings.bind(key, value, mask, factor=0.0, region=torch.ones(1, 1)).region is None


@pytest.mark.parametrize("written", ["alice", " <alice> ", "< Alice >", "＜alice＞"])
def test_a_name_may_be_typed_as_the_prompt_calls_it(written: str) -> None:
    assert SubjectSettings(word="dog", name=written).called.name.casefold() == "alice"
