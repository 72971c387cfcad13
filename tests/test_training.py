"""Training of the small world: its data, and each stage for a few steps."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nested_attention.avatars.drawing.canvas import SIZE
from nested_attention.avatars.drawing.identity import Person, Pet, attributes
from nested_attention.avatars.models.model import new_scheduler
from nested_attention.avatars.models.pixels import encode_pictures
from nested_attention.avatars.models.tokenizer import load_tokenizer
from nested_attention.avatars.models.watched import WatchedAttention, watch
from nested_attention.avatars.models.world import World, load_world
from nested_attention.avatars.train import device, text
from nested_attention.avatars.train.attribute_heads import ATTRIBUTES, AttributeHeads, columns_of
from nested_attention.avatars.train.base import attention_loss, train_base
from nested_attention.avatars.train.data import FIGURE_LABELS, Pictures, draw_crops, draw_pictures
from nested_attention.avatars.train.denoising import (
    TextStates,
    denoising_noise,
    normalised,
    predictor,
    read_captions,
)
from nested_attention.avatars.train.device import faster_precision, unet_pass, vision_pass
from nested_attention.avatars.train.encoders import (
    AuxiliaryLosses,
    encode_data,
    encoder_config,
    train_encoder,
)
from nested_attention.avatars.train.stages import STAGES, Recipe, train
from nested_attention.avatars.train.text import train_text
from nested_attention.avatars.train.vae import train_vae
from nested_attention.checkpoint import load_subject_encoder, read_card
from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import SubjectBinding, SubjectSlot
from nested_attention.paths import SMALL_WORLD
from nested_attention.settings import SubjectSettings
from nested_attention.training.data import Arrays, Examples
from nested_attention.training.mechanisms import MECHANISMS
from nested_attention.training.objective import denoising_losses, weighted_mse
from nested_attention.training.schedule import Schedule
from nested_attention.training.trainer import TrainerOptions

TWO, FOUR = TrainerOptions(batch=2), TrainerOptions(batch=4)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return draw_pictures("base", 24, 5, workers=1)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_pictures_are_repeatable_and_cached(tmp_path: Path, pictures: Pictures) -> None:
    again = draw_pictures("base", 24, 5, workers=1, cache=tmp_path)
    cached = draw_pictures("base", 24, 5, workers=1, cache=tmp_path)
    for one in (again, cached):
        assert all(
            np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(pictures).values(), strict=True)
        )
    assert pictures.rgb.shape == (24, SIZE, SIZE, 3)


def test_pictures_of_an_older_version_are_drawn_anew(tmp_path: Path, pictures: Pictures) -> None:
    path = tmp_path / "base-24-5.npz"
    np.savez(path, **{name: value for name, value in vars(pictures).items() if name != "wanted"})
    assert np.array_equal(draw_pictures("base", 24, 5, workers=1, cache=tmp_path).rgb, pictures.rgb)
    with np.load(path) as stored:
        assert "wanted" in stored.files


@pytest.mark.parametrize("word", ["person", "pet"])
def test_an_encoder_learns_one_figure_of_a_picture_and_nobody_else(world: World, word: str) -> None:
    """Of two people now the first, now the second: its word carries the subject, its face counts."""
    drawn = draw_pictures(word, 60, 6, workers=1)
    data = encode_data(world, drawn, word)
    noun, pairs = load_tokenizer().encode(word)[1], 0
    for row, wanted in enumerate(drawn.wanted):
        (at,) = data.mask[row].nonzero().view(-1).tolist()
        assert at == drawn.plain_words[row, wanted] and int(drawn.plain[row, at]) == noun
        own, other = drawn.masks[row, wanted], drawn.masks[row, 1 - wanted]
        assert drawn.loss_weight[row][own].max() > 2
        if other.any():
            alone = other & ~own
            assert drawn.loss_weight[row][alone].mean() < 0.8  # a cell on the edge shows both
            pairs += 1
    assert pairs > 5
    assert set(drawn.wanted) == {0, 1}


def test_word_positions_point_at_the_subjects(pictures: Pictures) -> None:
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
    vae = train_vae(tmp_path / "vae", pictures, Schedule(steps=2), FOUR)
    z = encode_pictures(vae, pictures.rgb)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(8), atol=0.02)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(8), atol=0.02)
    before = encode_pictures(world.vae, pictures.rgb)
    refined = train_vae(tmp_path / "decoder", pictures, Schedule(steps=2), FOUR, decoder_of=world.vae)
    torch.testing.assert_close(encode_pictures(refined, pictures.rgb), before, atol=1e-5, rtol=1e-5)
    for name, value in world.vae.encoder.state_dict().items():
        assert torch.equal(refined.encoder.state_dict()[name], value)
    assert not torch.equal(refined.decoder.conv_in.weight, world.vae.decoder.conv_in.weight)


def test_phrases_end_where_their_subject_is_said(pictures: Pictures) -> None:
    """The end of a figure's phrase comes after its word, and before the other figure's word."""
    for words, ends in (
        (pictures.described_words, pictures.described_ends),
        (pictures.plain_words, pictures.plain_ends),
    ):
        assert ((ends >= 0) == (words >= 0)).all()
        assert (ends >= words)[words >= 0].all()
        two = words[:, 1] >= 0
        assert two.any() and (ends[two, 0] < words[two, 1]).all()


def test_labels_tell_the_kind_of_each_figure(pictures: Pictures) -> None:
    people = len(attributes(Person))
    labels = pictures.figure_labels
    there = pictures.described_words >= 0
    person, pet = labels[..., 0] >= 0, labels[..., people] >= 0
    assert ((person ^ pet) == there).all()
    assert (labels[there][:, -4:] >= 0).all() and (labels[~there] == -1).all()
    for column, size in enumerate(FIGURE_LABELS.values()):
        assert labels[..., column].max() < size


def test_eyes_weigh_more_than_skies(pictures: Pictures) -> None:
    weights = normalised(pictures.loss_weight)
    assert weights.mean() == pytest.approx(1.0, abs=1e-3)
    background = torch.from_numpy(~pictures.masks.any(axis=1))
    assert weights[background].mean() < 0.6 < 2.0 < weights.amax()
    error, even = (
        torch.randn(24, 8, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.ones(24, 16, 16),
    )
    assert torch.allclose(weighted_mse(error, even).mean(), error.square().mean())
    assert weighted_mse(error, weights).mean() != pytest.approx(float(error.square().mean()))


def test_the_text_encoders_learn_to_read(tmp_path: Path, pictures: Pictures) -> None:
    """On a handful of captions a minute of nothing but reading must bring the loss down."""
    modules = train_text(tmp_path, pictures, Schedule(steps=100, warmup=20), replace(text.OPTIONS, batch=8))
    log = log_of(tmp_path)
    assert set(modules) == {"text_l", "text_g"} and log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_captions_are_read_as_the_world_reads_them(world: World) -> None:
    ids = load_tokenizer().encode_all(["a person in a forest", "a pet"])
    read = read_captions(world.text_encoder, world.text_encoder_2, ids, batch=1)
    context, pooled, _ = world.text(["a person in a forest", "a pet"])
    torch.testing.assert_close(read.context.float(), context, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(read.pooled.float(), pooled, atol=5e-3, rtol=5e-3)


def test_the_precision_is_one_of_two_and_leaves_no_gradient(world: World) -> None:
    for work in (unet_pass(world.unet, 1), vision_pass(world.vision, 1)):
        assert faster_precision(work, repetitions=1) in (torch.float32, torch.bfloat16)
    for module in (world.unet, world.vision):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_the_precision_of_a_run_is_that_of_its_first_start(tmp_path: Path) -> None:
    """Two starts of a run that measure differently would end with other weights than one start."""
    times = iter([torch.bfloat16, torch.float32])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "faster_precision", lambda work: next(times))
        first, again = (device.precision_of(tmp_path / "run", lambda: None) for _ in range(2))
    assert first is again is torch.bfloat16


def test_the_base_model_trains_from_nothing_and_from_weights(
    tmp_path: Path, pictures: Pictures, world: World
) -> None:
    latents = encode_pictures(world.vae, pictures.rgb)
    text = world.text_encoder, world.text_encoder_2
    words = {name: value.clone() for name, value in world.text_encoder.state_dict().items()}
    schedule = Schedule(steps=2, warmup=1)
    train_base(tmp_path / "a", pictures, latents, text, schedule, TWO)
    start = copy.deepcopy(world.unet)
    onward = train_base(tmp_path / "b", pictures, latents, text, schedule, TWO, start=start)
    moved = (onward.conv_in.weight - world.unet.conv_in.weight).abs().max()
    assert 0 < moved < 0.01
    assert all(torch.equal(value, words[name]) for name, value in world.text_encoder.state_dict().items())


@pytest.mark.parametrize("word", ["person", "pet"])
def test_an_encoder_trains_and_the_world_stays_frozen(tmp_path: Path, world: World, word: str) -> None:
    data = encode_data(world, draw_pictures(word, 8, 6, workers=1), word)
    assert data.mask.any(dim=1).all()
    before = {name: value.clone() for name, value in world.unet.state_dict().items()}
    processors = dict(world.unet.attn_processors)
    first = train_encoder(tmp_path, world, data, Schedule(steps=2, warmup=1), FOUR, queries=16)
    assert first.config.word == word and first.config.num_queries == 16
    assert all(torch.equal(value, before[name]) for name, value in world.unet.state_dict().items())
    assert world.unet.attn_processors == processors


def test_a_global_value_is_the_same_for_every_query(tmp_path: Path, world: World) -> None:
    """The paper's alternative trains like the rest, and gives other weights than nested values do."""
    data = encode_data(world, draw_pictures("person", 8, 6, workers=1), "person")
    schedule = Schedule(steps=2, warmup=1)
    nested = train_encoder(tmp_path / "a", world, data, schedule, FOUR, queries=16)
    pooled = train_encoder(
        tmp_path / "b", world, data, schedule, FOUR, queries=16, mechanism=MECHANISMS["global"]
    )
    pairs = zip(nested.parameters(), pooled.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("changed", [{"alpha": 0.5}, {"alpha": None}, {"norm": "head"}])
def test_an_encoder_trains_with_its_own_alpha_and_norm(
    tmp_path: Path, world: World, changed: dict[str, Any]
) -> None:
    """Its first loss is that of the same weights, attached as they are configured."""
    data = encode_data(world, draw_pictures("person", 8, 6, workers=1), "person")
    torch.manual_seed(0)
    start = SubjectEncoder(replace(encoder_config(world, "person", 16), **changed))
    drawn, noise = Examples(Arrays(row=np.arange(8)), denoising_noise, batch=4, seed=0)[0]
    rows, slot = drawn["row"], SubjectSlot.install(world.unet)
    predict = predictor(world.unet, TextStates(*(each[rows] for each in data.text)), torch.float32)
    step = data.latents[rows].float(), noise["latent"], noise["timestep"], data.loss_weight[rows]

    def loss(**options: Any) -> float:
        projections = start.project(start(data.features[rows].float()))
        settings = SubjectSettings(**options)
        binding = SubjectBinding(projections=projections, mask=data.mask[rows], settings=settings)
        with torch.no_grad(), slot.bind(binding):
            return float(denoising_losses(predict, new_scheduler(), *step)["denoise"].mean())

    paper = {"alpha": 2.0, "norm": "inner"}
    wanted, other = loss(**paper | changed), loss(**paper)
    slot.remove()
    train_encoder(tmp_path, world, data, Schedule(steps=1), FOUR, start=start)
    (line,) = log_of(tmp_path)
    found = line["denoise"]
    assert found == pytest.approx(wanted, rel=1e-3) and abs(found - other) > 3 * abs(found - wanted)


@pytest.mark.parametrize("word", ["person", "pet"])
def test_an_encoder_is_asked_for_the_attributes_of_its_own_subject(world: World, word: str) -> None:
    drawn = draw_pictures(word, 30, 6, workers=1)
    labels = encode_data(world, drawn, word).attributes
    kind = {"person": Person, "pet": Pet}[word]
    assert list(ATTRIBUTES)[columns_of(word)] == [
        name if kind is Person else f"pet_{name}" for name in attributes(kind)
    ]
    assert labels.shape == (30, len(attributes(kind))) and bool((labels >= 0).all())
    for row, wanted in enumerate(drawn.wanted):
        assert labels[row].tolist() == drawn.figure_labels[row, wanted, columns_of(word)].tolist()


def test_heads_classify_what_applies_and_nothing_else() -> None:
    heads = AttributeHeads(4, [2, 3])
    tokens = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    first, second = heads(tokens)
    assert first.shape == (5, 2) and second.shape == (5, 3)
    labels = torch.tensor([[0, 2], [1, -1], [-1, 0], [1, 1], [0, -1]])
    certain = [
        torch.nn.functional.cross_entropy(logits[labels[:, i] >= 0], labels[labels[:, i] >= 0, i])
        for i, logits in enumerate((first, second))
    ]
    torch.testing.assert_close(heads.loss(tokens, labels), sum(certain))


def test_the_target_is_what_words_make_of_the_same_noise(tmp_path: Path, world: World) -> None:
    """Nothing is left to learn where the prompt tells as much as the caption and no word carries a subject;
    a caption that tells more leaves something."""
    data = encode_data(world, draw_pictures("person", 8, 6, workers=1), "person")
    auxiliary = AuxiliaryLosses(AttributeHeads(256, list(attributes(Person).values())), distillation=1.0)
    unmarked = replace(data, mask=torch.zeros_like(data.mask))
    schedule = Schedule(steps=2, warmup=1)
    for name, each in {"same": replace(unmarked, described=unmarked.text), "more": unmarked}.items():
        mine = copy.deepcopy(auxiliary)
        train_encoder(tmp_path / name, world, each, schedule, FOUR, queries=16, auxiliary=mine)
    (same,), (more,) = log_of(tmp_path / "same"), log_of(tmp_path / "more")
    assert same["denoise"] < 1e-6 and more["denoise"] > 0.01
    assert same["plain"] > 0.1 and same["attributes"] > 1.0


def test_heads_and_distillation_reach_the_encoder(tmp_path: Path, world: World) -> None:
    data = encode_data(world, draw_pictures("pet", 8, 6, workers=1), "pet")
    heads = AttributeHeads(256, list(attributes(Pet).values()))
    auxiliary = {
        "none": AuxiliaryLosses(),
        "heads": AuxiliaryLosses(copy.deepcopy(heads)),
        "distilled": AuxiliaryLosses(distillation=0.75),
    }
    schedule = Schedule(steps=2, warmup=1)
    weights = [
        torch.cat(
            [
                p.detach().flatten()
                for p in train_encoder(
                    tmp_path / name,
                    world,
                    data,
                    schedule,
                    FOUR,
                    queries=16,
                    auxiliary=each,
                ).parameters()
            ]
        )
        for name, each in auxiliary.items()
    ]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_stage_of_an_encoder_is_prepare_and_train(tmp_path: Path) -> None:
    """Onward: from the weights that are there, which a second does not take far."""
    weights = tmp_path / "weights"
    shutil.copytree(SMALL_WORLD, weights)
    path = weights / "pet_encoder.safetensors"
    shipped = load_subject_encoder(path)
    recipe = Recipe(runs=tmp_path / "runs", weights=weights, encoder_pictures=8, threads=1, onward=True)
    train(["pet"], recipe, minutes=0.02, say=lambda line: None)
    trained = load_subject_encoder(path)
    assert trained.config == shipped.config and trained.fingerprint != shipped.fingerprint
    moved = max(
        float((a.float() - b.float()).detach().abs().max())
        for a, b in zip(trained.parameters(), shipped.parameters(), strict=True)
    )
    assert 0 < moved < 0.01
    (last,) = [line for line in log_of(recipe.runs / "pet" / "phase-1") if "minutes" in line]
    assert last["minutes"] >= 0.02 and last["step"] < 50
    card = read_card(path)
    assert (card.licence, card.base_model) == ("Apache-2.0", "small-world")
    assert (card.domain, card.samples) == ("pets of the small world", 32 * last["step"])
    assert load_subject_encoder(weights / "person_encoder.safetensors").config.word == "person"


def test_an_unknown_stage_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NestedAttentionError, match="no such stage: unnet.*vae, vision, text, base"):
        train(["unnet"], Recipe(runs=tmp_path, weights=tmp_path))
    assert list(STAGES)[0] == "vae"
