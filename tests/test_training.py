"""Training of the small world: its data, and each stage for a few steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from random_world import random_judges, random_world, save_judges, small_encoder
from small_training import log_of

from nested_attention.avatars.drawing.canvas import SIZE, WIDE, Part
from nested_attention.avatars.drawing.identity import Person, Pet, sample
from nested_attention.avatars.models import model
from nested_attention.avatars.models.cells import to_cells
from nested_attention.avatars.models.model import new_scheduler
from nested_attention.avatars.models.pixels import encode_pictures, to_tensor
from nested_attention.avatars.models.scorers import Network, load_prompt_scorer, load_recogniser, save_scorer
from nested_attention.avatars.models.tokenizer import load_tokenizer
from nested_attention.avatars.models.watched import WatchedAttention, watch
from nested_attention.avatars.models.world import World
from nested_attention.avatars.train import clip, data, device, encoders, reading, stages, text
from nested_attention.avatars.train.base import attention_loss, seen_by, train_base
from nested_attention.avatars.train.clip import _Completion, _shown, train_clip
from nested_attention.avatars.train.data import Pictures, draw_close_ups, draw_crops, draw_pictures
from nested_attention.avatars.train.denoising import (
    TextStates,
    normalised,
    predictor,
    read_captions,
)
from nested_attention.avatars.train.device import faster_precision, unet_pass, vision_pass
from nested_attention.avatars.train.encoders import (
    encode_data,
    encoder_config,
    encoder_noise,
    train_encoder,
)
from nested_attention.avatars.train.labels import FIGURE_LABELS, SETTING_LABELS
from nested_attention.avatars.train.stages import STAGES, Recipe, train
from nested_attention.avatars.train.text import train_text
from nested_attention.avatars.train.vae import train_vae
from nested_attention.checkpoint import load_subject_encoder, read_card
from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import SubjectBinding, SubjectSlot
from nested_attention.paths import CONFIGS
from nested_attention.settings import SubjectSettings
from nested_attention.training.data import Arrays, Examples
from nested_attention.training.mechanisms import MECHANISMS
from nested_attention.training.objective import denoising_losses, weighted_mse
from nested_attention.training.reading import read_config
from nested_attention.training.schedule import Schedule
from nested_attention.training.settings import TrainSettings
from nested_attention.training.trainer import TrainerOptions

TWO, FOUR = TrainerOptions(batch=2), TrainerOptions(batch=4)


@pytest.fixture(scope="module")
def world() -> World:
    return random_world()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return draw_pictures("base", 24, 5, workers=1)


@pytest.fixture(scope="module")
def two() -> Pictures:
    """Of two figures each."""
    return draw_pictures("base", 12, 5, together=True, workers=1)


def of(word: str) -> list[Pictures]:
    """Of a subject alone, and beside somebody else."""
    return [draw_pictures(word, 8, 6, together=together, workers=1) for together in (False, True)]


def test_pictures_are_repeatable_and_cached(tmp_path: Path, pictures: Pictures) -> None:
    again = draw_pictures("base", 24, 5, workers=1, cache=tmp_path)
    cached = draw_pictures("base", 24, 5, workers=1, cache=tmp_path)
    for one in (again, cached):
        assert all(
            np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(pictures).values(), strict=True)
        )
    assert pictures.rgb.shape == (24, SIZE, SIZE, 3)


def test_two_figures_stand_in_a_wide_picture(two: Pictures) -> None:
    assert two.rgb.shape == (12, SIZE, WIDE, 3) and two.masks.shape == (12, 2, 16, 24)
    assert two.loss_weight.shape == (12, 16, 24) and (two.plain_words >= 0).all()
    assert two.masks.any(axis=(2, 3)).all()


def test_crops_are_of_one_subject_in_two_pictures(tmp_path: Path) -> None:
    crops = draw_crops(6, 0, workers=1, cache=tmp_path)
    assert crops.rgb.shape == (6, 2, 28, 28, 3) and crops.ids.shape == (6, 77)
    assert all((one != other).any() for one, other in crops.rgb)
    again = draw_crops(6, 0, workers=1, cache=tmp_path)
    assert np.array_equal(again.rgb, crops.rgb)


def test_labels_tell_the_kind_of_each_figure(pictures: Pictures, two: Pictures) -> None:
    """And are those that a caption says: who is said to be there, then what is worn, felt and where."""
    for drawn in (pictures, two):
        labels, there = drawn.figure_labels, drawn.described_words >= 0
        person, pet = labels[..., 0] >= 0, labels[..., len(Person.NAMED)] >= 0
        assert ((person ^ pet) == there).all()
        assert (labels[there][:, -4:] >= 0).all() and (labels[~there] == -1).all()
        for column, size in enumerate(FIGURE_LABELS.values()):
            assert labels[..., column].max() < size
        assert drawn.setting_labels.shape == (len(labels), len(SETTING_LABELS))


def test_the_autoencoder_has_the_cells_and_learns_to_decode_them(
    tmp_path: Path, pictures: Pictures, two: Pictures
) -> None:
    torch.manual_seed(0)
    vae = train_vae(tmp_path, [pictures, two], Schedule(steps=60, warmup=10), FOUR)
    log = log_of(tmp_path)
    assert log[-1]["absolute"] < 0.8 * log[0]["absolute"]  # of the last ten steps, and of the first 50
    for drawn in (pictures, two):
        x = to_tensor(drawn.rgb)
        out = vae.encode(x).latent_dist
        assert out.mean.shape == (len(x), 12, 16, x.shape[-1] // 2) and float(out.std.max()) < 1e-5
        torch.testing.assert_close(out.mean, to_cells(x), rtol=0, atol=3e-3)
        assert torch.equal(encode_pictures(drawn.rgb), to_cells(x))
    black = torch.full((1, 3, 32, 32), -1.0)
    torch.testing.assert_close(vae.encode(black).latent_dist.mean, to_cells(black), rtol=0, atol=3e-3)


def test_the_vision_encoder_learns_without_labels(tmp_path: Path) -> None:
    crops = draw_crops(16, 1, workers=1)
    vision = train_clip(tmp_path, crops, Schedule(steps=3, warmup=1), FOUR)
    assert vision(torch.zeros(1, 3, 56, 56)).last_hidden_state.shape == (1, 197, 128)
    assert {"contrast", "same", "patches", "completed"} <= set(log_of(tmp_path)[-1])


def test_a_crop_is_completed_from_another_of_the_same_subject() -> None:
    torch.manual_seed(0)
    completion, rng = _Completion(), np.random.default_rng(0)
    tokens, patches = torch.randn(2, 196, 128), torch.randn(2, 196, 48)
    shown = torch.from_numpy(_shown(rng)["shown"])
    assert 0.08 < shown.float().mean() < 0.25
    told = completion(tokens, patches, shown)
    assert told.shape == (2,) and not torch.allclose(told, completion(tokens.flip(0), patches, shown))
    # A hidden patch is not seen: it changes its own error alone.
    hidden = int((~shown[0]).nonzero()[0])
    changed = patches.clone()
    changed[0, hidden] += 1
    with torch.no_grad():
        own = completion.pixels(completion.layer(_seen(completion, changed, shown), tokens))[0, hidden]
        before, after = ((own - each[0, hidden]).square().mean() for each in (patches, changed))
        moved = (completion(tokens, changed, shown) - told)[0] * (~shown[0]).sum()
    torch.testing.assert_close(moved, after - before, rtol=1e-3, atol=1e-4)


def _seen(completion: _Completion, patches: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    return torch.where(shown[..., None], completion.embed(patches), completion.hidden) + completion.place


def test_pictures_of_an_older_version_are_drawn_anew(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {**vars(pictures), "rgb": np.zeros_like(pictures.rgb)}
    monkeypatch.setattr(data, "drawing_version", lambda: "before")
    np.savez(tmp_path / "base-one-24-5-before.npz", **old)
    assert not draw_pictures("base", 24, 5, workers=1, cache=tmp_path).rgb.any()  # of this version: read
    monkeypatch.undo()
    assert np.array_equal(draw_pictures("base", 24, 5, workers=1, cache=tmp_path).rgb, pictures.rgb)


def test_pictures_as_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(runs=tmp_path, encoder_pictures=4, workers=1)
    left = tmp_path / "pet" / f"pictures-6-4-{data.drawing_version()}.partial"
    left.mkdir(parents=True)
    (left / "pet-99999.png").touch()  # of a run that was stopped while it drew
    folder = stages._written(recipe, word="pet")
    assert len(list(folder.glob("*/*.reference.png"))) == 6 and not (folder / "pet-99999.png").exists()
    onward = stages._written(replace(recipe, onward=True), word="pet")  # others, for what has learned these
    name = "pet-00000/0.png"
    assert (onward / name).read_bytes() != (folder / name).read_bytes()
    monkeypatch.setattr(stages, "write_pictures", None)
    assert stages._written(recipe, word="pet") == folder  # read back, not drawn again


@pytest.mark.parametrize("word", ["person", "pet"])
def test_an_encoder_learns_one_figure_of_a_picture_and_nobody_else(world: World, word: str) -> None:
    """Of two people now the first, now the second: its word carries the subject, its face counts."""
    drawn = draw_pictures(word, 24, 6, together=True, workers=1)
    (data,) = encode_data(world, [drawn])
    noun, pairs = load_tokenizer().encode(word)[1], 0
    for row, wanted in enumerate(drawn.wanted):
        (at,) = data.mask[row].nonzero().view(-1).tolist()
        assert at == drawn.plain_words[row, wanted] and int(drawn.plain[row, at]) == noun
        own, other = drawn.masks[row, wanted], drawn.masks[row, 1 - wanted]
        assert drawn.loss_weight[row][own].max() > 2
        if other.any():
            alone = other & ~own
            assert drawn.loss_weight[row][alone].mean() < 0.9  # a cell on the edge shows both
            pairs += 1
    assert pairs > 5
    assert set(drawn.wanted) == ({0, 1} if word == "person" else {1})  # a pet stands beside a person


def test_word_positions_point_at_the_subjects(pictures: Pictures) -> None:
    nouns = {load_tokenizer().encode(noun)[1] for noun in Person.NOUNS + Pet.NOUNS}
    for ids, words, masks in zip(pictures.described, pictures.described_words, pictures.masks, strict=True):
        assert words[0] >= 0 and (words[1] >= 0) == masks[1].any()
        assert all(int(ids[word]) in nouns for word in words if word >= 0)


def test_watched_attention_computes_what_it_replaces(world: World) -> None:
    unet = copy.deepcopy(world.unet)
    x, t = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 500])
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


def test_a_layer_sees_a_subject_where_most_of_its_cells_show_it() -> None:
    masks = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    masks[0, 0, :2, :3] = True  # a whole 2×2 block, half of the next, nothing of the others
    masks[0, 1, 2, 4] = True  # a quarter of one
    assert torch.equal(seen_by(masks, 24), masks.flatten(2))
    assert seen_by(masks, 6).int().tolist() == [[[1, 1, 0, 0, 0, 0], [0] * 6]]


def test_phrases_end_where_their_subject_is_said(two: Pictures) -> None:
    """The end of a figure's phrase comes after its word, and before the other figure's word."""
    pictures = two
    for words, ends in (
        (pictures.described_words, pictures.described_ends),
        (pictures.plain_words, pictures.plain_ends),
    ):
        assert ((ends >= 0) == (words >= 0)).all()
        assert (ends >= words)[words >= 0].all()
        two = words[:, 1] >= 0
        assert two.any() and (ends[two, 0] < words[two, 1]).all()


def test_eyes_weigh_more_than_skies(pictures: Pictures, two: Pictures) -> None:
    weights, wide = normalised([pictures.loss_weight, two.loss_weight])
    assert torch.cat([weights.flatten(), wide.flatten()]).mean() == pytest.approx(1.0, abs=1e-3)
    background = torch.from_numpy(~pictures.masks.any(axis=1))
    assert weights[background].mean() < 0.6 < 2.0 < weights.amax()
    error, even = (
        torch.randn(24, 12, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.ones(24, 16, 16),
    )
    assert torch.allclose(weighted_mse(error, even).mean(), error.square().mean())
    assert weighted_mse(error, weights).mean() != pytest.approx(float(error.square().mean()))


def test_the_text_encoders_learn_to_read(tmp_path: Path, pictures: Pictures, two: Pictures) -> None:
    """On a handful of captions a minute of nothing but reading must bring the loss down."""
    options = replace(text.OPTIONS, batch=8)
    modules = train_text(tmp_path, [pictures, two], Schedule(steps=100, warmup=20), options)
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
    tmp_path: Path, pictures: Pictures, two: Pictures, world: World
) -> None:
    text = world.text_encoder, world.text_encoder_2
    words = {name: value.clone() for name, value in world.text_encoder.state_dict().items()}
    schedule, sets = Schedule(steps=3, warmup=1), [pictures, two]
    train_base(tmp_path / "a", sets, text, schedule, TWO)
    start = copy.deepcopy(world.unet)
    onward = train_base(tmp_path / "b", sets, text, schedule, TWO, start=start)
    moved = (onward.conv_in.weight - world.unet.conv_in.weight).abs().max()
    assert 0 < moved < 0.01
    assert all(torch.equal(value, words[name]) for name, value in world.text_encoder.state_dict().items())


@pytest.mark.parametrize("word", ["person", "pet"])
def test_an_encoder_trains_and_the_world_stays_frozen(tmp_path: Path, world: World, word: str) -> None:
    data = encode_data(world, of(word))
    assert all(each.mask.any(dim=1).all() for each in data)
    before = {name: value.clone() for name, value in world.unet.state_dict().items()}
    processors = dict(world.unet.attn_processors)
    start = small_encoder(world, word, 16)
    first = train_encoder(tmp_path, world, data, Schedule(steps=3, warmup=1), FOUR, start=start)
    assert first.config.word == word and first.config.num_queries == 16
    assert all(torch.equal(value, before[name]) for name, value in world.unet.state_dict().items())
    assert world.unet.attn_processors == processors


def test_a_global_value_is_the_same_for_every_query(tmp_path: Path, world: World) -> None:
    """The paper's alternative trains like the rest, and gives other weights than nested values do."""
    data, schedule = encode_data(world, of("person")), Schedule(steps=2, warmup=1)
    nested, pooled = (
        train_encoder(
            tmp_path / name,
            world,
            data,
            schedule,
            FOUR,
            start=small_encoder(world, "person", 16),
            mechanism=MECHANISMS[name],
        )
        for name in ("nested", "global")
    )
    pairs = zip(nested.parameters(), pooled.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("changed", [{"alpha": 0.5}, {"alpha": None}, {"norm": "head"}])
def test_an_encoder_trains_with_its_own_alpha_and_norm(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Its first loss is that of the same weights, attached as they are configured."""
    world = random_world()
    for name, value in world.unet.named_parameters():
        if "attn2.to_out" in name:  # random attention is spread thin, and would hardly be seen
            value.mul_(100)
    (data,) = encode_data(world, of("person")[:1])
    torch.manual_seed(0)
    start = SubjectEncoder(replace(encoder_config(world, "person", 16), **changed))
    drawn, noise = Examples(Arrays(row=np.arange(8)), encoder_noise, batch=4, seed=0)[0]
    rows, slot = drawn["row"], SubjectSlot.install(world.unet)
    predict = predictor(world.unet, TextStates(*(each[rows] for each in data.text)), torch.float32)
    latents = data.latents[rows].float()
    step = latents, noise["latent"][..., :16].float(), noise["timestep"], data.loss_weight[rows]

    def loss(**options: Any) -> float:
        projections = start.project(start(data.features[rows].float()))
        settings = SubjectSettings(**options)
        binding = SubjectBinding(projections=projections, mask=data.mask[rows], settings=settings)
        with torch.no_grad(), slot.bind(binding):
            return float(denoising_losses(predict, new_scheduler(), *step)["denoise"].mean())

    paper = {"alpha": 2.0, "norm": "inner"}
    wanted, other = loss(**paper | changed), loss(**paper)
    slot.remove()
    (tmp_path / "precision").write_text("torch.float32")
    train_encoder(tmp_path, world, [data], Schedule(steps=1), FOUR, start=start)
    (line,) = log_of(tmp_path)
    found = line["denoise"]
    assert found == pytest.approx(wanted, rel=1e-3) and abs(found - other) > 3 * abs(found - wanted)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_judges(random_judges(), tmp_path / "weights")
    return tmp_path / "weights"


def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "Schedule", lambda **_: Schedule(steps=2, warmup=1))


def test_the_stage_of_an_encoder_reads_draws_and_saves(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onward: from the weights that are there, which two small steps do not take far; with as many queries
    as the configuration says."""
    two_steps(monkeypatch)
    path = weights / "pet_encoder.safetensors"
    shipped = load_subject_encoder(path)
    more: dict[str, Any] = {"encoder_pictures": 8, "threads": 1, "workers": 1, "onward": True}
    recipe = Recipe(runs=tmp_path / "runs", weights=weights, out=tmp_path / "out", **more)
    train({"pet": None}, recipe, say=lambda line: None)
    trained = load_subject_encoder(path)
    settings = read_config(CONFIGS / "train" / "small-pet.yaml", TrainSettings)
    queries = settings.encoder.num_queries
    assert trained.config == replace(shipped.config, num_queries=queries) != shipped.config
    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    moved = max(
        float((a.float() - b.float()).detach().abs().max())
        for a, b in zip(trained.parameters(), shipped.parameters(), strict=True)
        if a.shape == b.shape
    )
    assert 0 < moved < 0.01
    card = read_card(path)
    assert (card.licence, card.base_model) == ("Apache-2.0", "small-world")
    assert card.domain == "pets of the small world"
    assert load_subject_encoder(weights / "person_encoder.safetensors").config.word == "person"


def test_the_stages_of_the_judges_draw_and_save(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_steps(monkeypatch)
    before = {name: (weights / f"scorer_{name}.safetensors").read_bytes() for name in ("pet", "prompt")}
    recipe = Recipe(runs=tmp_path / "runs", weights=weights, judged=80, threads=1, workers=1)
    train({"scorer-pet": None, "scorer-prompt": None}, recipe, say=lambda line: None)
    after = {name: (weights / f"scorer_{name}.safetensors").read_bytes() for name in before}
    assert all(before[name] != after[name] for name in before)
    assert load_recogniser("pet", weights) and load_prompt_scorer(weights)
    assert {path.name.split("-")[0] for path in (tmp_path / "runs" / "data").iterdir()} == {
        "families",
        "prompted",
    }


def test_a_q_former_learns_to_read_and_nothing_else_of_an_encoder_changes(
    tmp_path: Path, world: World
) -> None:
    drawn = draw_close_ups("pet", 24, 1, workers=1)
    encoder = small_encoder(world, "pet", 4)
    before = copy.deepcopy(encoder.state_dict())
    reading.train_reading(tmp_path, encoder, world, drawn, Schedule(steps=200, warmup=10), FOUR)
    told = [line["unread"] for line in log_of(tmp_path)]
    assert told[0] < 1.5 and told[-1] < 0.75  # knowing nothing, the mean close-up is 1
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("qformer.") for name in changed)


def test_a_close_up_shows_a_subject_calm_and_bare_and_a_crop_shows_it_anyhow(tmp_path: Path) -> None:
    one, again = (draw_close_ups("person", 6, 2, workers=1, cache=tmp_path) for _ in range(2))
    assert one.reference.shape == one.rgb.shape == (6, 28, 28, 3) and one.loss_weight.shape == (6, 28, 28)
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(again).values(), strict=True))
    assert all((crop != close_up).any() for crop, close_up in zip(one.reference, one.rgb, strict=True))
    assert {float(data.LOSS_WEIGHTS[Part.EYES]), float(data.LOSS_WEIGHTS[Part.BACKGROUND])} <= set(
        one.loss_weight.ravel().tolist()
    )


def test_a_length_is_split_into_two_runs() -> None:
    first, second = Schedule(steps=1000, minutes=20.0, warmup=7).split(0.1)
    assert (first.steps, first.minutes, first.warmup) == (100, 2.0, 7)
    assert (second.steps, second.minutes) == (900, 18.0)
    assert Schedule(steps=2).split(0.1)[0].steps == 1


def test_the_stage_of_an_encoder_reads_first_unless_it_goes_on(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads with is what training begins with, but for keys, which begin whitened."""
    two_steps(monkeypatch)
    more: dict[str, Any] = {"encoder_pictures": 8, "threads": 1, "workers": 1}
    recipe = Recipe(runs=tmp_path / "runs", weights=weights, **more)
    train({"pet": None}, recipe, say=lambda line: None)
    (run,) = (tmp_path / "runs").glob("pet-*")
    read = load_subject_encoder(run / "reading.safetensors")
    trained = load_subject_encoder(weights / "pet_encoder.safetensors")
    moved = {
        name: float((value.float() - read.state_dict()[name].half().float()).abs().max())
        for name, value in trained.state_dict().items()
    }
    assert 0 < max(value for name, value in moved.items() if "to_key" not in name) < 0.01
    assert min(value for name, value in moved.items() if "to_key" in name) > 0.01  # whitened
    assert (run / "reading" / "log.jsonl").exists()


def test_an_unknown_stage_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NestedAttentionError, match="no such stage: unnet.*text, vae, vision, base"):
        train({"unnet": None}, Recipe(runs=tmp_path, weights=tmp_path))
    assert list(STAGES)[0] == "text"


def test_encoders_in_memory_and_from_files_have_the_same_timesteps() -> None:
    for word in stages.SUBJECTS:
        settings = read_config(CONFIGS / "train" / f"small-{word}.yaml", TrainSettings)
        assert settings.loss.timestep_power == encoders.POWER


def test_a_pass_is_timed_where_its_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_device", lambda: torch.device("meta"))
    for out, x in (device.unet_pass(model.new_unet(), 1)(), device.vision_pass(model.new_vision(), 1)()):
        assert out.device.type == x.device.type == "cpu"


def test_a_precision_that_was_cut_off_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "faster_precision", lambda work: torch.bfloat16)
    (tmp_path / "precision").write_text("")
    for _ in range(2):
        assert device.precision_of(tmp_path, lambda: pytest.fail("timed")) is torch.bfloat16
    assert (tmp_path / "precision").read_text() == "torch.bfloat16"


def test_a_gpu_gets_batches_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TrainerOptions(batch=32, rate=1e-3, ema=0.999)
    assert device.for_device(plain) == plain
    monkeypatch.setattr(device, "default_device", lambda: torch.device("cuda"))
    found = device.for_device(plain)
    assert (found.batch, found.rate, found.save_every) == (1024, 2e-3, 500) and found.workers >= 1
    assert found.ema == pytest.approx(0.995)  # a fifth of the steps are averaged


def test_size_zero_means_the_picture_as_shown(world: World) -> None:
    seen: list[torch.Tensor] = []

    def unet(noisy: torch.Tensor, *args: Any, added_cond_kwargs: Any) -> Any:
        seen.append(added_cond_kwargs["time_ids"])
        return SimpleNamespace(sample=noisy)

    states = TextStates(torch.zeros(2, 77, 256), torch.zeros(2, 160))
    sizes = torch.tensor([[0.0] * 6, [64, 64, 0, 0, 64, 64]])
    predictor(unet, states, torch.float32, sizes=sizes)(torch.zeros(2, 12, 16, 24), torch.zeros(2))
    assert seen[0].tolist() == [[128, 192, 0, 0, 128, 192], [64, 64, 0, 0, 64, 64]]


def test_latents_of_drawings_have_a_mean_square_of_one(pictures: Pictures, two: Pictures) -> None:
    for drawn in (pictures, two):
        latents = encode_pictures(drawn.rgb)
        assert float(latents.square().mean()) == pytest.approx(1, abs=0.15)
        assert float(latents.mean(dim=(0, 2, 3)).abs().max()) < 0.5


def test_descriptions_fit_into_what_is_contrasted() -> None:
    longest = max(
        (len(" ".join([*who.description(), noun]).split()) for who, noun in _descriptions(200)), default=0
    )
    assert longest < clip.LENGTH // 3  # a word takes at most three tokens
    ids = draw_crops(50, 3, workers=1).ids
    assert (ids[:, : clip.LENGTH] == ids.max()).any(axis=1).all()  # the end of each is there


def _descriptions(number: int) -> Iterator[tuple[Any, str]]:
    rng = np.random.default_rng(0)
    for kind in (Person, Pet):
        for _ in range(number):
            who = sample(kind, rng)
            yield from ((who, noun) for noun in who.nouns)


def test_stages_that_cannot_go_on_are_refused_and_files_are_copied_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onward = Recipe(runs=tmp_path, weights=tmp_path, onward=True)
    with pytest.raises(NestedAttentionError, match="text, style cannot go on from weights that are there"):
        train({"text": 1.0, "vae": 1.0, "style": 1.0}, onward)

    def wrote(recipe: Recipe, folder: Path, drawn: Any, schedule: Schedule) -> tuple[Path, ...]:
        files = recipe.weights / "controlnet" / "a.safetensors", recipe.adapters / "pet.safetensors"
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"weights")
        return files

    monkeypatch.setitem(STAGES, "pose", stages.Stage(lambda recipe: None, wrote, 1.0))
    places = {"weights": tmp_path / "world", "adapters": tmp_path / "adapters", "out": tmp_path / "out"}
    train({"pose": 1.0}, Recipe(runs=tmp_path, **places), say=lambda line: None)
    copied = sorted(path.relative_to(tmp_path / "out").as_posix() for path in places["out"].rglob("*.*"))
    assert copied == ["adapters/pet.safetensors", "controlnet/a.safetensors"]


def test_judges_of_another_world_are_refused_by_name(tmp_path: Path) -> None:
    save_scorer(tmp_path, "scorer_pet", Network(size=SIZE, outputs=3))
    with pytest.raises(NestedAttentionError, match=r"scorer_pet\.safetensors does not fit.*size mismatch"):
        load_recogniser("pet", tmp_path)
