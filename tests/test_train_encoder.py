"""`nested-attention train`: a subject encoder from prepared shards, on the small world as a base model."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from small_training import SIZES, base_of, log_of, preparing, training
from synthetic_checkpoints import write
from torch import Tensor

from nested_attention.avatars.train.folder import write_pictures
from nested_attention.card import EncoderCard, describe
from nested_attention.checkpoint import load_subject_encoder, read_card, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, site_key
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers.binding import SubjectBinding
from nested_attention.hosts.diffusers.processors import SubjectSlot
from nested_attention.paths import PACK, SMALL_WORLD
from nested_attention.storage.tensors import read_tensors
from nested_attention.training import run as running
from nested_attention.training.data import Batch, Examples, Order
from nested_attention.training.fp8 import LinearInFp8, hold_in_fp8
from nested_attention.training.frozen import load_schedule, load_unet
from nested_attention.training.objective import denoising_losses, min_snr_weight
from nested_attention.training.prepare.run import prepare
from nested_attention.training.prepare.settings import PrepareSettings, SourceSettings
from nested_attention.training.reading import read_config
from nested_attention.training.run import train
from nested_attention.training.sdxl import SCHEDULER
from nested_attention.training.settings import (
    LossSettings,
    PhaseSettings,
    StartSettings,
    TrainSettings,
    ValidationSettings,
)
from nested_attention.training.shards import Index, Rising, ShardData
from nested_attention.training.start import encoder_config, new_encoder
from nested_attention.training.subjects import SubjectNoise, SubjectObjective
from nested_attention.training.trainer import Trainer
from nested_attention.training.validation import Validation

pytestmark = pytest.mark.once


def quietly(line: str) -> None:
    """Nobody listens."""


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """A file's metadata and tensors: what it holds, whatever the order."""
    file = read_tensors(path)
    return file.metadata, {name: tensor.numpy().tobytes() for name, tensor in file.tensors.items()}


def losses_of(folder: Path) -> dict[int, float]:
    return {int(line["step"]): line["denoise"] for line in log_of(folder) if "denoise" in line}


@pytest.fixture
def unet(world_on_disk: Path) -> Any:
    return load_unet(base_of(world_on_disk), torch.float32)


def objective_on(unet: Any, world: Path, prepared: Path, **loss: Any) -> tuple[SubjectObjective, ShardData]:
    index = Index.read(prepared)
    data = ShardData(prepared, index)
    objective = SubjectObjective(
        unet=unet,
        slot=SubjectSlot.install(unet),
        scheduler=load_schedule(base_of(world)),
        blank=data.blank,
        latents=index.latents,
        settings=LossSettings(**loss),
    )
    return objective, data


def encoder_for(unet: Any, prepared: Path, **start: Any) -> SubjectEncoder:
    config = encoder_config(SIZES, unet, Index.read(prepared), 128)
    return new_encoder(StartSettings(**start), config, unet, seed=0)


def example(data: ShardData, objective: SubjectObjective, rows: int = 4) -> tuple[Batch, Batch]:
    draw = SubjectNoise(objective.settings, 12, 16, 1000)
    return Examples(data, draw, batch=rows, seed=0)[0]


def test_a_run_leaves_a_file_that_says_what_it_is(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """Every trained tensor is in it, none is lost to deduplication, and the file is that of the last
    checkpoint."""
    said: list[str] = []
    path = train(training(world_on_disk, prepared, tmp_path / "run"), say=said.append)
    assert path == tmp_path / "run" / "small.safetensors" and str(path) in said[-1]
    encoder, card = load_subject_encoder(path), read_card(path)
    assert card == EncoderCard(
        domain="people",
        licence="CC0",
        source="drawn here",
        base_model=world_on_disk.name,
        vision_model=f"{world_on_disk.name}'s image encoder",
        samples=16,
        resolution=32,
    )
    assert encoder.config.word == "person" and encoder.config.alpha == 2.0
    last = tmp_path / "run" / "phase-1" / "step-00000004"
    assert content(last / "encoder.safetensors") == content(path)
    trained = read_tensors(last / "model.safetensors").tensors
    names = {f"models.encoder.{name}" for name, _ in encoder.named_parameters()}
    assert trained.keys() == names == {f"models.encoder.{name}" for name in encoder.state_dict()}
    fresh = encoder_for(load_unet(base_of(world_on_disk), torch.float32), prepared)
    moved = [name for name, tensor in fresh.state_dict().items() if not torch.equal(
        tensor, trained[f"models.encoder.{name}"])]  # fmt: skip
    assert set(moved) == set(fresh.state_dict()), "every one of them has been trained"
    assert "word: person (people)" in describe(encoder.config, card)
    assert any("16 pictures seen at 32 px" in line for line in describe(encoder.config, card))


def test_the_file_names_the_vision_model_that_made_the_features(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """The one that `prepare` was told of, whatever training's configuration says; that, of older folders."""
    known, older = tmp_path / "known", tmp_path / "older"
    for folder, name in ((known, "clip-h"), (older, "")):
        shutil.copytree(prepared, folder)
        replace(Index.read(folder), vision=name).write(folder)
    said: list[str] = []
    settings = training(world_on_disk, known, tmp_path / "a", steps=1)
    assert read_card(train(settings, say=said.append)).vision_model == "clip-h"
    assert not any("model.vision" in line for line in said), "nothing is said of what is not named"
    named = replace(settings, output=tmp_path / "b", model=replace(settings.model, vision="open-clip"))
    assert read_card(train(named, say=said.append)).vision_model == "clip-h"
    told = f"model.vision is open-clip, and {known} was prepared with clip-h"
    assert sum(line.startswith(told) for line in said) == 1
    content = json.loads((older / "index.json").read_text())
    del content["vision"]
    (older / "index.json").write_text(json.dumps(content))
    phases = tuple(replace(phase, data=older) for phase in named.phases)
    last = replace(named, output=tmp_path / "c", phases=phases)
    assert read_card(train(last, say=quietly)).vision_model == "open-clip"


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: int) -> None:
    update = Trainer._update

    def stopped(self: Trainer, *items: Any) -> None:
        update(self, *items)
        if self.step == step:
            if how == signal.SIGTERM:
                os.kill(os.getpid(), how)
            else:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_update", stopped)


@pytest.mark.parametrize(
    ("step", "how"),
    [(1, signal.SIGTERM), (2, signal.SIGTERM), (3, signal.SIGTERM), (3, signal.SIGKILL)],
)
def test_stopping_and_going_on_gives_the_same_file(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, how: int
) -> None:
    """Bit for bit, in both phases, whatever stops it."""
    phase = PhaseSettings(data=prepared, batch=4, steps=2, rate=1e-3, warmup=1)
    settings = training(world_on_disk, prepared, tmp_path / "a", phases=(phase, replace(phase, steps=4)))
    whole = train(settings, say=quietly)
    other = replace(settings, output=tmp_path / "b")
    with monkeypatch.context() as patch:
        stop_at(patch, step, how)
        with pytest.raises((NestedAttentionError, KeyboardInterrupt)):
            train(other, say=quietly)
        assert not other.file.exists()
    assert content(train(other, say=quietly)) == content(whole)
    assert read_card(whole).samples == 24


def test_going_on_from_something_else_is_refused(world_on_disk: Path, prepared: Path, tmp_path: Path) -> None:
    """Another start, another base model of the same shapes, and a first phase that has grown since."""
    phase = PhaseSettings(data=prepared, batch=4, steps=1, rate=1e-3, warmup=1)
    settings = training(world_on_disk, prepared, tmp_path / "a", phases=(phase, phase))
    begun = train(settings, say=quietly)
    kept = tmp_path / "start.safetensors"
    shutil.copyfile(begun, kept)
    other = tmp_path / "another-world"
    shutil.copytree(world_on_disk, other)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file)
    for changed, what in (
        (replace(settings, start=StartSettings(kind="file", path=kept)), "start"),
        (replace(settings, model=base_of(other)), "unet"),
        (replace(settings, phases=(replace(phase, steps=2), phase)), "examples before it"),
    ):
        with pytest.raises(NestedAttentionError, match=f"with another [^(]*{what}"):
            train(changed, say=quietly)


def test_a_sheet_without_an_autoencoder_is_refused_before_the_first_step(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """Whoever trains on shards may not have one: `sheet_steps: 0` does without."""
    bare = tmp_path / "bare"
    shutil.copytree(world_on_disk, bare, ignore=shutil.ignore_patterns("vae"))
    shown = ValidationSettings(every=1, subjects=2, sheet_steps=1)
    settings = training(bare, prepared, tmp_path / "run", steps=1, validation=shown)
    with pytest.raises(NestedAttentionError, match="bare"):
        train(settings, say=quietly)
    assert not list((tmp_path / "run").glob("phase-1/step-*"))
    assert train(replace(settings, validation=replace(shown, sheet_steps=0)), say=quietly).is_file()


def test_a_killed_process_goes_on_where_it_was(world_on_disk: Path, prepared: Path, tmp_path: Path) -> None:
    """SIGKILL to the command itself, at whatever it is doing."""
    settings = training(world_on_disk, prepared, tmp_path / "b", steps=12)
    config = written(tmp_path, settings)
    process = subprocess.Popen(command(config), env=environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "b").glob("phase-1/step-*[0-9]")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not settings.file.exists()
    whole = train(replace(settings, output=tmp_path / "a"), say=quietly)
    assert content(train(settings, say=quietly)) == content(whole)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "nested_attention.training", str(config)]


def written(folder: Path, settings: TrainSettings) -> Path:
    """Settings as a file: JSON is YAML."""
    from dataclasses import asdict

    path = folder / "config.yaml"
    path.write_text(json.dumps(asdict(settings), default=str))
    return path


def test_two_processes_learn_what_one_with_twice_the_batch_learns(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "two", steps=4, save_every=1, workers=1)
    first = replace(settings.phases[0], rate=1e-4)
    # From a trained encoder: a random one's |v*| is small, and α / |v*| magnifies what rounding leaves.
    shipped = SMALL_WORLD / "person_encoder.safetensors"
    start = StartSettings(kind="file", path=shipped)
    settings = replace(settings, phases=(first, replace(first, steps=2)), start=start)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.run(
        [*launch, "-m", "nested_attention.training", str(written(tmp_path, settings))],
        env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr[-2000:]
    assert "4 steps of 4 on 2 processes" in launched.stdout
    one = train(replace(settings, output=tmp_path / "one"), say=quietly)
    for phase, steps in (("phase-1", [1, 2, 3, 4]), ("phase-2", [1, 2])):
        ours, theirs = (losses_of(tmp_path / name / phase) for name in ("one", "two"))
        assert list(ours) == list(theirs) == steps
        assert theirs == pytest.approx(ours, abs=1e-4)
    assert read_card(one) == read_card(settings.file)
    assert read_card(one).samples == read_card(shipped).samples + 6 * 4


def test_the_second_phase_goes_on_from_the_first(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On twice the resolution, as the paper's does."""
    larger = preparing(world_on_disk, tmp_path, prepared.parent / "pictures", resolution=64, step=64)
    prepare(larger, quietly)
    settings = training(world_on_disk, prepared, tmp_path / "run", steps=2)
    alone = train(replace(settings, output=tmp_path / "alone"), say=quietly)
    phase = replace(settings.phases[0], data=larger.output, rate=1e-12)
    kept: list[tuple[int, weakref.ref[Any]]] = []

    def begin(*args: Any, **more: Any) -> Trainer:
        # AdamW's state and the average of the phase before would take room that the dry run does not count.
        assert not [number for number, average in kept if average() is not None]
        made = Trainer(*args, **more)
        kept.append((len(kept), weakref.ref(made.average)))
        return made

    gc.disable()  # what frees them is not chance
    monkeypatch.setattr(running, "Trainer", begin)
    try:
        train(replace(settings, phases=(settings.phases[0], phase), ema=0.0), say=quietly)
    finally:
        gc.enable()
    assert len(kept) == 2
    train(replace(settings, output=tmp_path / "last", ema=0.0), say=quietly)
    (first,) = [load_subject_encoder(tmp_path / "last" / "small.safetensors")]
    second = load_subject_encoder(settings.file)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    card = read_card(settings.file)
    assert (card.samples, card.resolution) == (2 * read_card(alone).samples, 64)


def test_a_phase_ends_after_minutes_too(world_on_disk: Path, prepared: Path, tmp_path: Path) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "run", steps=10**6)
    train(replace(settings, phases=(replace(settings.phases[0], minutes=0.05),)), say=quietly)
    (*_, last) = log_of(tmp_path / "run" / "phase-1")
    assert last["minutes"] >= 0.05 and last["step"] < 100 and last["rate"] < 1e-3


def test_data_that_another_model_made_is_refused(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    index = Index.read(other)
    replace(index, frozen={**index.frozen, "vae": "another"}).write(other)
    phase = PhaseSettings(data=prepared, batch=4, steps=1)
    phases = phase, replace(phase, data=other)
    with pytest.raises(NestedAttentionError, match="prepared with another frozen"):
        train(training(world_on_disk, prepared, tmp_path / "run", phases=phases), say=quietly)
    load = running.load_unet

    def wider(*args: Any) -> Any:
        unet = load(*args)
        unet.register_to_config(cross_attention_dim=2048)
        return unet

    monkeypatch.setattr(running, "load_unet", wider)
    with pytest.raises(NestedAttentionError, match="context is 256 wide, and the UNet of .* reads 2048"):
        train(training(world_on_disk, prepared, tmp_path / "run"), say=quietly)


def test_going_on_with_other_data_or_another_loss_is_refused(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "run", steps=1)
    train(settings, say=quietly)
    longer = replace(settings, phases=(replace(settings.phases[0], steps=2),))
    train(longer, say=quietly)
    changed = replace(longer, loss=LossSettings(noise_offset=0.1))
    with pytest.raises(NestedAttentionError, match="trained with another loss than"):
        train(changed, say=quietly)
    noted = changed.output / "phase-1" / "run.json"
    before = json.loads(noted.read_text())
    del before["loss"]["references"]  # a run of before there was such a setting goes on
    noted.write_text(json.dumps(before))
    with pytest.raises(NestedAttentionError, match="has checkpoints of a run"):
        train(longer, resume="never", say=quietly)


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_bad_shard_is_named_before_the_first_step(
    world_on_disk: Path, prepared: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "prepared"
    shutil.copytree(prepared, copy)
    shard = copy / Index.read(copy).shards[1].file
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-8] + b"x" * 8)
    monkeypatch.setattr(Trainer, "_update", pytest.fail)
    with pytest.raises(NestedAttentionError, match=f"a shard cannot be used: .*{shard.name}.*prepare` again"):
        train(training(world_on_disk, copy, tmp_path / "run"), say=quietly)


def test_a_loss_that_is_not_finite_names_the_picture(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard says what it holds; what a step makes of one of its examples overflows."""
    tensor = ShardData._tensor
    index = Index.read(prepared)
    wanted = ShardData(prepared, index).row(3).name

    def broken(self: ShardData, number: int, name: str) -> Tensor:
        value = tensor(self, number, name)
        return value * float("nan") if name == "latent_mean" and self.row(number).name == wanted else value

    monkeypatch.setattr(ShardData, "_tensor", broken)
    settings = training(world_on_disk, prepared, tmp_path / "run", steps=4)
    with pytest.raises(NestedAttentionError, match=f"`denoise` was nan at step [1-4], of {wanted}"):
        train(settings, say=quietly)


def test_too_little_memory_splits_the_batch_or_stops_with_the_figure(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "a", steps=3)
    train(settings, say=quietly)
    call, most = SubjectObjective.__call__, [1]

    def limited(self: SubjectObjective, batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        if len(batch["row"]) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return call(self, batch, models, noise)

    monkeypatch.setattr(SubjectObjective, "__call__", limited)
    train(replace(settings, output=tmp_path / "b"), say=quietly)
    whole, parted = (losses_of(tmp_path / name / "phase-1") for name in "ab")
    assert parted == pytest.approx(whole, abs=2e-4)
    parts = [line[key] for line in log_of(tmp_path / "b" / "phase-1") for key in line if "parts" in key]
    assert parts == [2, 4]
    most[0] = 0
    with pytest.raises(
        NestedAttentionError,
        match="out of memory with 1 of 4 examples.* GB .CUDA out of memory.*Set gradient_checkpointing or",
    ):
        train(replace(settings, output=tmp_path / "c"), say=quietly)


def test_a_reader_that_dies_and_a_full_disk_stop_the_run_clean(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "a", save_every=1, workers=1)
    whole = content(train(settings, say=quietly))
    other = replace(settings, output=tmp_path / "b")
    read, parent = ShardData.read, os.getpid()

    def dies(self: ShardData, rows: Tensor, noise: Batch) -> Batch:
        if os.getpid() != parent and int(noise["position"][0]) == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, rows, noise)

    with monkeypatch.context() as patch:
        patch.setattr(ShardData, "read", dies)
        with pytest.raises(NestedAttentionError, match="process that reads examples died.*goes on from"):
            train(other, say=quietly)
    with monkeypatch.context() as patch:
        save = torch.save

        def full(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            raise OSError(28, "No space left on device")

        patch.setattr(torch, "save", full)
        with pytest.raises(NestedAttentionError, match="step-0000000. cannot be written .*No space left"):
            train(other, say=quietly)
        assert not list((tmp_path / "b" / "phase-1").glob("*.partial"))
    assert content(train(other, say=quietly)) == whole


def test_what_goes_wrong_in_a_reader_is_said_in_a_sentence(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "prepared"
    shutil.copytree(prepared, copy)
    settings = training(world_on_disk, copy, tmp_path / "run", workers=1)
    verify = running.verify

    def then_remove(folder: Path, index: Index) -> None:
        verify(folder, index)
        for shard in index.shards:
            if not shard.held_out:
                (folder / shard.file).rename(folder / f"{shard.file}.gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "verify", then_remove)
        with pytest.raises(NestedAttentionError, match="^the shard .*safetensors cannot be read"):
            train(settings, say=quietly)


def test_it_begins_with_the_cross_attentions_own_keys_and_values(unet: Any, prepared: Path) -> None:
    encoder = encoder_for(unet, prepared, kind="cross_attention")
    for site in encoder.config.sites:
        layer = unet.get_submodule(site.name)
        projection: Any = encoder.projections[site_key(site.name)]
        assert torch.equal(projection.to_key.weight, layer.to_k.weight)
        assert torch.equal(projection.to_value.weight, layer.to_v.weight)
        assert projection.to_key.weight.data_ptr() != layer.to_k.weight.data_ptr()
        assert projection.to_key.weight.requires_grad and not layer.to_k.weight.requires_grad
    narrow = encoder_config(replace(SIZES, token_dim=64), unet, Index.read(prepared), 128)
    with pytest.raises(NestedAttentionError, match="encoder.token_dim 64, and the text is 256 wide"):
        new_encoder(StartSettings(kind="cross_attention"), narrow, unet, seed=0)


@pytest.mark.parametrize("first", [True, False])
def test_one_process_of_a_machine_reads_all_shards(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """The others need not, even where nothing can be noted beside the data."""
    read: list[Path] = []

    def begun(*given: Any) -> Any:
        raise NestedAttentionError("begun")

    monkeypatch.setattr(PartialState, "is_local_main_process", property(lambda self: first))
    monkeypatch.setattr(running, "verify", lambda folder, index: read.append(folder))
    monkeypatch.setattr(running, "_Run", begun)
    with pytest.raises(NestedAttentionError, match="begun"):
        train(training(world_on_disk, prepared, tmp_path / "run"), say=quietly)
    assert read == ([prepared] if first else [])


def test_what_is_wrong_with_the_data_is_said_before_any_of_it_is_read(
    world_on_disk: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "verify", pytest.fail)
    settings = training(world_on_disk, prepared, tmp_path / "run")
    missing = replace(settings.phases[0], data=tmp_path / "later")
    with pytest.raises(NestedAttentionError, match=r"later has no index\.json"):
        train(replace(settings, phases=(*settings.phases, missing)), say=quietly)


def test_another_layer_than_the_start_has_learned_to_read_is_said(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """Both are of one width, so that nothing else would tell."""
    encoder = load_subject_encoder(SMALL_WORLD / "person_encoder.safetensors")
    own = encoder.config.features
    other = "penultimate_hidden_states" if own == "last_hidden_state" else "last_hidden_state"
    encoder.config = replace(encoder.config, features=other)
    save_subject_encoder(encoder, tmp_path / "other.safetensors")
    for file, times in ((SMALL_WORLD / "person_encoder.safetensors", 0), (tmp_path / "other.safetensors", 1)):
        said: list[str] = []
        start = StartSettings(kind="file", path=file)
        settings = training(world_on_disk, prepared, tmp_path / file.stem, steps=1, start=start)
        train(settings, say=said.append)
        assert sum(f"set `features: {other}`" in line for line in said) == times


@pytest.mark.parametrize("queries", [4, 32, 40])
def test_it_begins_with_a_file_and_as_many_queries_as_are_asked_for(
    unet: Any, prepared: Path, queries: int
) -> None:
    path = SMALL_WORLD / "person_encoder.safetensors"
    config = encoder_config(replace(SIZES, num_queries=queries, alpha=1.5), unet, Index.read(prepared), 128)
    start, there = StartSettings(kind="file", path=path), load_subject_encoder(path)
    encoder = new_encoder(start, config, unet, seed=0)
    assert encoder.config.num_queries == queries and encoder.config.alpha == 1.5 and encoder.training
    kept = min(queries, 32)
    assert torch.equal(encoder.qformer.latents[:, :kept], there.qformer.latents[:, :kept].float())
    mine, theirs = encoder.state_dict(), there.state_dict()
    assert all(torch.equal(mine[n], theirs[n].float()) for n in mine if n != "qformer.latents")
    other = encoder_config(SIZES, unet, Index.read(prepared), 1280)
    with pytest.raises(NestedAttentionError, match="reads features of width 128, the data has 1280"):
        new_encoder(StartSettings(kind="file", path=path), other, unet, seed=0)


def test_a_frozen_qformer_stays_as_the_file_has_it(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """To the last number of fp16; keys and values learn. A phase that frees it may follow."""
    begun = training(world_on_disk, prepared, tmp_path / "begun", steps=1)
    file = train(begun, say=quietly)
    start = StartSettings(kind="file", path=file, projections=False)
    frozen = replace(begun.phases[0], steps=2, freeze_qformer=True)
    run = replace(begun, output=tmp_path / "frozen", start=start, phases=(frozen,))
    before, after = (load_subject_encoder(path) for path in (file, train(run, say=quietly)))
    assert all(map(torch.equal, before.qformer.parameters(), after.qformer.parameters()))
    assert not any(map(torch.equal, before.projections.parameters(), after.projections.parameters()))

    both = replace(run, output=tmp_path / "both", phases=(frozen, replace(frozen, freeze_qformer=False)))
    freed = load_subject_encoder(train(both, say=quietly))
    assert not torch.equal(freed.qformer.proj_out.weight, before.qformer.proj_out.weight)

    with pytest.raises(NestedAttentionError, match="another freeze_qformer.*True then, False now"):
        train(replace(run, phases=(replace(frozen, freeze_qformer=False),)), say=quietly)
    with pytest.raises(NestedAttentionError, match="'scratch' and the first phase has freeze_qformer"):
        replace(run, start=StartSettings())


def test_it_begins_with_an_ip_adapter(unet: Any, prepared: Path, tmp_path: Path) -> None:
    source = SubjectEncoder(encoder_config(replace(SIZES, num_queries=16), unet, Index.read(prepared), 128))
    write(tmp_path / "ip.safetensors", as_ip_adapter(source))
    start = StartSettings(kind="file", path=tmp_path / "ip.safetensors")
    encoder = new_encoder(start, encoder_config(SIZES, unet, Index.read(prepared), 128), unet, seed=0)
    key = site_key(source.config.sites[0].name)
    assert torch.equal(encoder.state_dict()[f"projections.{key}.to_key.weight"],
                       source.state_dict()[f"projections.{key}.to_key.weight"])  # fmt: skip
    assert encoder.config.word == "person" and encoder.config.features == "last_hidden_state"
    assert encoder.config.injection == "nested", "whatever the file's was"


def as_ip_adapter(encoder: SubjectEncoder) -> dict[str, Tensor]:
    """An encoder's weights under the names of IP-Adapter Plus."""
    state, renamed = encoder.state_dict(), {}
    for name, tensor in state.items():
        if name.startswith("qformer."):
            short = (
                name.removeprefix("qformer.").replace(".attention.", ".0.").replace(".feed_forward.", ".1.")
            )
            renamed[f"image_proj.{short}"] = tensor
    for place, site in enumerate(encoder.config.sites):
        for kind, part in (("k", "to_key"), ("v", "to_value")):
            weight = state[f"projections.{site_key(site.name)}.{part}.weight"]
            renamed[f"ip_adapter.{2 * place + 1}.to_{kind}_ip.weight"] = weight
    return renamed


def test_dropped_captions_and_pictures_are_as_if_they_were_empty(
    unet: Any, world_on_disk: Path, prepared: Path
) -> None:
    objective, data = objective_on(unet, world_on_disk, prepared, drop_caption=0.0, drop_picture=0.0)
    models = {"encoder": encoder_for(unet, prepared)}
    batch, noise = example(data, objective)
    plain = objective(batch, models, noise)["denoise"]
    first = torch.tensor([True, False, False, False])
    blank = data.blank
    with torch.no_grad():
        no_picture = objective(batch, models, {**noise, "drop_picture": first})["denoise"]
        given = {**batch, "features": batch["features"].clone()}
        given["features"][0] = blank["features"][0]
        assert torch.equal(objective(given, models, noise)["denoise"], no_picture)
        no_caption = objective(batch, models, {**noise, "drop_caption": first})["denoise"]
        given = {name: value.clone() for name, value in batch.items()}
        given["context"][0], given["pooled"][0] = blank["context"][0], blank["pooled"][0]
        given["mask"][0] = False
        assert torch.equal(objective(given, models, noise)["denoise"], no_caption)
    assert no_picture[0] != plain[0] and torch.allclose(no_picture[1:], plain[1:], atol=1e-6)
    assert no_caption[0] != plain[0] and torch.allclose(no_caption[1:], plain[1:], atol=1e-6)
    everyone = torch.ones(4, dtype=torch.bool)
    loss = objective(batch, models, {**noise, "drop_caption": everyone})["denoise"].mean()
    loss.backward()  # nothing is attached: the step changes nothing, and fails nowhere
    grads = [p.grad for p in models["encoder"].projections.parameters()]
    assert all(g is not None and not g.any() for g in grads)


def test_the_loss_is_the_papers_and_what_is_added_is_as_published(
    unet: Any, world_on_disk: Path, prepared: Path
) -> None:
    """Min-SNR-γ weighs each example, weights each place; offset noise is a shift of a channel."""
    quiet = {"drop_caption": 0.0, "drop_picture": 0.0}
    objective, data = objective_on(unet, world_on_disk, prepared, **quiet)
    models = {"encoder": encoder_for(unet, prepared)}
    batch, noise = example(data, objective)
    half = torch.zeros_like(batch["loss_weight"])
    half[..., 8:] = 1
    batch["loss_weight"] = torch.ones_like(half)
    with torch.no_grad():
        plain = objective(batch, models, noise)
        assert torch.allclose(plain["denoise"], plain["plain"])
        left, right = (objective({**batch, "loss_weight": w}, models, noise) for w in (1 - half, half))
        torch.testing.assert_close(left["denoise"] + right["denoise"], plain["denoise"])
        assert torch.equal(left["plain"], plain["plain"]) and not torch.allclose(*(
            each["denoise"] for each in (left, right)))  # fmt: skip
        weighed = replace(objective, settings=LossSettings(min_snr=5.0, **quiet))(batch, models, noise)
        alphas = objective.scheduler.alphas_cumprod[noise["timestep"]]
        snr = alphas / (1 - alphas)
        weight = snr.clamp(max=5) / (snr + 1)  # velocity is predicted
        torch.testing.assert_close(weighed["denoise"], plain["denoise"] * weight)
        offset = replace(objective, settings=LossSettings(noise_offset=0.1, **quiet))(batch, models, noise)
        shifted = {**noise, "latent": noise["latent"] + 0.1 * noise["offset"]}
        torch.testing.assert_close(offset["denoise"], objective(batch, models, shifted)["denoise"])

    class Epsilon:
        alphas_cumprod = objective.scheduler.alphas_cumprod
        config = type("config", (), {"prediction_type": "epsilon"})

    t = torch.tensor([1, 500])
    ratio = (alphas := Epsilon.alphas_cumprod[t]) / (1 - alphas)
    torch.testing.assert_close(min_snr_weight(Epsilon, t, 5.0), ratio.clamp(max=5) / ratio)


def test_checkpointing_bf16_and_fp8_give_the_same_gradient_or_nearly(
    unet: Any, world_on_disk: Path, prepared: Path
) -> None:
    objective, data = objective_on(unet, world_on_disk, prepared, drop_caption=0.0)
    # A trained one: where weights are random, |v*| is small, and α / |v*| magnifies what rounding leaves.
    path = SMALL_WORLD / "person_encoder.safetensors"
    encoder = encoder_for(unet, prepared, kind="file", path=path)
    batch, noise = example(data, objective)

    def gradient(objective: SubjectObjective) -> Tensor:
        encoder.zero_grad()
        objective(batch, {"encoder": encoder}, noise)["denoise"].mean().backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])  # type: ignore[union-attr]

    plain = gradient(objective)
    assert plain.abs().max() > 0
    unet.enable_gradient_checkpointing()
    unet.train()
    torch.testing.assert_close(gradient(objective), plain, rtol=1e-4, atol=1e-7)
    objective.slot.set()

    def likeness(one: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(one, plain, dim=0))

    unet.to(torch.bfloat16)
    assert likeness(gradient(replace(objective, precision=torch.bfloat16))) > 0.8
    in_bf16 = gradient(replace(objective, precision=torch.bfloat16))
    hold_in_fp8(unet)
    layers = [m for m in unet.modules() if isinstance(m, LinearInFp8)]
    assert len(layers) > 50 and all(m.weight.element_size() == 1 for m in layers)
    in_fp8 = gradient(replace(objective, precision=torch.bfloat16))
    assert float(torch.nn.functional.cosine_similarity(in_fp8, in_bf16, dim=0)) > 0.8


def tensorboard_tags(folder: Path) -> dict[str, list[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found: dict[str, list[str]] = events.Tags()
    return found


def test_a_run_in_8_bits_with_checkpointing_trains(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    settings = training(
        world_on_disk, prepared, tmp_path / "run", steps=2, fp8=True, precision="bf16",
        loss=LossSettings(references=2),
        gradient_checkpointing=True, trackers=("tensorboard",),
        validation=ValidationSettings(every=2, subjects=2, sheet_steps=1),
    )  # fmt: skip
    encoder = load_subject_encoder(train(settings, say=quietly))
    assert all(p.isfinite().all() for p in encoder.parameters())
    # What memory allows may change within a run: on another card it goes on in 16 bits, and split.
    description = tmp_path / "run" / "phase-1" / "run.json"
    kept = json.loads(description.read_text())
    longer = replace(settings, phases=(replace(settings.phases[0], steps=3),), trackers=(), parts=2)
    train(replace(longer, fp8=False), say=quietly)
    assert json.loads(description.read_text()) == kept and "unet in 8 bits" not in kept
    held = load_unet(settings.model, torch.bfloat16)
    hold_in_fp8(held)
    description.write_text(json.dumps({**kept, "unet": running._print(held)}))  # as runs of before noted it
    train(replace(longer, phases=(replace(settings.phases[0], steps=4),)), say=quietly)
    tags = tensorboard_tags(tmp_path / "run" / "phase-1" / "figures")
    assert tags["images"] == ["held out"] and {"denoise", "gain", "samples/s", "memory GB"} <= set(
        tags["scalars"]
    )
    with pytest.raises(NestedAttentionError, match="wandb, which is not installed: pip install wandb"):
        train(replace(settings, output=tmp_path / "w", trackers=("wandb",)), say=quietly)


def test_what_examples_are_read_with_goes_to_processes_that_are_started_anew(prepared: Path) -> None:
    """Windows and macOS start them so, and Python 3.14 everywhere."""
    data = ShardData(prepared, Index.read(prepared), pair_share=Rising(0.5, 0.9, 10))
    examples = Examples(data, SubjectNoise(LossSettings(), 8, 16, 1000), batch=2, seed=0)
    again: Examples = pickle.loads(pickle.dumps(examples))
    for ours, theirs in zip(examples[0], again[0], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [Rising(0.5, 0.9, 10)(position) for position in (0, 5, 20)] == pytest.approx([0.5, 0.7, 0.9])


def albums(prepared: Path, index: Index, **more: Any) -> ShardData:
    """The prepared pictures as those of a few people, three in a row of each."""
    shards = tuple(
        replace(shard, rows=tuple(replace(row, subject=f"s{i // 3}") for i, row in enumerate(shard.rows)))
        for shard in index.shards
    )
    return ShardData(prepared, replace(index, shards=shards), **more)


def test_references_are_the_subjects_other_pictures_as_often_as_asked(prepared: Path, tmp_path: Path) -> None:
    index = Index.read(prepared)
    data = albums(prepared, index, pair_share=lambda position: position / 10)
    own = torch.stack([data.read(torch.tensor([row]), {})["features"][0] for row in range(12)])
    rows = torch.arange(12)
    always = {"pair": torch.full((12,), 0.5), "mate": torch.rand(12), "position": torch.full((12,), 6)}
    found = data.read(rows, always)["features"]
    for row in range(12):
        mates = [m for m in range(12) if m // 3 % 2 == row // 3 % 2 and m != row and same(data, m, row)]
        assert any(torch.equal(found[row], own[m]) for m in mates) and not torch.equal(found[row], own[row])
    never = data.read(rows, {**always, "position": torch.full((12,), 5)})["features"]
    assert torch.equal(never, own)
    alone = ShardData(prepared, index)
    assert torch.equal(alone.read(rows, always)["features"], own), "who has one picture is shown by it"


def test_an_example_shows_up_to_so_many_pictures_of_its_subject(prepared: Path) -> None:
    data = albums(prepared, Index.read(prepared))
    rows = torch.arange(12)
    own = torch.stack([data.read(rows[row : row + 1], {})["features"][0] for row in range(12)])
    chance = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    chance[:, 0] = torch.arange(12) % 3 / 3 + 0.01  # one, two, three and again
    read = data.read(rows, {"more": chance})
    assert read["shown"].sum(dim=1).tolist() == [1, 2, 3] * 4
    for row in range(12):
        album = [other for other in range(12) if same(data, row, other)]
        of = [next(m for m in album if torch.equal(one, own[m])) for one in read["features"][row]]
        seen = of[: int(read["shown"][row].sum())]
        assert seen[0] == row and len(set(seen)) == len(seen), "the example's own, and others of its subject"
    alone = ShardData(prepared, Index.read(prepared)).read(rows, {"more": chance})
    assert alone["shown"].sum(dim=1).tolist() == [1] * 12, "nobody has more than there are"
    draw = SubjectNoise(LossSettings(references=3), 12, 16, 1000)
    noise, one = (
        each(np.random.default_rng(5)) for each in (draw, SubjectNoise(LossSettings(), 12, 16, 1000))
    )
    assert noise.pop("more").shape == (3,), "what else is drawn stays as it was"
    assert all(np.array_equal(noise[name], one[name]) for name in one) and noise.keys() == one.keys()


def test_several_pictures_of_a_subject_are_read_together(
    unet: Any, world_on_disk: Path, prepared: Path
) -> None:
    """As `Subject` joins them; those that are not shown count for nothing, in the loss and in gradients."""
    objective, data = objective_on(unet, world_on_disk, prepared, drop_caption=0.0, drop_picture=0.0)
    encoder = encoder_for(unet, prepared)
    batch, noise = example(data, objective)
    features = batch["features"]
    both = torch.stack([features, features.roll(1, 0)], dim=1)
    shown = torch.tensor([[True, True], [True, False], [True, True], [True, False]])

    def losses(**given: Tensor) -> Tensor:
        return objective({**batch, **given}, {"encoder": encoder}, noise)["denoise"]

    plain, found = losses(), losses(features=both, shown=shown)
    torch.testing.assert_close(found[1::2], plain[1::2])
    assert (found[::2] != plain[::2]).all()
    tokens = encoder(both.flatten(0, 1).float()).reshape(4, -1, encoder.config.token_dim)
    everything = losses(features=both, shown=torch.ones_like(shown))
    with objective.slot.bind(SubjectBinding(projections=encoder.project(tokens), mask=batch["mask"])):
        text = {name: batch[name] for name in ("context", "pooled")}
        joined = denoising_losses(
            lambda noisy, timesteps: objective.predict(noisy, timesteps, batch["sizes"], **text),
            objective.scheduler,
            objective.scaled(batch["latent_mean"], batch["latent_deviation"], noise["sampled"]),
            noise["latent"],
            noise["timestep"],
            batch["loss_weight"],
        )
    torch.testing.assert_close(everything, joined["denoise"])
    unseen = both.clone().requires_grad_(True)
    losses(features=unseen, shown=shown).sum().backward()
    reached = unseen.grad.flatten(2).abs().sum(dim=-1) > 0
    assert torch.equal(reached, shown)


def same(data: ShardData, one: int, other: int) -> bool:
    return data.row(one).subject == data.row(other).subject


@pytest.mark.parametrize("sizes", [(7, 4), (10, 1, 6), (3, 2)])
def test_buckets_are_read_apart_and_each_row_once_an_epoch(sizes: tuple[int, ...]) -> None:
    starts = np.cumsum([0, *sizes])
    buckets = [np.arange(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    order = Order(buckets, group=4, seed=1)
    epochs = 40
    places = epochs * sum(sizes) // 4 * 4
    read = np.asarray([order(place) for place in range(places)]).reshape(-1, 4)
    for group in read:
        assert len({int(np.searchsorted(starts, row, "right")) for row in group}) == 1
    counts = np.bincount(read.flatten(), minlength=sum(sizes))
    assert abs(counts - epochs).max() <= 5
    again = Order(buckets, group=4, seed=1)
    assert [again(place) for place in (places - 1, 0, 17)] == [read.flatten()[i] for i in (-1, 0, 17)]
    labels = np.searchsorted(starts, read[:, 0], "right")
    assert len({tuple(labels[i : i + 6]) for i in range(0, 30, 6)}) > 1, "buckets take turns at random"


def test_validation_tells_a_trained_encoder_from_a_random_one(
    unet: Any, world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    """On the shipped person encoder: the subject helps, and people are told apart."""
    objective, data = objective_on(unet, world_on_disk, prepared)
    held = ShardData(prepared, Index.read(prepared))
    shown = ValidationSettings(subjects=5, sheet_steps=2)
    found = {}
    for name, encoder in {
        "trained": load_subject_encoder(SMALL_WORLD / "person_encoder.safetensors").float(),
        "random": encoder_for(unet, prepared).eval(),
    }.items():
        validation = Validation(held, objective, encoder, shown, base_of(world_on_disk), torch.device("cpu"))
        state = torch.random.get_rng_state()
        found[name] = validation.figures()
        assert torch.equal(torch.random.get_rng_state(), state)
    assert found["trained"]["gain"] > 0.01 > found["random"]["gain"]
    assert found["trained"]["retrieval"] >= 0.5 and found["trained"]["retrieval by chance"] == 1 / 5
    assert len([name for name in found["trained"] if name.startswith("nested t")]) == 5
    pixels = validation.save_sheet(tmp_path, 7)
    assert pixels.shape == (5 * 256, 4 * 256, 3) and (tmp_path / "step-00000007.jpg").exists()
    assert not np.array_equal(pixels[:256, 512:768], pixels[:256, 768:]), "without, and with the subject"


def test_validation_shows_each_subject_from_another_picture(
    unet: Any, world_on_disk: Path, prepared: Path
) -> None:
    """On its own picture an encoder that copies would be taken for one that knows the person."""
    objective, data = objective_on(unet, world_on_disk, prepared)
    some = next(data.row(row).subject for row in range(len(data)))
    rows = [row for row in range(len(data)) if data.row(row).subject == some]
    shards = [replace(s, rows=tuple(replace(r, subject="both") for r in s.rows)) for s in data.shards]
    held = ShardData(prepared, replace(data.index, shards=tuple(shards)))
    shown = ValidationSettings(subjects=2, sheet_steps=0)
    encoder = encoder_for(unet, prepared).eval()
    made = Validation(held, objective, encoder, shown, base_of(world_on_disk), torch.device("cpu"))
    assert len(rows) >= 1 and len(made._rows) == 1 and made._references != made._rows
    wanted = held.read(torch.tensor(made._references), {})
    own = held.read(torch.tensor(made._rows), {})
    assert torch.equal(made._batch["features"], wanted["features"])
    assert torch.equal(made._batch["latent_mean"], own["latent_mean"])
    assert held.another(made._rows[0]) == held.another(made._rows[0]) != made._rows[0]


def test_a_run_without_anybody_held_out_says_that_nothing_is_validated(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    shutil.copytree(prepared, folder)
    index = Index.read(folder)
    replace(index, shards=tuple(s for s in index.shards if not s.held_out)).write(folder)
    said: list[str] = []
    settings = training(world_on_disk, folder, tmp_path / "run", steps=1)
    train(replace(settings, validation=ValidationSettings(every=1)), say=said.append)
    assert any(line.startswith(f"no validation: no subject of {folder} is held out") for line in said)


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_norm_that_would_stop_all_learning_is_refused(
    world_on_disk: Path, prepared: Path, tmp_path: Path, clip: float
) -> None:
    with pytest.raises(NestedAttentionError, match="clip is .*; expected the largest norm of the gradient"):
        replace(training(world_on_disk, prepared, tmp_path), clip=clip)


def test_a_schedule_that_says_nothing_of_clipping_does_not_clip_latents(
    unet: Any, world_on_disk: Path, prepared: Path
) -> None:
    objective, data = objective_on(unet, world_on_disk, prepared)
    config = dict(objective.scheduler.config)
    assert config.pop("clip_sample") is False
    drawn = []
    for scheduler in (objective.scheduler, DDPMScheduler.from_config(config)):
        each = replace(objective, scheduler=scheduler)
        shown = ValidationSettings(subjects=2, sheet_steps=2)
        encoder = encoder_for(unet, prepared).eval()
        validation = Validation(data, each, encoder, shown, base_of(world_on_disk), torch.device("cpu"))
        drawn.append(validation._draw(None))
    assert np.array_equal(*drawn)
    assert SCHEDULER["clip_sample"] is False, "as SDXL's own configuration has it"


def test_a_run_validates_and_stays_as_it_would_have_been(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    settings = training(world_on_disk, prepared, tmp_path / "a")
    plain = train(settings, say=quietly)
    shown = ValidationSettings(every=2, subjects=2, sheet_steps=1)
    watched = train(replace(settings, output=tmp_path / "b", validation=shown), say=quietly)
    assert content(watched) == content(plain)
    steps = [int(line["step"]) for line in log_of(tmp_path / "b" / "phase-1") if "gain" in line]
    assert steps == [2, 4]
    sheets = sorted(path.name for path in (tmp_path / "b" / "phase-1" / "validation").iterdir())
    assert sheets == ["step-00000002.jpg", "step-00000004.jpg"]


def test_a_card_that_is_odd_does_not_keep_an_encoder_from_loading(
    unet: Any, prepared: Path, tmp_path: Path
) -> None:
    encoder = encoder_for(unet, prepared)
    save_subject_encoder(encoder, tmp_path / "plain.safetensors")
    assert read_card(tmp_path / "plain.safetensors") == EncoderCard()
    assert "licence: not stated" in describe(encoder.config, EncoderCard())
    odd: Mapping[str, Any]
    for odd in ({"card": "{"}, {"card": "[]"}, {"card": '{"samples": "x", "licence": 3, "new": 1}'}, {}):
        assert EncoderCard.from_metadata(odd) == EncoderCard()
    assert EncoderCard.from_metadata({"card": '{"licence": "CC0", "more": 1}'}) == EncoderCard(licence="CC0")


def test_an_adapter_can_be_trained_too(world_on_disk: Path, prepared: Path, tmp_path: Path) -> None:
    """Decoupled, as IP-Adapter: another loss from the same start, and the file says so."""
    nested = training(world_on_disk, prepared, tmp_path / "a", steps=2)
    adapter = replace(nested, output=tmp_path / "b", encoder=replace(SIZES, injection="decoupled"))
    first, second = (load_subject_encoder(train(settings, say=quietly)) for settings in (nested, adapter))
    assert (first.config.injection, second.config.injection) == ("nested", "decoupled")
    losses = [losses_of(tmp_path / name / "phase-1")[2] for name in "ab"]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("word", ["person", "pet"])
def test_the_small_worlds_configurations_train(world_on_disk: Path, tmp_path: Path, word: str) -> None:
    """From the files that ship, with few pictures and steps."""
    write_pictures(tmp_path / "pictures", word, 6)
    preparing = read_config(PACK / "configs" / "prepare" / f"small-{word}.yaml", PrepareSettings)
    source = SourceSettings(path=tmp_path / "pictures")
    data = tmp_path / "prepared"
    prepare(replace(preparing, model=base_of(world_on_disk), source=source, output=data), quietly)
    settings = read_config(PACK / "configs" / "train" / f"small-{word}.yaml", TrainSettings)
    (phase,) = settings.phases
    assert phase.data.resolve() == preparing.output.resolve() and preparing.model.base == settings.model.base
    short = replace(phase, data=data, steps=2, batch=4)
    few = replace(settings, model=base_of(world_on_disk), output=tmp_path / "run", phases=(short,))
    encoder = load_subject_encoder(train(few, say=quietly))
    shipped = load_subject_encoder(SMALL_WORLD / f"{word}_encoder.safetensors")
    assert encoder.config == shipped.config


def test_the_commands_prepare_train_and_say_what_is_wrong(
    world_on_disk: Path, prepared: Path, tmp_path: Path
) -> None:
    from dataclasses import asdict

    from typer.testing import CliRunner

    from nested_attention.cli.app import app

    def call(*words: object) -> Any:
        return CliRunner().invoke(app, list(map(str, words)))

    settings = preparing(world_on_disk, tmp_path, prepared.parent / "pictures")
    config = tmp_path / "prepare.yaml"
    config.write_text(json.dumps(asdict(settings), default=str))
    done = call("prepare", config)
    assert done.exit_code == 0 and "kept 16 (4 held out), left out 0" in done.stdout
    run = written(tmp_path, training(world_on_disk, settings.output, tmp_path / "run", steps=1))
    planned = call("train", run, "--dry-run")
    assert planned.exit_code == 0 and "12 pictures (as prepared)" in planned.stdout
    assert not (tmp_path / "run").exists()
    trained = call("train", run)
    assert trained.exit_code == 0 and (tmp_path / "run" / "small.safetensors").exists()
    refused = call("train", run, "--resume", "never")
    assert refused.exit_code == 1 and "has checkpoints of a run" in refused.stderr
    assert "Traceback" not in refused.output
    missing = call("prepare", tmp_path / "nothing.yaml")
    assert missing.exit_code == 1 and "there is no configuration file" in missing.stderr
