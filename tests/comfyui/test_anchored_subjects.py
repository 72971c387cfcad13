"""Anchored subjects in ComfyUI: off is exact, only the prompts that carry the word gain anything, and Apply
Subject follows the encoder's file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

WORD = "a photo of a person on the beach"


def draw(model: Any, clip: Any, prompt: str = WORD, **options: Any) -> Tensor:
    from tiny import encode, sample

    return sample(model, encode(clip, prompt), encode(clip, "a bad person"), **options)


each_form = pytest.mark.parametrize("injection", ["anchored", "everywhere"])


@each_form
@pytest.mark.parametrize(
    "off",
    [
        {"strength": 0.0},
        {"start": 1.0},
        {"region": torch.zeros(1, 8, 8)},
        {"blocks": "all:0"},
    ],
    ids=lambda off: next(iter(off)),
)
def test_off_is_the_base_model_to_the_bit(world: Any, injection: str, off: dict[str, Any]) -> None:
    from tiny import carries, same

    base = draw(world.model, world.clip)
    assert same(draw(*world.apply(world.model, world.clip, injection=injection, **off)), base)
    assert carries(draw(*world.apply(world.model, world.clip, injection=injection)), base)


@each_form
def test_prompts_without_the_word_gain_nothing(
    world: Any, injection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative prompt has the word, too: rows of the positive one alone attend to the subject."""
    from nested_attention.kernels import additions

    rows = []
    original = additions.nested_value

    def counted(query: Tensor, *args: Any, **options: Any) -> Tensor:
        rows.append(len(query))
        return original(query, *args, **options)

    monkeypatch.setattr(additions, "nested_value", counted)
    model, clip = world.apply(world.model, world.clip, injection=injection)
    draw(model, clip, steps=2)
    assert rows == [1] * 2 * len(world.person.config.sites)
    rows.clear()
    model, clip = world.apply(world.model, world.clip, injection=injection, apply_to_negative=True)
    draw(model, clip, steps=1)
    assert set(rows) == {2}


def test_it_is_beside_a_nested_subject_what_it_is_beside_an_anchored_one(world: Any) -> None:
    """In a chain each subject keeps its own way in."""
    from tiny import carries, same

    prompt = "a person with a pet"

    def chain(person: str, pet: str) -> Tensor:
        model, clip = world.apply(world.model, world.clip, injection=person)
        return draw(*world.apply(model, clip, world.rex, injection=pet), prompt)

    mixed = chain("anchored", "nested")
    assert same(mixed, chain("anchored", "nested"))
    pictures = [mixed, chain("nested", "anchored"), chain("nested", "nested"), chain("anchored", "anchored")]
    for number, one in enumerate(pictures):
        assert all(carries(one, other) for other in pictures[number + 1 :])


def test_apply_subject_follows_the_encoder_s_file(world: Any) -> None:
    from tiny import apply_with, make_encoder, make_subject, same

    adapter = make_encoder(world.model, seed=1, injection="decoupled")  # weights of world.person
    assert adapter.fingerprint == world.person.fingerprint
    alice = make_subject(adapter, seed=3)

    def with_adapter(**settings: Any) -> Tensor:
        chosen = {"word": "person", "attention_scale": 3.0, "alpha": 6.0, **settings}
        return draw(*apply_with(world.model, world.clip, adapter, alice, **chosen))

    anchored = draw(*world.apply(world.model, world.clip, injection="anchored"))
    assert same(with_adapter(), anchored)
    assert same(with_adapter(injection="nested"), draw(*world.apply(world.model, world.clip)))
    assert not same(with_adapter(weight=0.5), anchored)


def test_a_region_found_while_sampling_limits_the_place(world: Any) -> None:
    from tiny import same

    names = {"name": "alice"}, {"name": "bob"}

    def two(**settings: Any) -> Tensor:
        chain = world.apply(world.model, world.clip, injection="anchored", **names[0], **settings)
        chain = world.apply(*chain, world.bob, injection="anchored", **names[1], **settings)
        return draw(*chain, "<alice> and <bob:man> on the beach", steps=6)

    assert not same(two(region_mode="auto"), two())


def test_sd15_with_an_adapter_of_its_own(world: Any) -> None:
    """16 layers and one text model. An SDXL adapter is refused by name, as this one is on SDXL."""
    from tiny import apply_with, carries, make_encoder, make_sd15, make_sd15_clip, make_subject, same

    from nested_attention.errors import NestedAttentionError
    from nested_attention.sites import sd15_sites

    model, clip = make_sd15(), make_sd15_clip()
    adapter = make_encoder(model, seed=1, token_dim=32, injection="decoupled")
    assert [site.name for site in adapter.config.sites] == [site.name for site in sd15_sites()]
    alice = make_subject(adapter, seed=3)
    base = draw(model, clip)
    drawn = {
        strength: draw(*apply_with(model, clip, adapter, alice, word="person", strength=strength))
        for strength in (0.0, 1.0)
    }
    assert same(drawn[0.0], base) and carries(drawn[1.0], base)
    nowhere = apply_with(model, clip, adapter, alice, word="person", region=torch.zeros(1, 8, 8))
    assert same(draw(*nowhere), base)
    with pytest.raises(NestedAttentionError, match="no prompt carries the subject 'person'"):
        draw(*apply_with(model, clip, adapter, alice, word="person"), "a lamp")
    for other in ((model, clip, world.person, world.alice), (world.model, world.clip, adapter, alice)):
        with pytest.raises(NestedAttentionError, match="the subject encoder does not fit this UNet"):
            apply_with(*other, word="person")


@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_everywhere_is_ip_adapter(world: Any, cfg: float) -> None:
    """Against a replacement of each layer's attention that adds softmax(Q K_ipᵀ / √d) V_ip in the positive
    half, written out, on a MODEL and CLIP that know nothing of ours."""
    from comfy.ldm.modules.attention import optimized_attention
    from tiny import carries

    from nested_attention.sites import UNetLayout

    weight, handle = 0.7, world.person
    device = handle.load()
    with torch.no_grad():
        pairs = handle.encoder.project(world.alice.tokens.to(device))

    def adapted(site: str) -> Any:
        def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
            heads = options["n_heads"]
            out = optimized_attention(q, k, v, heads)
            size = len(q) // len(options["cond_or_uncond"])
            for number, kind in enumerate(options["cond_or_uncond"]):
                if kind == 0:
                    rows = slice(number * size, (number + 1) * size)
                    for part in torch.arange(q.shape[-1]).chunk(heads):
                        key, value = (x[0][:, part] for x in pairs[site])
                        share = (q[rows][..., part] @ key.T / len(part) ** 0.5).softmax(dim=-1)
                        out[rows, :, part] += weight * (share @ value)
            return out

        return attend

    theirs = world.model.clone()
    layout = UNetLayout.from_comfy_config(world.model.model.model_config.unet_config)
    for (kind, block, index), site in layout.comfy_sites.items():
        theirs.set_model_attn2_replace(adapted(site.name), kind, block, index)
    ours = world.apply(world.model, world.clip, injection="everywhere", weight=weight)
    expected = draw(theirs, world.clip, steps=1, cfg=cfg)
    found = draw(*ours, steps=1, cfg=cfg)
    most = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-5 * most
    assert carries(expected, draw(world.model, world.clip, steps=1, cfg=cfg))
