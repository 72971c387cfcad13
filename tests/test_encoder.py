"""The subject encoder: shapes, refusals, configuration and fingerprint."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from synthetic_checkpoints import TINY_SITES
from torch import nn

from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.sites import Site, sdxl_sites

CONFIG = SubjectEncoderConfig(
    vision_dim=12, token_dim=20, num_queries=6, width=16, depth=2, heads=2, head_dim=8, sites=TINY_SITES
)


@pytest.fixture
def encoder() -> SubjectEncoder:
    torch.manual_seed(0)
    return SubjectEncoder(CONFIG).eval()


def test_defaults_are_the_papers() -> None:
    config = SubjectEncoderConfig()
    assert (config.num_queries, config.vision_dim, config.token_dim) == (1024, 1280, 2048)
    assert (config.alpha, config.norm, config.word, config.features) == (
        2.0,
        "inner",
        "person",
        "last_hidden_state",
    )
    assert config.sites == sdxl_sites()


def test_features_become_tokens(encoder: SubjectEncoder) -> None:
    tokens = encoder(torch.randn(3, 9, 12))
    assert tokens.shape == (3, 6, 20)
    assert tokens.std(0).min() > 0  # three pictures, three sets of tokens


def test_tokens_become_keys_and_values(encoder: SubjectEncoder) -> None:
    tokens = torch.randn(15, 20)
    projected = encoder.project(tokens)
    assert list(projected) == [site.name for site in TINY_SITES]
    state = encoder.state_dict()
    for site in TINY_SITES:
        key, value = projected[site.name]
        assert key.shape == value.shape == (1, 15, site.inner_dim)
        prefix = "projections." + site.name.replace(".", "-")
        torch.testing.assert_close(key[0], tokens @ state[f"{prefix}.to_key.weight"].T)
        torch.testing.assert_close(value[0], tokens @ state[f"{prefix}.to_value.weight"].T)
    assert not torch.equal(*projected[TINY_SITES[0].name])


def test_a_batch_of_tokens_gives_each_row_its_own(encoder: SubjectEncoder) -> None:
    tokens = torch.randn(4, 15, 20)
    key, value = encoder.project(tokens)[TINY_SITES[3].name]
    assert key.shape == (4, 15, TINY_SITES[3].inner_dim)
    torch.testing.assert_close(value[2:3], encoder.project(tokens[2])[TINY_SITES[3].name][1])


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (torch.zeros(2, 9, 13), r"\(2, 9, 13\).*expects \(images, patches, 12\)"),
        (torch.zeros(2, 12), r"\(2, 12\)"),
        (torch.zeros(0, 9, 12), r"\(0, 9, 12\)"),
        (torch.zeros(2, 0, 12), r"\(2, 0, 12\)"),
        (torch.zeros(2, 9, 12, dtype=torch.long), "torch.int64"),
        (torch.full((2, 9, 12), float("nan")), "NaN"),
        (torch.full((2, 9, 12), float("inf")), "infinite"),
    ],
)
def test_unusable_features_are_refused(encoder: SubjectEncoder, features: torch.Tensor, found: str) -> None:
    with pytest.raises(NestedAttentionError, match=found):
        encoder(features)


def test_one_nan_anywhere_is_found_but_training_does_not_wait_for_the_device(encoder: SubjectEncoder) -> None:
    features = torch.zeros(2, 9, 12)
    features[1, 8, 11] = float("nan")
    with pytest.raises(NestedAttentionError, match="NaN"):
        encoder(features)
    assert encoder.train()(features).isnan().any()


@pytest.mark.parametrize("shape", [(15, 21), (20,), (1, 1, 15, 20)])
def test_unusable_tokens_are_refused(encoder: SubjectEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(NestedAttentionError, match=r"expects \(tokens, 20\)"):
        encoder.project(torch.zeros(shape))


def test_inputs_are_cast_to_the_weights(encoder: SubjectEncoder) -> None:
    features = torch.randn(1, 9, 12)
    half = copy.deepcopy(encoder).half()
    tokens = half(features)
    assert tokens.dtype == torch.float16
    assert half.project(tokens[0].float())[TINY_SITES[0].name][0].dtype == torch.float16
    torch.testing.assert_close(tokens.float(), encoder(features), rtol=0.05, atol=0.05)


class CastingOperations:
    """Layers that cast their weights to their input, as ComfyUI's manual cast does."""

    class Linear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = None if self.bias is None else self.bias.to(x)
            return nn.functional.linear(x, self.weight.to(x), bias)

    class LayerNorm(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.layer_norm(
                x, self.normalized_shape, self.weight.to(x), self.bias.to(x), self.eps
            )


def test_casting_operations_compute_in_the_dtype_of_the_input(encoder: SubjectEncoder) -> None:
    casting = SubjectEncoder(CONFIG, operations=CastingOperations).eval()
    casting.load_state_dict(encoder.state_dict())
    features = torch.randn(1, 9, 12)
    assert torch.equal(casting(features), encoder(features))
    casting.half()
    tokens = casting(features)
    assert tokens.dtype == torch.float32
    assert casting.project(tokens[0])[TINY_SITES[0].name][0].dtype == torch.float32
    torch.testing.assert_close(tokens, encoder(features), rtol=1e-2, atol=1e-2)


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(1)
    encoder = SubjectEncoder(CONFIG)
    projected = encoder.project(encoder(torch.randn(2, 9, 12)))
    sum((key.square().mean() + value.square().mean()) for key, value in projected.values()).backward()
    assert [
        name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []


def test_configuration_round_trip() -> None:
    config = dataclasses.replace(
        CONFIG, word="pet", features="penultimate_hidden_states", alpha=None, norm="head"
    )
    again = SubjectEncoderConfig.from_json(config.to_json())
    assert again == config
    assert isinstance(again.sites, tuple)
    assert isinstance(again.sites[0], Site)


@pytest.mark.parametrize(
    "change",
    [
        {"vision_dim": 0},
        {"depth": -1},
        {"heads": 2.0},
        {"head_dim": True},
        {"num_queries": 10**9},
        {"sites": ()},
        {"sites": TINY_SITES[:1] * 2},
        {"word": " "},
        {"word": 3},
        {"features": "pooled"},
        {"norm": "l2"},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"alpha": "2"},
        {"alpha": True},
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NestedAttentionError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "[" * 100_000])
def test_json_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(NestedAttentionError, match="encoder configuration"):
        SubjectEncoderConfig.from_json(text)


@pytest.mark.parametrize(
    "sites", [None, {}, [1], [{"name": "a"}], [{**dataclasses.asdict(TINY_SITES[0]), "x": 1}]]
)
def test_json_with_broken_sites_is_refused(sites: object) -> None:
    values = json.loads(CONFIG.to_json())
    with pytest.raises(NestedAttentionError, match="site"):
        SubjectEncoderConfig.from_json(json.dumps({**values, "sites": sites}))


def test_fingerprint_is_stable_and_depends_on_weights_and_architecture(encoder: SubjectEncoder) -> None:
    print_ = encoder.fingerprint
    assert len(print_) == 32
    assert print_ == encoder.fingerprint
    torch.manual_seed(0)
    assert SubjectEncoder(CONFIG).fingerprint == print_  # the same weights, made anew

    for name in (
        "qformer.latents",
        "projections." + TINY_SITES[-1].name.replace(".", "-") + ".to_value.weight",
    ):
        other = copy.deepcopy(encoder).train()
        with torch.no_grad():
            other.get_parameter(name)[..., -1] += 0.5
        assert other.fingerprint != print_

    # Head size changes the result without changing a weight.
    again = SubjectEncoder(dataclasses.replace(CONFIG, heads=4, head_dim=4))
    again.load_state_dict(encoder.state_dict())
    assert again.fingerprint != print_


def test_fingerprint_ignores_dtype_and_how_a_subject_is_applied(encoder: SubjectEncoder) -> None:
    half = copy.deepcopy(encoder).train().half()
    assert half.fingerprint == encoder.fingerprint
    applied = SubjectEncoder(dataclasses.replace(CONFIG, word="pet", alpha=None, norm="head"))
    applied.load_state_dict(encoder.state_dict())
    assert applied.fingerprint == encoder.fingerprint


def test_fingerprint_follows_training(encoder: SubjectEncoder) -> None:
    before = encoder.fingerprint
    encoder.train()
    optimiser = torch.optim.SGD(encoder.parameters(), lr=1.0)
    projected = encoder.project(encoder(torch.randn(1, 9, 12)))
    sum(key.square().mean() + value.square().mean() for key, value in projected.values()).backward()
    optimiser.step()
    during = encoder.fingerprint
    assert during != before
    assert encoder.eval().fingerprint == during
    other = SubjectEncoder(CONFIG).eval()
    assert other.fingerprint != during
    other.load_state_dict(encoder.state_dict())
    assert other.fingerprint == during
