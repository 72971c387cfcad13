"""Injection mechanisms: each layer against an explicit construction, and the base model where there is no
subject."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from explicit import explicit_nested_attention, per_head
from tiny_sdxl import TEXT_WIDTHS, make_unet
from torch import Tensor

from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import SubjectSlot
from nested_attention.sites import diffusers_sites
from nested_attention.training.mechanisms import MECHANISMS, mechanism, mechanism_of
from nested_attention.training.mechanisms.mechanism import Mechanism

ROWS, TOKENS, QUERIES, STAR = 3, 9, 6, (None, 4, 2)
"""Rows of the batch, text tokens, the subject's tokens, and which text token carries it in each row."""
WIDTH = sum(TEXT_WIDTHS)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return make_unet().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder(unet: UNet2DConditionModel) -> SubjectEncoder:
    torch.manual_seed(0)
    return SubjectEncoder(
        SubjectEncoderConfig(
            vision_dim=12,
            token_dim=WIDTH,
            num_queries=QUERIES,
            width=16,
            depth=1,
            heads=2,
            head_dim=8,
            sites=diffusers_sites(unet),
        )
    ).eval()


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    found = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    for row, token in enumerate(STAR):
        if token is not None:
            found[row, token] = True
    return found


def attend(query: Tensor, logits: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """softmax over all entries, each with a logit (H, L) and a value (H·d): (L, H·d)"""
    weights = torch.stack(logits, dim=-1).softmax(dim=-1)  # (H, L, entries)
    stacked = per_head(torch.stack(values), heads)  # (H, entries, d)
    return (weights @ stacked).transpose(0, 1).reshape(len(query), -1)


def logit(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """q·k/√d of one key: (L, H·d), (H·d) → (H, L)"""
    size = query.shape[1] // heads
    return (per_head(query, heads) @ per_head(key[None], heads).mT)[..., 0] / math.sqrt(size)


def explicit(name: str, layer: Any, own: Any, hidden: Tensor, text: Tensor, tokens: Tensor, control: float):
    """One row of a layer in fp64, before its output projection. own: the encoder's projection of the site.

    text (T, width) has its marked token last, whose order attention does not know.
    """
    heads = layer.heads
    q, k, v = (x.weight.double() for x in (layer.to_q, layer.to_k, layer.to_v))
    query, key, value = hidden @ q.T, text @ k.T, text @ v.T
    logits = [logit(query, one, heads) for one in key]
    values = list(value)
    to_key, to_value = own.to_key.weight.double(), own.to_value.weight.double()
    if name == "decoupled":
        images = [logit(query, one, heads) for one in tokens @ to_key.T]
        added = attend(query, images, list(tokens @ to_value.T), heads)
        return attend(query, logits, values, heads) + control * added
    if name == "simple":
        for token in tokens:
            logits.append(logit(query, token @ k.T, heads))
            values.append(token @ v.T)
        return attend(query, logits, values, heads)
    word, told = logits.pop(), values.pop()
    word = torch.maximum(word, control * word)
    if name == "global":
        new = [to_value @ tokens.mean(0)]
    else:
        assert name == "multiple"
        new = [to_value @ token for token in tokens]
    values += [2 * told.norm() * one / one.norm() for one in new]
    return attend(query, logits + [word] * len(new), values, heads)


CASES = [(name, control) for name in MECHANISMS for control in (1.0, 0.6 if name == "decoupled" else 2.5)]


@pytest.mark.parametrize(("name", "control"), CASES)
@torch.no_grad()
def test_a_layer_is_what_is_written_out(
    unet: UNet2DConditionModel, encoder: SubjectEncoder, name: str, control: float
) -> None:
    site = diffusers_sites(unet)[2]
    layer: Any = unet.get_submodule(site.name)
    hidden, text = drawn(ROWS, 64, site.inner_dim, seed=1), drawn(ROWS, TOKENS, WIDTH, seed=2)
    tokens = 2 * drawn(ROWS, QUERIES, WIDTH, seed=3)
    chosen = mechanism(name)
    binding = chosen.bind(encoder, unet, tokens, mask(), control)
    plain = layer(hidden, text)
    slot = SubjectSlot.install(unet, chosen.attention)
    with slot.bind(binding):
        found = layer(hidden, text)
    slot.remove()
    assert torch.equal(found[0], plain[0])  # the row without a subject
    own = encoder.projections[site.name.replace(".", "-")]
    for row in (1, 2):
        star = STAR[row]
        order = [token for token in range(TOKENS) if token != star] + [star]
        if name == "nested":
            wide = layer.to_q(hidden), layer.to_k(text), layer.to_v(text)
            out = explicit_nested_attention(*wide, [binding.at(site.name)], heads=site.heads)[row]
        else:
            seen = hidden[row].double(), text[row][order].double(), tokens[row].double()
            out = explicit(name, layer, own, *seen, control)
        expected = layer.to_out[0](out.float())
        torch.testing.assert_close(found[row], expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
        assert not torch.allclose(found[row], plain[row], atol=1e-2)


def run(unet: UNet2DConditionModel) -> Tensor:
    added = {"text_embeds": drawn(ROWS, TEXT_WIDTHS[1], seed=6), "time_ids": torch.zeros(ROWS, 6)}
    sample, text = drawn(ROWS, 4, 16, 16, seed=4), drawn(ROWS, TOKENS, WIDTH, seed=5)
    return unet(sample, torch.tensor(500), text, added_cond_kwargs=added).sample


@pytest.mark.parametrize("name", MECHANISMS)
@torch.no_grad()
def test_at_zero_the_base_model_is_left_as_it_is(
    unet: UNet2DConditionModel, encoder: SubjectEncoder, name: str
) -> None:
    base, chosen = run(unet), mechanism(name)
    tokens = drawn(ROWS, QUERIES, WIDTH, seed=3)
    slot = SubjectSlot.install(unet, chosen.attention)
    for control, same in ((0.0, True), (1.0, False)):
        with slot.bind(chosen.bind(encoder, unet, tokens, mask(), control)):
            out = run(unet)
        assert torch.equal(out, base) == same
        assert torch.equal(out[0], base[0])
    slot.remove()
    assert torch.equal(run(unet), base)


@pytest.mark.parametrize("name", MECHANISMS)
def test_gradients_reach_what_a_mechanism_trains_and_nothing_else(
    unet: UNet2DConditionModel, encoder: SubjectEncoder, name: str
) -> None:
    chosen = mechanism(name)
    encoder.requires_grad_(True).zero_grad()
    chosen.freeze_unused(encoder)
    tokens = encoder(drawn(ROWS, 7, 12, seed=8))
    slot = SubjectSlot.install(unet, chosen.attention)
    with slot.bind(chosen.bind(encoder, unet, tokens, mask())):
        run(unet).square().sum().backward()
    slot.remove()
    reached = {name for name, each in encoder.named_parameters() if each.grad is not None and each.grad.any()}
    assert reached == {name for name, each in encoder.named_parameters() if each.requires_grad}
    kept = {"nested": {"to_key", "to_value"}, "global": {"to_value"}, "simple": set()}
    projected = {part.split(".")[-2] for part in reached if part.startswith("projections")}
    alike = {"decoupled": "nested", "multiple": "global"}
    assert projected == kept[alike.get(name, name)]
    assert any(part.startswith("qformer") for part in reached)


@torch.no_grad()
def test_what_another_processor_adds_is_kept(unet: UNet2DConditionModel, encoder: SubjectEncoder) -> None:
    """A mechanism's change comes on top of a processor that is not diffusers' own."""
    site = diffusers_sites(unet)[2]
    layer: Any = unet.get_submodule(site.name)
    hidden, text = drawn(ROWS, 64, site.inner_dim, seed=1), drawn(ROWS, TOKENS, WIDTH, seed=2)
    chosen = mechanism("multiple")
    binding = chosen.bind(encoder, unet, drawn(ROWS, QUERIES, WIDTH, seed=3), mask())
    plain, own = layer(hidden, text), layer.processor

    def found() -> Tensor:
        slot = SubjectSlot.install(unet, chosen.attention)
        try:
            with slot.bind(binding):
                return layer(hidden, text)
        finally:
            slot.remove()

    class Shifted(type(own)):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Tensor:
            return super().__call__(*args, **options) + 1

    change = found() - plain
    layer.set_processor(Shifted())
    try:
        torch.testing.assert_close(found(), plain + 1 + change, atol=1e-5, rtol=0)
    finally:
        layer.set_processor(own)


def test_mechanisms_are_found_by_name_and_by_what_an_encoder_says(encoder: SubjectEncoder) -> None:
    assert list(MECHANISMS) == ["nested", "decoupled", "simple", "global", "multiple"]
    assert mechanism_of(encoder.config).name == "nested"
    assert mechanism_of(replace(encoder.config, injection="decoupled")).name == "decoupled"
    for each in MECHANISMS.values():
        assert isinstance(each, Mechanism) and (each.control is None) == (each.name == "simple")
    with pytest.raises(NestedAttentionError, match="no such mechanism: 'nest'. The mechanisms are nested, "):
        mechanism("nest")


def test_a_simple_adapter_needs_tokens_as_wide_as_the_text(unet: UNet2DConditionModel) -> None:
    torch.manual_seed(0)
    sizes = {"vision_dim": 12, "num_queries": 2, "width": 16, "depth": 1, "heads": 2, "head_dim": 8}
    narrow = SubjectEncoder(SubjectEncoderConfig(token_dim=20, sites=diffusers_sites(unet), **sizes))
    with pytest.raises(NestedAttentionError, match="tokens are 20 wide and the text .* is 48"):
        mechanism("simple").project(narrow, unet, torch.zeros(1, 2, 20))
