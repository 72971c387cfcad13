"""The loop of every training: gradient steps, an average of the weights, a log, checkpoints that resume.

A run lives in a folder: `log.jsonl`, and a folder `step-…` a checkpoint. On a CPU, a run by steps that is
stopped at a checkpoint and resumed ends with the weights of one that was not stopped, bit for bit.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import NestedAttentionError
from .data import Batch, Data, Examples, Noise, no_noise
from .schedule import Schedule

Objective = Callable[[Batch, Any, Batch], dict[str, Tensor]]
"""(batch, models by name, noise) → losses by name, (B,) or (). It is pure: it changes none of them."""

LOG_EVERY = 50
"""Steps a line of the log. The host reads losses from the device then, and not at every step."""


class _Losses(nn.Module):
    """An objective with the models that it trains, in the form that Accelerate distributes."""

    def __init__(self, models: Mapping[str, nn.Module], objective: Objective) -> None:
        super().__init__()
        self.models, self._objective = nn.ModuleDict(models), objective

    def forward(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        return {name: loss.mean() for name, loss in self._objective(batch, self.models, noise).items()}


@dataclass(frozen=True)
class TrainerOptions:
    """How a run is optimised and kept.

    batch: examples a step and process. rate: the highest learning rate. ema: decay of the average of the
    weights. seed: of the order of examples and of their noise. save_every: steps between checkpoints; the
    last `keep` are kept.
    """

    batch: int = 32
    rate: float = 1e-3
    ema: float = 0.999
    weight_decay: float = 0.01
    seed: int = 0
    save_every: int = 250
    keep: int = 2


class Trainer:
    """Trains models on an objective.

    folder: where the run is kept; one with a checkpoint in it goes on from there. models: what is trained,
    by name: their parameters that require gradients. Frozen ones are the objective's. loss_weights: the
    weight of each loss in the sum that is minimised; one without a weight is only logged. noise: draws what
    is random about an example. on_host: names in a batch that stay on the CPU, where reading them waits for
    no device.
    """

    def __init__(
        self,
        folder: Path,
        models: Mapping[str, nn.Module],
        data: Data,
        objective: Objective,
        schedule: Schedule,
        options: TrainerOptions,
        *,
        loss_weights: Mapping[str, float],
        noise: Noise = no_noise,
        on_host: Collection[str] = (),
    ) -> None:
        self.folder, self.schedule, self.options = folder, schedule, options
        self.loss_weights, self.on_host = loss_weights, list(on_host)
        self.examples = Examples(data, noise, batch=options.batch, seed=options.seed)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        if self.accelerator.num_processes > 1 and schedule.minutes < float("inf"):
            raise NestedAttentionError(
                "a run of several processes ends after steps, not after minutes: set steps"
            )
        self.models = dict(models)
        losses = _Losses(models, objective).train()
        self.parameters = [parameter for parameter in losses.parameters() if parameter.requires_grad]
        settings: dict[str, Any] = {"lr": options.rate, "weight_decay": options.weight_decay}
        optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), fused=True, **settings)
        self.losses, self.optimizer = self.accelerator.prepare(losses, optimizer)
        self.average = EMAModel(self.parameters, decay=options.ema, foreach=True)
        self.step = self.samples = 0
        self._before, self._started = 0.0, time.monotonic()
        self._unwritten: list[dict[str, Tensor]] = []
        self.accelerator.register_for_checkpointing(self)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all starts."""
        return self._before + time.monotonic() - self._started

    def run(self) -> None:
        """Train to the end of the schedule; the models then hold the averaged weights, on the CPU.

        Raises NestedAttentionError if a loss is not finite, and, after a checkpoint, if SIGTERM asks to stop.
        """
        checkpoints = self._checkpoints()
        if checkpoints:
            self.accelerator.load_state(str(checkpoints[-1]))
        self._started = time.monotonic()
        with _sigterm() as asked:
            for batch, noise in self._upcoming():
                if self.schedule.done(self.step, self.elapsed):
                    break
                self._update(batch, noise)
                done = self.schedule.done(self.step, self.elapsed)
                stopped = self._agreed(bool(asked))
                if done or stopped or self.step % LOG_EVERY == 0:
                    self._write_log()
                if done or stopped or self.step % self.options.save_every == 0:
                    self._save()
                if stopped and not done:
                    raise NestedAttentionError(
                        f"{self.folder}: stopped by SIGTERM after step {self.step}, which is saved; the same "
                        "command goes on from there"
                    )
        self.average.copy_to(self.parameters)
        for model in self.models.values():
            model.eval().cpu()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside models, optimizer and generators, which Accelerate keeps."""
        average = self.average.state_dict()
        return {"step": self.step, "samples": self.samples, "elapsed": self.elapsed, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.samples, self._before = state["step"], state["samples"], state["elapsed"]
        self.average.load_state_dict(state["average"])
        self.average.to(self.accelerator.device)

    def _upcoming(self) -> Iterator[tuple[Batch, Batch]]:
        """Batches and noise of this process from where the run is, on its device."""
        everyone = self.accelerator.num_processes * self.options.batch
        first = self.samples + self.accelerator.process_index * self.options.batch
        left = self.schedule.steps - self.step
        positions = range(first, first + left * everyone, everyone)
        # A generator of its own: a loader draws from the global one each time that it is started.
        loader = DataLoader(self.examples, None, sampler=positions, generator=torch.Generator())
        device = self.accelerator.device
        return (send_to_device(item, device, non_blocking=True, skip_keys=self.on_host) for item in loader)

    def _update(self, batch: Batch, noise: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * self.schedule.factor(self.step, self.elapsed)
        losses = self.losses(batch, noise)
        loss = torch.stack([weight * losses[name] for name, weight in self.loss_weights.items()]).sum()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.parameters)
        self.step += 1
        self.samples += self.accelerator.num_processes * self.options.batch
        logged = {**losses, "loss": loss, "norm": norm}
        self._unwritten.append({name: value.detach() for name, value in logged.items()})

    def _write_log(self) -> None:
        """The means since the last line, over all processes. Raises NestedAttentionError if one is not
        finite."""
        names = list(self._unwritten[0])
        values = torch.stack([torch.stack([each[name] for name in names]) for each in self._unwritten])
        values = self.accelerator.reduce(values.float(), "mean").cpu()  # (steps, names)
        first = self.step - len(values) + 1
        self._unwritten.clear()
        for row, column in (~values.isfinite()).nonzero()[:1].tolist():
            raise NestedAttentionError(
                f"{self.folder}: `{names[column]}` was {float(values[row, column])} at step {first + row}. "
                f"The checkpoints are of earlier steps. Look for examples that are not finite, or lower the "
                f"learning rate, {self.options.rate:g}"
            )
        if self.accelerator.is_main_process:
            line = {"step": self.step, "minutes": round(self.elapsed / 60, 2)}
            line["rate"] = self.optimizer.param_groups[0]["lr"]
            line |= {name: round(float(mean), 5) for name, mean in zip(names, values.mean(0), strict=True)}
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")

    def _checkpoints(self) -> list[Path]:
        """The complete ones, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if not path.suffix)

    def _save(self) -> None:
        """Write a checkpoint, in one piece or not at all, and delete those beyond the limit."""
        if self._unwritten:
            self._write_log()  # refuses to save what is no longer finite
        path = self.folder / f"step-{self.step:08d}"
        partial = path.with_suffix(".partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial.replace(path)
            for old in self._checkpoints()[: -self.options.keep]:
                shutil.rmtree(old)

    def _agreed(self, stop: bool) -> bool:
        """Whether any process was asked to stop; several agree on it at the lines of the log."""
        if self.accelerator.num_processes == 1:
            return stop
        if self.step % LOG_EVERY:
            return False
        if stop:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """Collects SIGTERM instead of dying of it. Only the main thread can; elsewhere nothing is collected."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
