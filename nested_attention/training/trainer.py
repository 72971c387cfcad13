"""The loop of every training: gradient steps, an average of the weights, a log, checkpoints that resume.

A run lives in a folder: `log.jsonl`, and a folder `step-…` a checkpoint. On a CPU, a run by steps that is
stopped at a checkpoint and resumed ends with the weights of one that was not stopped, bit for bit.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import NestedAttentionError
from .checkpoints import checkpoints_in, load_checkpoint, naming_disk, save_checkpoint
from .data import Batch, Data, Examples, Noise, no_noise, resident
from .precision import attention_to_learn_by
from .records import Records, TrackerName, memory_peak, new_accelerator
from .schedule import Schedule
from .stopping import Agreement, Stopped, asked_to_stop, leave_signals

Objective = Callable[[Batch, Any, Batch], dict[str, Tensor]]
"""(batch, models by name, noise) → losses by name, (B,) or (). It is pure: it changes none of them."""

Shown = tuple[Mapping[str, float], Mapping[str, np.ndarray]]
"""Figures, and pictures (H, W, 3) uint8, by name."""

LOG_EVERY = 50
"""Steps a line of the log. The host reads losses from the device then, and not at every step."""


@dataclass(frozen=True)
class _Given:
    """What a step reads. One object, for a module that is distributed moves the tensors of dictionaries to
    its device, those that are to stay on the host too."""

    batch: Batch
    noise: Batch


class _Losses(nn.Module):
    """An objective with the models that it trains, in the form that Accelerate distributes."""

    def __init__(self, models: Mapping[str, nn.Module], objective: Objective) -> None:
        super().__init__()
        self.models, self._objective = nn.ModuleDict(models), objective

    def forward(self, given: _Given) -> tuple[dict[str, Tensor], Tensor]:
        """The mean of each loss, and the row of an example that has one that is not finite, −1 if none."""
        batch = given.batch
        losses = self._objective(batch, self.models, given.noise)
        each = torch.stack([loss.detach().expand(len(batch["row"])) for loss in losses.values()])
        bad = torch.where(each.isfinite().all(dim=0), -1, batch["row"]).max()
        return {name: loss.mean() for name, loss in losses.items()}, bad


@dataclass(frozen=True)
class TrainerOptions:
    """How a run is optimised and kept.

    batch: examples a step and process. rate: the highest learning rate, of AdamW, whose betas are 0.9 and
    0.99. ema: decay of the average of the weights. clip: the largest norm of the gradient. seed: of the order
    of examples and of their noise. save_every, validate_every: steps between checkpoints, and between
    validations; the last `keep` checkpoints are kept. workers: processes that read examples, for each process
    that trains; 0: it reads them itself. trackers: where figures go beside `log.jsonl`. parts: into how many
    a process's batch is split at least, one after the other; one process splits it by itself where it does
    not fit into memory.
    """

    batch: int = 32
    rate: float = 1e-3
    ema: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    save_every: int = 250
    keep: int = 2
    validate_every: int = 0
    workers: int = 0
    trackers: tuple[TrackerName, ...] = ()
    parts: int = 1


class Trainer:
    """Trains models on an objective.

    folder: where the run is kept; one with a checkpoint in it goes on from there. models: what is trained,
    by name: their parameters that require gradients. Frozen ones are the objective's. loss_weights: the
    weight of each loss in the sum that is minimised; one without a weight is only logged. noise: draws what
    is random about an example. on_host: names in a batch that stay on the CPU, where reading them waits for
    no device. validate: figures and pictures of the averaged weights after a step, every `validate_every`
    steps, which draw from no global generator. export: writes what else belongs into a checkpoint, from the
    averaged weights; it gets the checkpoint's folder and how many examples were read. precision: of the
    objective's arithmetic (`attention_to_learn_by`). deadline: of `time.monotonic`, after which it stops.
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
        validate: Callable[[int], Shown] | None = None,
        export: Callable[[Path, int], None] | None = None,
        precision: torch.dtype = torch.float32,
        deadline: float = float("inf"),
    ) -> None:
        self._deadline, self._precision = deadline, precision
        self.folder, self.schedule, self.options = folder, schedule, options
        self.loss_weights, self.on_host = loss_weights, list(on_host)
        self._validate, self._export = validate, export
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = new_accelerator(folder, options.trackers)
        self.group = self.accelerator.num_processes * options.batch
        self.examples = Examples(data, noise, batch=options.batch, seed=options.seed, group=self.group)
        if self.accelerator.num_processes > 1 and schedule.minutes < float("inf"):
            raise NestedAttentionError(
                "a run of several processes ends after steps, not after minutes: set steps"
            )
        if options.parts > options.batch:
            raise NestedAttentionError(
                f"parts is {options.parts}, and a process has {options.batch} examples a step; expected at "
                "most as many parts"
            )
        self.models = dict(models)
        losses = _Losses(models, objective).train()
        self.parameters = [parameter for parameter in losses.parameters() if parameter.requires_grad]
        settings: dict[str, Any] = {"lr": options.rate, "weight_decay": options.weight_decay}
        optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), fused=True, **settings)
        self.losses, self.optimizer = self.accelerator.prepare(losses, optimizer)
        self.average = EMAModel(self.parameters, decay=options.ema, foreach=True)
        self.step = self.samples = 0
        self.parts = options.parts
        """Into how many parts a batch is split, one after the other, for memory."""
        self._before, self._started = 0.0, time.monotonic()
        self._unwritten: list[dict[str, Tensor]] = []
        self._bad: list[Tensor] = []
        self._records = Records(folder, self.accelerator)
        self._agreed = Agreement(self.accelerator.num_processes)
        self.accelerator.register_for_checkpointing(self)

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all starts."""
        return self._before + time.monotonic() - self._started

    def run(self) -> None:
        """Train to the end of the schedule; the models then hold the averaged weights, on the CPU.

        Raises NestedAttentionError if a loss is not finite, if memory or the disk is full, or if a process
        that reads examples dies; Stopped, after a checkpoint, at the deadline and if SIGTERM or Ctrl+C
        asks to stop.
        """
        checkpoints = checkpoints_in(self.folder)
        if checkpoints:
            load_checkpoint(self.accelerator, checkpoints[-1])
        self._check_alike()
        self._started = time.monotonic()
        self._records.begin(self.samples)
        attention = attention_to_learn_by(self.accelerator.device, self._precision)
        with asked_to_stop() as asked, self._naming_readers(), attention:
            for batch, noise in self._upcoming():
                if self.schedule.done(self.step, self.elapsed):
                    break
                self._update(batch, noise)
                done = self.schedule.done(self.step, self.elapsed)
                stopped = self._agreed(bool(asked) or time.monotonic() >= self._deadline)
                if done or stopped or self.step % LOG_EVERY == 0:
                    self._write_log()
                if done or stopped or self._due(self.options.save_every):
                    self._save()  # before figures, which may fail
                if self._validate and (done or self._due(self.options.validate_every)):
                    self._show()
                # After the last step comes another phase, or what is written of the whole run.
                ended = done and asked and self.accelerator.num_processes == 1
                if ended or (stopped and not done):
                    late = time.monotonic() >= self._deadline
                    why = "at the end of its time" if late else "with another process"
                    why = f"by {signal.Signals(asked[0]).name}" if asked else why
                    raise Stopped(
                        f"{self.folder}: stopped {why} after step {self.step}, which is saved; the same "
                        "command goes on from there"
                    )
        self.average.copy_to(self.parameters)
        for model in self.models.values():
            model.eval().cpu()
        self._records.close()

    def _check_alike(self) -> None:
        """Raises NestedAttentionError where processes would go on from different places."""
        own = torch.tensor([[self.step, self.samples]], device=self.accelerator.device)
        places = self.accelerator.gather(own).tolist()
        if places.count(places[0]) < len(places):
            steps = ", ".join(str(step) for step, _ in places)
            raise NestedAttentionError(
                f"{self.folder}: processes begin at different steps ({steps}), for not all of them see the "
                "same checkpoints; `output` must be on a disk that all machines share"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside models, optimizer and generators, which Accelerate keeps."""
        average = self.average.state_dict()
        return {"step": self.step, "samples": self.samples, "elapsed": self.elapsed, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.samples, self._before = state["step"], state["samples"], state["elapsed"]
        self.average.load_state_dict(state["average"])
        self.average.decay = self.options.ema  # as the configuration has it now
        self.average.to(self.accelerator.device)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _upcoming(self) -> Iterator[tuple[Batch, Batch]]:
        """Batches and noise of this process from where the run is, on its device."""
        first = self.samples + self.accelerator.process_index * self.options.batch
        left = self.schedule.steps - self.step
        positions = range(first, first + left * self.group, self.group)
        # A generator of its own: a loader draws from the global one each time that it is started.
        more: dict[str, Any] = {"generator": torch.Generator(), "num_workers": self.options.workers}
        more |= {"sampler": positions, "pin_memory": torch.cuda.is_available()}
        more["worker_init_fn"] = leave_signals
        device = self.accelerator.device
        placed = resident(self.examples.data, device, self.on_host)
        if placed is None:
            loader = DataLoader(self.examples, None, **more)
            return (
                send_to_device(item, device, non_blocking=True, skip_keys=self.on_host) for item in loader
            )
        draws = DataLoader(self.examples.draws, None, **more)
        return (self._read(placed, rows, noise) for rows, noise in draws)

    def _read(self, placed: Data, rows: Tensor, noise: Batch) -> tuple[Batch, Batch]:
        """A batch of examples that are on the device already."""
        device = self.accelerator.device
        drawn = send_to_device(noise, device, non_blocking=True)
        return {**placed.read(rows, noise), "row": rows.to(device, non_blocking=True)}, drawn

    def _update(self, batch: Batch, noise: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * self.schedule.factor(self.step, self.elapsed)
            group["weight_decay"] = self.options.weight_decay
        while (full := self._backward(batch, noise)) is not None:
            self.optimizer.zero_grad()
            self._split(full, len(batch["row"]))
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.options.clip)
        self._unwritten[-1]["norm"] = norm.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.parameters)
        self.step += 1
        self.samples += self.group

    def _backward(self, batch: Batch, noise: Batch) -> str | None:
        """The gradient of a step, and its losses for the log; what was said if memory did not suffice."""
        whole = len(batch["row"])
        pieces = zip(_pieces(batch, self.parts), _pieces(noise, self.parts), strict=True)
        sums: dict[str, Tensor] = {}
        rows: list[Tensor] = []
        try:
            for number, (some, drawn) in enumerate(pieces, start=1):
                last = number == self.parts
                with nullcontext() if last else self.accelerator.no_sync(self.losses):
                    losses, bad = self.losses(_Given(some, drawn))
                    loss = torch.stack([w * losses[name] for name, w in self.loss_weights.items()]).sum()
                    share = len(some["row"]) / whole
                    self.accelerator.backward(loss * share if self.parts > 1 else loss)
                for name, value in {**losses, "loss": loss}.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * share
                rows.append(bad)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return str(error).splitlines()[0]
        self._unwritten.append(sums)
        self._bad.append(torch.stack(rows).max())
        return None

    def _split(self, reason: str, whole: int) -> None:
        """Halve the parts of a batch that are in memory at once. Raises NestedAttentionError where they
        cannot be."""
        clear_device_cache(garbage_collection=True)
        if self.parts * 2 > whole or self.accelerator.num_processes > 1:
            held = -(-whole // self.parts)
            raise NestedAttentionError(
                f"{self.folder}: out of memory with {held} of {whole} examples of a batch at once, at "
                f"{memory_peak():.1f} GB ({reason}). {self._smaller(whole)}; `--dry-run` says how much "
                "memory each takes. The same command goes on from the last checkpoint, with the same result"
            )
        self.parts *= 2
        self._records.note(self.step, {"parts of a batch, for memory": self.parts})

    def _smaller(self, whole: int) -> str:
        """What makes a step take less memory, and may be changed within a run."""
        parts = "" if self.parts * 2 > whole else f"`parts: {self.parts * 2}`, "
        return f"Set {parts}gradient_checkpointing or fp8"

    def _write_log(self) -> None:
        """The means since the last line, over all processes. Raises NestedAttentionError if one is not
        finite."""
        names = list(self._unwritten[0])
        values = torch.stack([torch.stack([each[name] for name in names]) for each in self._unwritten])
        values = self.accelerator.reduce(values.float(), "mean").cpu()  # (steps, names)
        gathered = self.accelerator.gather(torch.stack(self._bad)).view(-1, len(values))
        bad = gathered.max(dim=0).values.cpu()  # (steps,)
        first = self.step - len(values) + 1
        self._unwritten.clear()
        self._bad.clear()
        for row, column in (~values.isfinite()).nonzero()[:1].tolist():
            example = int(bad[row])
            which = f", of {self.examples.data.name(example)}" if example >= 0 else ""
            raise NestedAttentionError(
                f"{self.folder}: `{names[column]}` was {float(values[row, column])} at step "
                f"{first + row}{which}. The checkpoints are of earlier steps, and the same command meets "
                f"that step again: lower the learning rate, {self.options.rate:g}; or, if it is the example, "
                "prepare without it and begin another `output` with the last checkpoint's encoder"
            )
        line = {"minutes": round(self.elapsed / 60, 2), "rate": self.optimizer.param_groups[0]["lr"]}
        line |= {name: round(float(mean), 5) for name, mean in zip(names, values.mean(0), strict=True)}
        with naming_disk(self.folder):
            self._records.write(self.step, self.samples, line)

    def _show(self) -> None:
        if self.accelerator.is_main_process and self._validate is not None:
            with self._averaged():
                figures, pictures = self._validate(self.step)
            self._records.note(self.step, {name: round(float(value), 5) for name, value in figures.items()})
            self._records.show(self.step, pictures)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it, the models hold the averaged weights."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        for model in self.models.values():
            model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.average.restore(self.parameters)
            for model in self.models.values():
                model.train()

    def _save(self) -> None:
        """Write a checkpoint, in one piece or not at all, and delete those beyond the limit."""
        if self._unwritten:
            self._write_log()  # refuses to save what is no longer finite
        path = self.folder / f"step-{self.step:08d}"
        save_checkpoint(self.accelerator, path, self.options.keep, self._export and self._export_averaged)

    def _export_averaged(self, folder: Path) -> None:
        assert self._export is not None
        with self._averaged():
            self._export(folder, self.samples)

    @contextmanager
    def _naming_readers(self) -> Iterator[None]:
        """What goes wrong in a process that reads examples, in a sentence."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise NestedAttentionError(
                f"{self.folder}: a process that reads examples died during step {self.step + 1} "
                f"({str(error).splitlines()[0][:200]}). The same command goes on from the last checkpoint; "
                "with fewer `workers` it takes less memory"
            ) from error
        except NestedAttentionError as error:
            if "Original Traceback" not in str(error):
                raise
            said = str(error).strip().splitlines()[-1].partition("NestedAttentionError: ")[2]
            raise NestedAttentionError(said or str(error)) from error


def _pieces(batch: Batch, parts: int) -> list[Batch]:
    if parts == 1:
        return [batch]
    columns = {name: values.tensor_split(parts) for name, values in batch.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(parts)]
