"""What is left of a plan, and how long it takes on this machine: measured, not remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ....training.mechanisms import mechanism
from ....training.schedule import Schedule
from ...models.world import World
from ...train import reading
from ...train.data import draw_both, draw_close_ups
from ...train.encoders import OPTIONS, EncoderData, encode_data, train_encoder
from ..cases import true_drawings
from ..judges import subjects_of
from ..likeness import among_twins, identity_of
from .drawings import TWINS, Bench
from .matrix import PERSON, Drawing, Run
from .runs import Place, joined, new_encoder, with_losses

REPEATED = 2
"""Steps that are timed, after one that is not."""


@dataclass(frozen=True)
class Left:
    """What is left of one run. training: seconds, with those of its Q-Former's reading where no run before
    has the same. drawing: of drawing and scoring."""

    run: Run
    steps: int
    drawings: tuple[Drawing, ...]
    training: float
    drawing: float

    @property
    def seconds(self) -> float:
        return self.training + self.drawing

    @property
    def state(self) -> str:
        if not self.steps and not self.drawings:
            return "complete"
        return f"{self.steps:,} steps, {len(self.drawings)} drawings left"


def drawings_left(place: Place, run: Run, asked: tuple[Drawing, ...]) -> tuple[Drawing, ...]:
    done = place.read(run)["drawn"]
    return tuple(each for each in asked if each.key not in done)


def complete(place: Place, run: Run, asked: tuple[Drawing, ...]) -> bool:
    return place.trained(run) and not drawings_left(place, run, asked)


def unfinished(place: Place, wanted: Mapping[Run, tuple[Drawing, ...]]) -> list[Run]:
    """Runs that something is left of, and the partners that they are drawn with: of one whose figures were
    taken over, the weights are not here."""
    found = {run for run, asked in wanted.items() if not complete(place, run, asked)}
    partners = {
        run.partner
        for run in found
        if any(each.kind == "pair" for each in drawings_left(place, run, wanted[run]))
        and not place.weights(run.partner).exists()
    }
    return [run for run in wanted if run in found | partners]


def left(bench: Bench, plan: Mapping[Run, tuple[Drawing, ...]]) -> list[Left]:
    """What is left of each run, with times measured here: of a step of each kind of training, and of
    drawing."""
    place, world = bench.place, bench.judges.world
    steps: dict[tuple[str, int, tuple[str, ...]], float] = {}
    picture = reading_step = 0.0
    readers: set[str] = set()
    trains = unfinished(place, plan)

    @cache
    def data(word: str) -> list[EncoderData]:
        return encode_data(world, draw_both(word, place.size.batch, 0, workers=1))

    found = []
    for run, asked in plan.items():
        drawings = drawings_left(place, run, asked)
        missing = place.size.steps - place.steps(run) if run in trains else 0
        kind = run.mechanism, run.queries, run.departures
        if missing and kind not in steps:
            steps[kind] = step_seconds(place, world, run, data)
        if drawings and not picture:
            picture = picture_seconds(bench)
        drawn = sum(each.kind != "error" for each in drawings)
        training = missing * steps.get(kind, 0.0)
        if missing and not run.scratch and run.reader not in readers and not place.reader(run).exists():
            readers.add(run.reader)
            reading_step = reading_step or reading_seconds(world, run)
            training += place.size.reading * reading_step
        found.append(Left(run, missing, drawings, training, drawn * picture * place.size.cases))
    return found


def reading_seconds(world: World, run: Run) -> float:
    """Of one step in which a Q-Former learns to read."""
    drawn = draw_close_ups(run.words[0], reading.OPTIONS.batch, 0, workers=1)

    return _each(
        lambda folder, length: reading.train_reading(folder, new_encoder(world, run), world, drawn, length)
    )


def step_seconds(place: Place, world: World, run: Run, data: Callable[[str], list[EncoderData]]) -> float:
    """Of one training step, as the trainer makes it. data: some examples of a kind of subject."""
    examples, noise = with_losses(run, joined([data(word) for word in run.words]))
    options = replace(OPTIONS, batch=place.size.batch, rate=place.size.rate)
    precision = place.precision(world)  # may be measured here, which takes time of its own

    return _each(
        lambda folder, length: train_encoder(
            folder,
            world,
            examples,
            length,
            options,
            start=new_encoder(world, run),
            mechanism=mechanism(run.mechanism),
            noise=noise,
            precision=precision,
            whitened=not run.scratch,
            keys_anew=True,
        )
    )


def _each(train: Callable[[Path, Schedule], object]) -> float:
    """Seconds of one step of a training, without what it takes to begin and to end one."""

    def seconds(steps: int) -> float:
        with TemporaryDirectory() as folder:
            started = time.monotonic()
            train(Path(folder), Schedule(steps=steps))
            return time.monotonic() - started

    seconds(1)
    return max(seconds(1 + REPEATED) - seconds(1), 0.0) / REPEATED


def picture_seconds(bench: Bench) -> float:
    """Of one picture of one subject, at the size's sampling, and of its scores."""
    judges, size, word = bench.judges, bench.place.size, PERSON
    everybody = bench.cases((word,))
    cases = everybody[: size.sampling.batch]
    subjects, shown = subjects_of(cases, word), [case.shown(word) for case in cases]
    candidates = [identity_of(subject) for subject in subjects_of(everybody, word)]
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    short, rgb = replace(size.sampling, steps=1), true_drawings(cases)

    def draw() -> None:
        with bench.on_device([]):
            judges.world.generate(prompts, seeds, [], short)

    def score() -> None:
        """What takes the time of `Bench.scored`."""
        judges.nearest.similarity(rgb, shown, candidates)
        among_twins(judges.recognisers[word], rgb, subjects, TWINS)

    return (_second(draw) * size.sampling.steps + _second(score)) / len(cases)


def _second(work: Callable[[], object]) -> float:
    """Seconds of the second time: in the first, candidates are drawn that all later pictures are compared
    with."""
    work()
    started = time.monotonic()
    work()
    return time.monotonic() - started
