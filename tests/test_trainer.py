"""The trainer: schedules, examples and noise, resuming, stopping, losses that are not finite."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DDPMScheduler
from host_reads import NoHostReads
from small_training import log_of
from torch import Tensor
from torch.distributed.utils import _to_kwargs

from nested_attention.errors import NestedAttentionError
from nested_attention.paths import PACK
from nested_attention.storage.tensors import read_tensors
from nested_attention.training.checkpoints import checkpoints_in
from nested_attention.training.data import Arrays, Batch, Data, Examples, Joined, no_noise
from nested_attention.training.objective import denoising_losses
from nested_attention.training.schedule import Schedule
from nested_attention.training.trainer import LOG_EVERY, Trainer, TrainerOptions, _Given, _Losses

DATA = Arrays(x=torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))


def noise(rng: np.random.Generator) -> dict[str, Any]:
    return {"shift": np.float32(rng.standard_normal())}


def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    return {"square": models["net"](batch["x"] + noise["shift"][:, None]).square().mean(dim=1)}


def of_every_generator(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    """It draws from the global generators as well, as dropout does."""
    more = torch.rand(()) + random.random() + float(np.random.rand())
    return {"square": more * objective(batch, models, noise)["square"]}


def network() -> torch.nn.Linear:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: B018
    return torch.nn.Linear(4, 4)


def trainer(
    folder: Path,
    net: torch.nn.Module,
    steps: int,
    objective: Any = objective,
    loss_weights: Mapping[str, float] = {"square": 1.0},
    **changed: Any,
) -> Trainer:
    options, how = (
        TrainerOptions(batch=4, rate=0.1, **changed),
        {"loss_weights": loss_weights, "noise": noise},
    )
    return Trainer(folder, {"net": net}, DATA, objective, Schedule(steps), options, **how)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def test_the_rate_rises_holds_and_falls() -> None:
    schedule = Schedule(steps=1000, warmup=100, decay=0.2)
    rates = [schedule.factor(step, 0.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == 1.0 and rates[99] == rates[799] == 1.0
    assert all(a > b for a, b in zip(rates[800:], rates[801:], strict=False)) and rates[-1] < 0.01
    assert Schedule(steps=10**9, minutes=1).done(5, 61.0) and not Schedule(steps=10).done(9, 1e9)


def test_every_epoch_reads_each_example_once_in_another_order() -> None:
    examples = Examples(Arrays(row=np.arange(10)), no_noise, batch=4, seed=1)
    read = torch.cat([examples[position][0]["row"] for position in range(0, 40, 4)]).view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in read)
    assert len({tuple(epoch.tolist()) for epoch in read}) == 4


def test_examples_and_noise_do_not_depend_on_how_they_are_batched() -> None:
    """Two processes with batches of 4 read what one with batches of 8 reads."""
    whole, halves = (Examples(DATA, noise, batch=batch, seed=3) for batch in (8, 4))
    for position in (0, 8, 16):
        parts = halves[position], halves[position + 4]
        for of_whole, *of_parts in zip(whole[position], *parts, strict=True):
            for name, value in of_whole.items():
                assert torch.equal(value, torch.cat([part[name] for part in of_parts]))
    assert len(set(whole[0][1]["shift"].tolist())) == 8


def test_sets_of_different_shapes_are_joined_as_buckets() -> None:
    parts = [Arrays(x=torch.arange(n)[:, None].expand(n, width)) for n, width in ((6, 2), (10, 3))]
    data = Joined(*parts)
    examples = Examples(data, no_noise, batch=2, seed=0)
    batches = [examples[position][0] for position in range(0, 16, 2)]
    assert sorted(batch["x"].shape[1] for batch in batches) == [2] * 3 + [3] * 5
    for batch in batches:
        start = 0 if batch["x"].shape[1] == 2 else 6
        assert torch.equal(batch["x"][:, 0], batch["row"] - start)
    assert data.name(7) == "example 1" and data.nbytes == sum(part.nbytes for part in parts)


def test_examples_on_the_device_are_learned_from_as_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, placed = network(), network()
    trainer(tmp_path / "a", usual, 4).run()
    asked: list[str] = []

    def on_device(data: Data, device: torch.device, on_host: Collection[str]) -> Arrays:
        asked.append(device.type)
        assert isinstance(data, Arrays)
        return data.to(device, on_host=on_host)

    monkeypatch.setattr("nested_attention.training.trainer.resident", on_device)
    trainer(tmp_path / "b", placed, 4).run()
    assert len(asked) == 1
    assert all(torch.equal(a, b) for a, b in zip(usual.parameters(), placed.parameters(), strict=True))


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="'x': 3, 'y': 4"):
        Arrays(x=np.zeros(3), y=np.zeros(4))


@pytest.mark.parametrize("stopped_after", [3, 4, 7])
def test_a_run_that_stops_ends_with_the_weights_of_one_that_does_not(
    tmp_path: Path, stopped_after: int
) -> None:
    """Bit for bit, with every generator and the place in the data; stopping is a kill between two steps."""
    options: dict[str, Any] = {"objective": of_every_generator, "save_every": 1}
    whole = network()
    trainer(tmp_path / "a", whole, 9, **options).run()
    killed = trainer(tmp_path / "b", network(), 9, **options)

    def kill(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        if killed.step == stopped_after:
            raise KeyboardInterrupt
        return of_every_generator(batch, models, noise)

    killed.losses._objective = kill
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = network()
    again = trainer(tmp_path / "b", resumed, 9, **options)
    again.run()
    assert again.step == 9 and again.samples == 36
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    ends = [torch.load(tmp_path / name / "step-00000009" / "optimizer.bin") for name in ("a", "b")]
    for one, other in zip(ends[0]["state"].values(), ends[1]["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_is_complete_gives_its_weights_again(tmp_path: Path) -> None:
    first, again = network(), network()
    trainer(tmp_path, first, 3).run()
    trainer(tmp_path, again, 3).run()
    assert torch.equal(first.weight, again.weight) and len(log_of(tmp_path)) == 1


def test_the_result_is_the_average_of_the_weights(tmp_path: Path) -> None:
    net, seen = network(), []

    def watched(batch: Batch, models: Mapping[str, Any], noise: Batch) -> dict[str, Tensor]:
        seen.append(models["net"].weight.detach().clone())
        return objective(batch, models, noise)

    run = trainer(tmp_path, net, 4, watched, ema=0.5)
    run.run()
    steps = [*seen[1:], last_weight(tmp_path)]
    average = steps[0]
    for step, weight in enumerate(steps[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(net.weight.detach(), average)


def last_weight(folder: Path) -> Tensor:
    return read_tensors(folder / checkpoints(folder)[-1] / "model.safetensors").tensors["models.net.weight"]


def test_the_last_checkpoints_are_kept_and_a_partial_one_is_not_read(tmp_path: Path) -> None:
    trainer(tmp_path, network(), 7, save_every=2, keep=2).run()
    assert checkpoints(tmp_path) == ["step-00000006", "step-00000007"]
    (tmp_path / "step-00000008.partial").mkdir()  # a kill while it was written
    again = trainer(tmp_path, network(), 8, save_every=2, keep=2)
    again.run()
    assert again.step == 8 and checkpoints(tmp_path) == ["step-00000007", "step-00000008"]


def test_a_reader_outlives_the_signals_to_its_whole_job() -> None:
    """A cluster and a launcher send one each; they are for the process that trains, which saves first. One
    that is left behind ends by itself."""
    code = (
        "from nested_attention.training import stopping\n"
        "import os, signal, sys, time\n"
        "stopping.LEFT = 1\n"
        "stopping.leave_signals(0)\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):\n"
        "    os.kill(os.getpid(), number); time.sleep(0.05)\n"
        "print('alive', flush=True)\n"
        "time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("alive", -signal.SIGALRM), done.stderr


def launched(*arguments: object) -> subprocess.Popen[str]:
    """Two processes of `several_processes.py`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("several_processes.py")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PACK), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, str(script), *map(str, arguments)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def test_several_processes_that_are_asked_to_stop_save_at_once(tmp_path: Path) -> None:
    """Whoever is asked, and however slow a step: after the step they are in. All of a job get SIGTERM, and
    the launcher sends its processes another."""
    running = launched(tmp_path, 0.5, 200)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("begun"):
            break
    time.sleep(3)
    os.killpg(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=60)[0]
    (saved,) = checkpoints(tmp_path)
    assert 1 <= int(saved.removeprefix("step-")) < LOG_EVERY, said
    assert "which is saved; the same command goes on from there" in said


def test_processes_that_do_not_share_a_disk_do_not_go_on(tmp_path: Path) -> None:
    """Only the first one writes checkpoints: the other would begin anew beside it."""
    assert launched(tmp_path, 0, 2, "apart").wait(timeout=90) == 0
    assert checkpoints_in(tmp_path / "0") and not checkpoints_in(tmp_path / "1")
    said = launched(tmp_path, 0, 4, "apart").communicate(timeout=90)[0]
    assert "processes begin at different steps (2, 0)" in said and "a disk that all machines share" in said


def test_a_distributed_module_leaves_on_the_host_what_belongs_there() -> None:
    """Each step would wait for the device to give it back."""
    given = _Given({"mask": torch.ones(2)}, {"drop_caption": torch.ones(2)})
    ((moved,),), _ = _to_kwargs((given,), {}, torch.device("meta"), False)
    assert moved.batch["mask"].device.type == moved.noise["drop_caption"].device.type == "cpu"


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path) -> None:
    trainer(tmp_path, network(), 3, save_every=1).run()
    for name in ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl"):
        file = tmp_path / "step-00000003" / name
        content = file.read_bytes()
        file.write_bytes(b"")
        with pytest.raises(NestedAttentionError, match="step-00000003 cannot be read .*Delete that folder"):
            trainer(tmp_path, network(), 4).run()
        file.write_bytes(content)
    shutil.rmtree(tmp_path / "step-00000003")
    trainer(tmp_path, network(), 4).run()
    assert checkpoints(tmp_path)[-1] == "step-00000004"


def test_a_batch_in_parts_learns_what_the_whole_learns(tmp_path: Path) -> None:
    whole, parted = network(), network()
    trainer(tmp_path / "a", whole, 4).run()
    trainer(tmp_path / "b", parted, 4, parts=4).run()
    torch.testing.assert_close(parted.weight, whole.weight)
    with pytest.raises(NestedAttentionError, match="parts is 5, and a process has 4 examples a step"):
        trainer(tmp_path / "c", network(), 4, parts=5)


def test_what_accelerate_has_been_told_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, told = network(), network()
    trainer(tmp_path / "a", usual, 4, ema=0.0).run()
    told_of = {"GRADIENT_ACCUMULATION_STEPS": "8", "DYNAMO_BACKEND": "EAGER", "MIXED_PRECISION": "bf16"}
    for name, value in told_of.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    run = trainer(tmp_path / "b", told, 4, ema=0.0)
    assert type(run.losses) is _Losses
    run.run()
    assert torch.equal(usual.weight, told.weight)
    assert log_of(tmp_path / "a")[0]["norm"] == log_of(tmp_path / "b")[0]["norm"]
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(NestedAttentionError, match="Accelerate is set to FSDP; expected processes that each"):
        trainer(tmp_path / "c", network(), 4)


def test_what_a_configuration_changes_holds_from_there_on(tmp_path: Path) -> None:
    """A checkpoint has the average's decay and AdamW's settings of its own run."""
    trainer(tmp_path, network(), 2, ema=0.5, weight_decay=0.1).run()
    again = trainer(tmp_path, network(), 4, ema=0.25, weight_decay=0.2)
    again.run()
    assert again.average.decay == 0.25
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_being_asked_to_stop_saves_and_the_run_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    whole, halves = network(), network()
    trainer(tmp_path / "a", whole, 6).run()
    stopped = trainer(tmp_path / "b", halves, 6)

    def terminated(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        if stopped.step == 2:
            os.kill(os.getpid(), how)
        return objective(batch, models, noise)

    stopped.losses._objective = terminated
    before = signal.getsignal(how)
    with pytest.raises(NestedAttentionError, match=f"stopped by {how.name} after step 3, which is saved"):
        stopped.run()
    assert signal.getsignal(how) is before and checkpoints(tmp_path / "b") == ["step-00000003"]
    halves = network()
    trainer(tmp_path / "b", halves, 6).run()
    assert torch.equal(whole.weight, halves.weight)
    assert [line["step"] for line in log_of(tmp_path / "b")] == [3, 6]


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    stopped = trainer(tmp_path, network(), 6)

    def interrupted(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return objective(batch, models, noise)

    stopped.losses._objective = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert not checkpoints(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    def broken(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        losses = objective(batch, models, noise)
        return {**losses, "attributes": losses["square"] * (float("nan") if run.step == 36 else 1.0)}

    weights = {"square": 1.0, "attributes": 0.1}
    run = trainer(tmp_path, network(), 100, broken, loss_weights=weights, save_every=20)
    with pytest.raises(NestedAttentionError, match="`attributes` was nan at step 37"):
        run.run()
    assert checkpoints(tmp_path) == ["step-00000020"]


def test_the_log_has_the_means_of_its_steps(tmp_path: Path) -> None:
    def counted(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        return {**objective(batch, models, noise), "count": torch.tensor(float(run.step))}

    run = trainer(tmp_path, network(), 60, counted)
    run.run()
    first, last = log_of(tmp_path)
    assert (first["step"], first["count"], last["step"], last["count"]) == (50, 24.5, 60, 54.5)
    assert first["loss"] == pytest.approx(first["square"]) and first["norm"] > 0  # `count` is only logged


def test_a_step_reads_nothing_back_from_the_device(tmp_path: Path) -> None:
    run = trainer(tmp_path, network(), LOG_EVERY)
    items = [run.examples[position] for position in range(0, 12, 4)]
    run._update(*items[0])  # optimizers make their state in the first step
    with NoHostReads():
        for item in items[1:]:
            run._update(*item)
    assert len(run._unwritten) == 3


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_what_the_schedule_predicts(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind)
    generator = torch.Generator().manual_seed(0)
    x, e = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    t, weight = torch.tensor([10, 900]), torch.rand(2, 3, 3, generator=generator)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    target = e if kind == "epsilon" else a.sqrt() * e - (1 - a).sqrt() * x

    def half(noisy: Tensor, timesteps: Tensor) -> Tensor:
        assert torch.equal(timesteps, t)
        torch.testing.assert_close(noisy, a.sqrt() * x + (1 - a).sqrt() * e)
        return target + 0.5

    found = denoising_losses(half, scheduler, x, e, t, weight)
    torch.testing.assert_close(found["plain"], torch.full((2,), 0.25))
    torch.testing.assert_close(found["denoise"], 0.25 * weight.mean(dim=(1, 2)))
