"""Training of the small world: schedules, resuming, and each stage for a few steps."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nested_attention.avatars.canvas import SIZE
from nested_attention.avatars.pixels import encode_pictures
from nested_attention.avatars.train import base
from nested_attention.avatars.train.base import Start, attention_loss
from nested_attention.avatars.train.data import Pictures, draw_crops, draw_pictures
from nested_attention.avatars.train.encoders import encode_data, train_encoder
from nested_attention.avatars.train.loop import Budget, Run
from nested_attention.avatars.train.stages import STAGES, Recipe, train
from nested_attention.avatars.train.vae import train_vae
from nested_attention.avatars.watched import WatchedAttention, watch
from nested_attention.avatars.world import World, load_world
from nested_attention.errors import NestedAttentionError


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return draw_pictures("base", 24, 5, workers=1)


def test_the_rate_rises_holds_and_falls() -> None:
    budget = Budget(steps=1000, warmup=100, decay=0.2)
    rates = [budget.factor(step, 0.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == 1.0 and rates[99] == rates[799] == 1.0
    assert all(a > b for a, b in zip(rates[800:], rates[801:], strict=False)) and rates[-1] < 0.01
    assert Budget(steps=10**9, minutes=1).done(5, 61.0) and not Budget(steps=10).done(9, 1e9)


def test_a_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Six steps in one go, and three and three with a restart between, give the same weights."""

    def steps(run: Run, number: int) -> torch.nn.Module:
        for _ in range(number):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(run.step))
            run.update(run.modules["net"](x).square().mean())
        run.save()
        return run.modules["net"]

    def fresh() -> dict[str, torch.nn.Module]:
        torch.manual_seed(0)
        return {"net": torch.nn.Linear(4, 4)}

    budget = Budget(steps=100)
    whole = steps(Run(tmp_path / "a", fresh(), rate=0.1, budget=budget), 6)
    steps(Run(tmp_path / "b", fresh(), rate=0.1, budget=budget), 3)
    resumed = Run(tmp_path / "b", fresh(), rate=0.1, budget=budget)
    assert resumed.step == 3
    halves = steps(resumed, 3)
    assert torch.equal(whole.weight, halves.weight)
    assert not list((tmp_path / "b").glob("*.tmp"))


def test_the_log_is_readable(tmp_path: Path) -> None:
    run = Run(tmp_path, {"net": torch.nn.Linear(2, 2)}, rate=0.1, budget=Budget(steps=50))
    while not run.done:
        run.update(run.modules["net"](torch.ones(1, 2)).square().sum())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50] and lines[0]["loss"] > 0


def test_pictures_are_repeatable_and_cached(tmp_path: Path, pictures: Pictures) -> None:
    again = draw_pictures("base", 24, 5, workers=1, cache=tmp_path)
    cached = draw_pictures("base", 24, 5, workers=1, cache=tmp_path)
    for one in (again, cached):
        assert all(
            np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(pictures).values(), strict=True)
        )
    assert pictures.rgb.shape == (24, SIZE, SIZE, 3)


def test_word_positions_point_at_the_subjects(pictures: Pictures) -> None:
    from nested_attention.avatars.identity import Person, Pet
    from nested_attention.avatars.tokenizer import load_tokenizer

    nouns = {load_tokenizer().encode(noun)[1] for noun in Person.NOUNS + Pet.NOUNS}
    for ids, words, masks in zip(pictures.described, pictures.described_words, pictures.masks, strict=True):
        assert words[0] >= 0 and (words[1] >= 0) == masks[1].any()
        assert all(int(ids[word]) in nouns for word in words if word >= 0)


def test_crops_are_labelled() -> None:
    crops, texts, labels = draw_crops(6, 0)
    assert crops.shape == (6, 20, 20, 3) and len(texts) == 6
    assert ((labels >= 0).sum(axis=1) >= 9).all() and (labels < 0).any()


def test_watched_attention_computes_what_it_replaces(world: World) -> None:
    unet = copy.deepcopy(world.unet)
    x, t = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 500])
    context, pooled, _ = world.text(["a person", "a pet"])
    added = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6)}
    with torch.no_grad():
        plain = unet(x, t, context, added_cond_kwargs=added).sample
        watched = watch(unet)
        seen = unet(x, t, context, added_cond_kwargs=added).sample
    assert torch.allclose(plain, seen, atol=1e-4)
    for layer in watched:
        assert isinstance(layer, WatchedAttention) and layer.probabilities is not None
        assert layer.probabilities.shape == (2, 256, 77)
        assert torch.allclose(layer.probabilities.sum(-1), torch.ones(2, 256), atol=1e-5)


def test_the_attention_term_prefers_attention_on_the_subject() -> None:
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    words = torch.tensor([[1, -1]])
    on, off = torch.full((1, 4, 3), 0.05), torch.full((1, 4, 3), 0.05)
    on[0, :2, 1] = 0.9
    off[0, 2:, 1] = 0.9
    assert attention_loss(on, words, masks) < 0.1 < attention_loss(off, words, masks)


def test_the_autoencoder_learns_and_a_refined_decoder_keeps_its_latents(
    tmp_path: Path, pictures: Pictures, world: World
) -> None:
    torch.manual_seed(0)
    vae = train_vae(tmp_path / "vae", pictures, Budget(steps=2), batch=4)
    z = encode_pictures(vae, pictures.rgb)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(8), atol=0.02)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(8), atol=0.02)
    before = encode_pictures(world.vae, pictures.rgb)
    refined = train_vae(tmp_path / "decoder", pictures, Budget(steps=2), decoder_of=world.vae, batch=4)
    torch.testing.assert_close(encode_pictures(refined, pictures.rgb), before, atol=1e-5, rtol=1e-5)
    for name, value in world.vae.encoder.state_dict().items():
        assert torch.equal(refined.encoder.state_dict()[name], value)
    assert not torch.equal(refined.decoder.conv_in.weight, world.vae.decoder.conv_in.weight)


def test_the_base_model_trains_from_nothing_and_from_weights(
    tmp_path: Path, pictures: Pictures, world: World
) -> None:
    latents = encode_pictures(world.vae, pictures.rgb)
    fresh = base.train_base(tmp_path / "a", pictures, latents, Budget(steps=2, warmup=1), batch=2)
    assert set(fresh) == {"unet", "text_l", "text_g"}
    parts = (world.unet, world.text_encoder, world.text_encoder_2)
    start = Start(*(copy.deepcopy(part) for part in parts))
    onward = base.train_base(
        tmp_path / "b", pictures, latents, Budget(steps=2, warmup=1), start=start, batch=2
    )
    moved = (onward["unet"].conv_in.weight - world.unet.conv_in.weight).abs().max()
    assert 0 < moved < 0.01


@pytest.mark.parametrize("word", ["person", "pet"])
def test_an_encoder_trains_and_the_world_stays_frozen(tmp_path: Path, world: World, word: str) -> None:
    data = encode_data(world, draw_pictures(word, 8, 6, workers=1), word)
    before = {name: value.clone() for name, value in world.unet.state_dict().items()}
    processors = dict(world.unet.attn_processors)
    first = train_encoder(tmp_path, world, data, Budget(steps=2, warmup=1), batch=4, queries=16)
    assert first.config.word == word and first.config.num_queries == 16
    assert all(torch.equal(value, before[name]) for name, value in world.unet.state_dict().items())
    assert world.unet.attn_processors == processors


def test_an_unknown_stage_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NestedAttentionError, match="no such stage: unnet.*vae, vision, base"):
        train(["unnet"], Recipe(runs=tmp_path, weights=tmp_path))
    assert list(STAGES)[0] == "vae"
