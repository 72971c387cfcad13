"""Where runs are kept, and how one is trained: on the same pictures, noise and start as every other."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....encoder import SubjectEncoder
from ....paths import SMALL_WORLD
from ....storage.files import replacing
from ....training.checkpoints import checkpoints_in
from ....training.data import Noise
from ....training.mechanisms import mechanism
from ....training.schedule import Schedule
from ...models.world import PARTS, World
from ...train import reading
from ...train.data import LOSS_WEIGHTS, CloseUps, draw_both, draw_close_ups
from ...train.denoising import TextStates, denoising_noise
from ...train.device import precision_of, unet_pass
from ...train.encoders import (
    OPTIONS,
    POWER,
    EncoderData,
    encode_data,
    encoder_config,
    encoder_noise,
    train_encoder,
)
from .. import records
from ..cases import draw_cases, true_drawings
from .matrix import PERSON, PET, Run, Size

DATA_SEEDS = {PERSON: 9, PET: 10}
"""Of the pictures that runs learn from."""


def world_hashes(folder: Path = SMALL_WORLD) -> dict[str, str]:
    """A hash of each file of the world and its judges, and of what it draws; the shipped encoders play no
    part."""
    names = {f"{part}.safetensors" for part in PARTS}
    found = {k: v for k, v in records.hashes(folder).items() if k in names or k.startswith("scorer_")}
    cases = draw_cases((PERSON, PET), 2, seed=1)
    drawn = hashlib.sha256(true_drawings(cases).tobytes())
    for case in cases:
        drawn.update(case.prompt.encode() + b"".join(crop.tobytes() for crop in case.references))
    return {**found, "drawings": drawn.hexdigest()}


@dataclass(frozen=True)
class Place:
    """Where the runs of one world and one size are kept.

    folder: of trainings, which go on only in the world that they began in. drawn: of what they drew, and how
    it was scored; other cases or judges ask for another one, and for no training.
    """

    folder: Path
    drawn: Path
    size: Size = Size()

    @classmethod
    def of(cls, root: Path, size: Size, weights: Path = SMALL_WORLD) -> Place:
        """Under `root`, in folders named after all that decides the trainings, and the figures."""
        hashes = world_hashes(weights)
        world = {name: value for name, value in hashes.items() if not name.startswith("scorer_")}
        recipe = POWER, sorted((part.name, weight) for part, weight in LOSS_WEIGHTS.items()), DATA_SEEDS
        trained = size.steps, size.batch, size.rate, size.reading, size.pictures
        folder = root / _short([world, recipe, *trained])
        return cls(folder, folder / f"figures-{_short([hashes, asdict(size)])}", size)

    @property
    def name(self) -> str:
        """Of all that decides the trainings and the figures."""
        return f"{self.folder.name}/{self.drawn.name}"

    @property
    def references(self) -> Path:
        """The base model's figures and those of the true drawings."""
        return self.drawn / "references.json"

    def run_folder(self, run: Run) -> Path:
        return self.folder / run.name

    def data(self, word: str) -> Path:
        """The examples of one kind of subject."""
        return self.folder / "data" / f"{word}.safetensors"

    def reader(self, run: Run) -> Path:
        """What the Q-Former of a run has learned before it; there once that is complete."""
        return self.folder / "readings" / f"{run.reader}.safetensors"

    def weights(self, run: Run) -> Path:
        """The trained encoder; there once the training is complete."""
        return self.run_folder(run) / "encoder.safetensors"

    def steps(self, run: Run) -> int:
        """How many steps of a run are done and saved."""
        if self.weights(run).exists():
            return self.size.steps
        checkpoints = checkpoints_in(self.run_folder(run)) if self.run_folder(run).is_dir() else []
        return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0

    def figures(self, run: Run) -> Path:
        """The JSON of one run."""
        return self.drawn / f"{run.name}.json"

    def training(self, run: Run) -> Path:
        """What is told of its training, once that is complete."""
        return self.run_folder(run) / "training.json"

    def read(self, run: Run) -> dict[str, Any]:
        """A run's figures so far, and what is told of its training once that is complete: here, or where they
        were taken over from."""
        path, training = self.figures(run), self.training(run)
        found: dict[str, Any] = {"drawn": {}, "training": {}}
        found |= json.loads(path.read_text()) if path.exists() else {}
        found["run"] = asdict(run)  # as it is called today
        return {**found, "training": json.loads(training.read_text())} if training.exists() else found

    def trained(self, run: Run) -> bool:
        """Whether its training is complete; where figures were taken over, its weights are not here."""
        return self.weights(run).exists() or bool(self.read(run)["training"])

    def write(self, run: Run, document: dict[str, Any]) -> None:
        self.drawn.mkdir(parents=True, exist_ok=True)
        write_json(self.figures(run), document)

    def precision(self, world: World) -> torch.dtype:
        """Of the arithmetic, the same in every run: the faster one on a CPU, as measured once; fp32 on a GPU,
        where launches and not products take the time."""
        if torch.cuda.is_available():
            return torch.float32
        return precision_of(self.folder, unet_pass(world.unet, self.size.batch))


def write_json(path: Path, document: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def _short(whole: Any) -> str:
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


def new_encoder(world: World, run: Run) -> SubjectEncoder:
    """A random encoder of a run. The Q-Former of one seed and number of queries is always the same."""
    config = replace(
        encoder_config(world, run.words[0], run.queries),
        alpha=run.alpha,
        injection=mechanism(run.mechanism).injection,
    )
    torch.manual_seed(run.seed)
    return SubjectEncoder(config)


def start_of(place: Place, world: World, run: Run) -> SubjectEncoder:
    """The encoder that a run begins with, whose Q-Former has learned to read where it is not from scratch."""
    encoder = new_encoder(world, run)
    if not run.scratch:
        encoder.qformer.load_state_dict(load_file(place.reader(run)))
    return encoder


def read(place: Place, world: World, run: Run, deadline: float = math.inf) -> None:
    """Teach the Q-Former that a run begins with to read, or go on with it; nothing happens if it has been.

    Raises Stopped at the deadline, after a checkpoint.
    """
    if run.scratch or place.reader(run).exists():
        return
    folder = place.folder / "readings" / run.reader
    drawn = _together([_close_ups(place, word, workers=1) for word in run.words])
    options = replace(reading.OPTIONS, seed=run.seed, keep=1)
    schedule = Schedule(steps=place.size.reading, warmup=min(100, place.size.reading))
    start = new_encoder(world, run)
    encoder = reading.train_reading(folder, start, world, drawn, schedule, options, deadline=deadline)
    with replacing(place.reader(run)) as temporary:
        save_file(
            {name: value.contiguous() for name, value in encoder.qformer.state_dict().items()}, temporary
        )
    shutil.rmtree(folder)


def _close_ups(place: Place, word: str, workers: int) -> CloseUps:
    seed = DATA_SEEDS[word]
    return draw_close_ups(word, place.size.pictures, seed, workers=workers, cache=place.folder / "data")


def _together(parts: Sequence[CloseUps]) -> CloseUps:
    return CloseUps(
        **{
            each.name: np.concatenate([getattr(part, each.name) for part in parts])
            for each in fields(CloseUps)
        }
    )


def load_encoder(place: Place, world: World, run: Run) -> SubjectEncoder:
    """The trained encoder of a run."""
    encoder = new_encoder(world, run)
    encoder.load_state_dict(load_file(place.weights(run)))
    return encoder.eval().requires_grad_(False)


def prepare_data(place: Place, world: World, words: Iterable[str], workers: int = 2) -> None:
    """Draw and encode the pictures of these kinds of subject that are not there yet.

    All are drawn first: drawing forks, which a process that uses a GPU must not.
    """
    words = list(words)
    for word in words:
        _close_ups(place, word, workers)
    missing = [word for word in words if not place.data(word).exists()]
    drawn = {
        word: draw_both(word, place.size.pictures, DATA_SEEDS[word], workers=workers) for word in missing
    }
    for word, pictures in drawn.items():
        place.data(word).parent.mkdir(parents=True, exist_ok=True)
        with replacing(place.data(word)) as temporary:
            save_file(_flat(encode_data(world, pictures)), temporary)


def prepared(place: Place, world: World, word: str) -> list[EncoderData]:
    """Pictures of one kind of subject, of one figure and of two, as the frozen models see them, encoded once
    and kept."""
    prepare_data(place, world, [word])
    found = load_file(place.data(word))
    sets: list[dict[str, Tensor]] = [{}, {}]
    for name, value in found.items():
        number, _, own = name.partition(".")
        sets[int(number)][own] = value
    return [EncoderData(text=TextStates(each.pop("context"), each.pop("pooled")), **each) for each in sets]


def _flat(sets: Sequence[EncoderData]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": value.contiguous()
        for number, data in enumerate(sets)
        for name, value in data.tensors().items()
    }


def joined(parts: Sequence[Sequence[EncoderData]]) -> list[EncoderData]:
    """The examples of several kinds of subject, so that a batch may hold all of them."""
    if len(parts) == 1:
        return list(parts[0])
    whole = []
    for same_width in zip(*parts, strict=True):
        columns = [data.tensors() for data in same_width]
        both = {name: torch.cat([each[name] for each in columns]) for name in columns[0]}
        whole.append(EncoderData(text=TextStates(both.pop("context"), both.pop("pooled")), **both))
    return whole


def with_losses(run: Run, data: Sequence[EncoderData]) -> tuple[list[EncoderData], Noise]:
    """The paper's loss, plain and over all timesteps alike, with the run's departures from it."""
    chosen = set(run.departures)
    plain = [replace(each, loss_weight=torch.ones_like(each.loss_weight)) for each in data]
    noise = encoder_noise if "timesteps" in chosen else partial(denoising_noise, power=1.0)
    return list(data) if "weights" in chosen else plain, noise


def train(
    place: Place,
    world: World,
    run: Run,
    data: Callable[[str], Sequence[EncoderData]],
    deadline: float = math.inf,
) -> None:
    """Train a run to its end, or go on with it; nothing happens if it is complete.

    data: the examples of a kind of subject. Raises Stopped at the deadline, after a checkpoint; and
    NestedAttentionError, naming the run's folder and the loss, if one is not finite.
    """
    if place.weights(run).exists():
        return
    folder, size, started = place.run_folder(run), place.size, time.monotonic()
    examples, noise = with_losses(run, joined([data(word) for word in run.words]))
    start = start_of(place, world, run)
    encoder = train_encoder(
        folder,
        world,
        examples,
        Schedule(steps=size.steps, warmup=min(100, size.steps)),
        replace(OPTIONS, batch=size.batch, rate=size.rate, seed=run.seed, keep=1),
        start=start,
        mechanism=mechanism(run.mechanism),
        noise=noise,
        precision=place.precision(world),
        whitened=not run.scratch,
        keys_anew=True,
        deadline=deadline,
    )
    trained = sum(each.numel() for each in start.parameters() if each.requires_grad)
    curve, minutes = losses(folder)
    told = {
        "steps": size.steps,
        "batch": size.batch,
        "rate": size.rate,
        "parameters": trained,
        "losses": curve,
        "minutes": minutes,
        "precision": str(place.precision(world)).removeprefix("torch."),
        **records.circumstances(started),
    }
    write_json(place.training(run), told)
    with replacing(place.weights(run)) as temporary:
        save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, temporary)
    for checkpoint in checkpoints_in(folder):
        shutil.rmtree(checkpoint)


def losses(folder: Path) -> tuple[list[float], float]:
    """The training loss of each 50 steps, which in runs of one seed are of the same pictures and noise; and
    the minutes that all steps took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = {line["step"]: line for line in lines if "loss" in line}  # resumed steps stand there twice
    return [line["loss"] for line in told.values()], max(line["minutes"] for line in told.values())
