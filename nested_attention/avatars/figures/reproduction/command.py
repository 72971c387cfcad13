"""`nested-attention world compare`: what is missing is trained, drawn and scored; then comes the page."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from PIL import Image

from ....paths import SMALL_WORLD
from ....training.at_once import at_once
from ....training.stopping import Stopped
from ...models.world import World, load_world
from ..judges import Judges
from .drawings import CASE_SEEDS, Bench, Figures
from .estimate import Left, complete, drawings_left, left, unfinished
from .findings import Summary
from .matrix import QUESTIONS, Drawing, Run, Selection, Size, plan
from .page import charts, written
from .published import PAGE, PICTURES, shown_before, take_over, write_published
from .runs import Place, prepare_data, prepared, read, train, write_json
from .sheets import contact_sheet, shown

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is wanted, and how much of the machine it may take.

    root: the folder of all runs. size: of trainings and drawings. minutes: until work stops, saved. workers:
    runs that are made at once, each in a process with `threads` threads. weights: the world's. draws: whether
    trained runs are drawn and scored too: a GPU that is there for minutes only trains. published: the folder
    of figures that count where they are of the same world and size.
    """

    root: Path = Path("runs/compare")
    selection: Selection = Selection()
    size: Size = Size()
    minutes: float = math.inf
    workers: int = 1
    threads: int = 1
    weights: Path = SMALL_WORLD
    draws: bool = True
    published: Path = PAGE.parent / PICTURES

    @cached_property
    def place(self) -> Place:  # hashes the world's files
        return Place.of(self.root, self.size, self.weights)

    @property
    def plan(self) -> dict[Run, tuple[Drawing, ...]]:
        wanted = plan(self.selection)
        return wanted if self.draws else dict.fromkeys(wanted, ())


def what_is_left(request: Request) -> list[Left]:
    """Of each run that is wanted, with measured times."""
    _arithmetic(request.threads)
    take_over(request.place, request.published)
    return left(Bench(Judges.load(request.weights), request.place), request.plan)


def compare(request: Request, say: Say = lambda line: None) -> bool:
    """Make what is missing, in the plan's order; whether nothing is. A run that is complete, here or as it is
    published, is not repeated, and one that was interrupted goes on."""
    deadline = time.monotonic() + 60 * request.minutes
    _arithmetic(request.threads * request.workers)
    place, wanted = request.place, request.plan
    take_over(place, request.published)
    missing = unfinished(place, wanted)
    if not missing:
        return True
    untrained = [run for run in missing if not place.weights(run).exists()]
    # Drawn in as many processes as there are threads; before any GPU is in use, for these are forked.
    processes = max(2, request.workers * request.threads)
    bench = Bench(Judges.load(request.weights), place) if request.draws else None
    if bench is not None:
        for words in CASE_SEEDS:
            for word in words:
                bench.looks(words, word, processes)
    world = load_world(request.weights) if bench is None else bench.judges.world
    _prepare(request, world, untrained, processes, deadline, say)
    if bench is not None:
        measure(bench)
    _read_all(request, world, untrained, deadline, say)
    if request.workers > 1 and len(missing) > 1:
        _at_once(request, missing, deadline, say)
    # In this process: all of it, or the pairs that waited for a partner.
    _arithmetic(request.threads)
    made = _Made(place, world, wanted, bench)
    for run in missing:
        if time.monotonic() < deadline:
            made.make(run, deadline, say)
    return all(complete(place, run, asked) for run, asked in wanted.items())


def _arithmetic(threads: int) -> None:
    """As every run has it."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


class _Made:
    """Makes runs one after the other; examples stay in memory from one to the next."""

    def __init__(
        self, place: Place, world: World, wanted: Mapping[Run, tuple[Drawing, ...]], bench: Bench | None
    ) -> None:
        self.place, self.world, self.wanted, self.bench = place, world, wanted, bench
        self.data = cache(lambda word: prepared(place, world, word))

    def make(self, run: Run, deadline: float, say: Say) -> None:
        """Train a run and make its drawings, as far as time goes."""
        place, started = self.place, time.monotonic()
        if not place.weights(run).exists():
            if not run.scratch and not place.reader(run).exists():
                return  # for want of time
            before = place.steps(run)
            try:
                train(place, self.world, run, self.data, deadline)
            except Stopped as stopped:
                if time.monotonic() < deadline:  # by a signal, which is meant for all runs
                    raise
                say(str(stopped))
                return
            say(f"{run.name}: steps {before:,} to {place.size.steps:,}, {time.monotonic() - started:.0f} s")
        if self.bench is None:
            return
        for drawing in drawings_left(place, run, self.wanted[run]):
            waits = drawing.kind == "pair" and not place.weights(run.partner).exists()
            if waits or time.monotonic() >= deadline:
                continue
            started = time.monotonic()
            figures = self.bench.draw(run, drawing)
            document = place.read(run)
            document["drawn"][drawing.key] = figures
            place.write(run, document)
            say(f"{run.name}: {drawing.key}{_shown(figures)}, {time.monotonic() - started:.0f} s")


def _shown(figures: Figures) -> str:
    hits = figures.get("identity")
    return f", identity {hits.count('1') / len(hits):.2f}" if hits else ""


@cache
def _made(request: Request) -> _Made:
    """Of a process that makes one run after the other: what it has read or drawn is kept."""
    if not request.draws:
        return _Made(request.place, load_world(request.weights), request.plan, None)
    bench = Bench(Judges.load(request.weights), request.place)
    return _Made(request.place, bench.judges.world, request.plan, bench)


def _work(request: Request, run: Run, until: float) -> list[str]:
    """One run in a process of its own; what it said. until: of the clock, which processes share."""
    deadline = time.monotonic() + until - time.time()
    _arithmetic(request.threads)
    told: list[str] = []
    _made(request).make(run, deadline, told.append)
    return told


def _prepare(
    request: Request, world: World, runs: list[Run], processes: int, deadline: float, say: Say
) -> None:
    """Draw and encode what runs learn from: several kinds of subject at once, where several runs are."""
    words = dict.fromkeys(word for run in runs for word in run.words)
    if request.workers > 1 and len(words) > 1:
        _at_once(request, [Run(words=(word,)) for word in words], deadline, say, work=_preparing)
    prepare_data(request.place, world, words, processes)


def _preparing(request: Request, run: Run, until: float) -> list[str]:
    """`prepare_data` in a process of its own, as `_work`."""
    _arithmetic(request.threads)
    prepare_data(request.place, load_world(request.weights), run.words, request.threads)
    return []


def _read_all(request: Request, world: World, runs: list[Run], deadline: float, say: Say) -> None:
    """Teach the Q-Formers of runs to read: each once, whatever number of runs begins with it."""
    place = request.place
    left = {run.reader: run for run in runs if not run.scratch and not place.reader(run).exists()}
    if request.workers > 1 and len(left) > 1:
        _at_once(request, list(left.values()), deadline, say, work=_reading)
        return
    for run in left.values():
        if time.monotonic() < deadline:
            say(_read(place, world, run, deadline))


def _reading(request: Request, run: Run, until: float) -> list[str]:
    """`_read` in a process of its own, as `_work`."""
    deadline = time.monotonic() + until - time.time()
    _arithmetic(request.threads)
    return [_read(request.place, load_world(request.weights), run, deadline)]


def _read(place: Place, world: World, run: Run, deadline: float) -> str:
    """Teach a run's Q-Former to read, as far as time goes; what is to be said of it."""
    started = time.monotonic()
    try:
        read(place, world, run, deadline)
    except Stopped as stopped:
        if time.monotonic() < deadline:  # by a signal, which is meant for all runs
            raise
        return str(stopped)
    return f"{run.reader}: {place.size.reading:,} steps, {time.monotonic() - started:.0f} s"


def _at_once(
    request: Request,
    runs: list[Run],
    deadline: float,
    say: Say,
    work: Callable[[Request, Run, float], list[str]] = _work,
) -> None:
    """Several runs at a time: where launches take the time, one run leaves most of a GPU idle."""
    until = time.time() + deadline - time.monotonic()
    for lines in at_once(work, [(request, run, until) for run in runs], request.workers):
        for line in lines:
            say(line)


def measure(bench: Bench) -> dict[str, dict[str, Figures]]:
    """The base model's figures and those of the true drawings, for all sets of cases; made once."""
    place = bench.place
    if not place.references.exists():
        place.drawn.mkdir(parents=True, exist_ok=True)
        write_json(place.references, {" ".join(words): bench.measure(words) for words in CASE_SEEDS})
    return json.loads(place.references.read_text())


def summarise(bench: Bench) -> Summary:
    """All figures that there are at a place, of every run of the matrix."""
    place = bench.place
    runs = {run.name: place.read(run) for run in plan() if place.trained(run)}
    return Summary(place.size, runs, measure(bench))


def write_page(request: Request, folder: Path) -> Path:
    """The page in a folder, with its pictures and the figures that it is written from; the page's path."""
    place = request.place
    bench = Bench(Judges.load(request.weights), place)
    summary, pictures = summarise(bench), folder / PICTURES
    few = shown(bench, shown_before(place, request.published))
    pictures.mkdir(parents=True, exist_ok=True)
    write_published(summary, place, few, pictures)
    for name, (_, svg) in charts(summary).items():
        (pictures / name).write_text(svg, encoding="utf-8")
    for question in QUESTIONS:
        picture = contact_sheet(bench, question, few)
        if picture is not None:
            Image.fromarray(picture).save(pictures / f"{question.key}.png", optimize=True)
    page = folder / PAGE.name
    page.write_text(written(summary), encoding="utf-8")
    return page


def publish(request: Request, out: Path | None = None) -> Path:
    """Write the page where it belongs: a complete comparison of the real size in the documentation, anything
    else beside the figures, or where `out` says."""
    full = request.size.real and request.weights == SMALL_WORLD
    place = request.place
    if out is None and full and all(complete(place, run, asked) for run, asked in plan().items()):
        return write_page(request, PAGE.parent)
    return write_page(request, out or place.drawn)


def told(found: list[Left], workers: int) -> list[str]:
    """What is left, a line a run, and in all."""
    lines = [f"{each.run.name:44} {each.state:36} {_hours(each.seconds)}" for each in found]
    whole = sum(each.seconds for each in found)
    several = f", {workers} at once in as many processes" if workers > 1 else ""
    return [*lines, f"{len(found)} runs; left, one after the other: {_hours(whole)}{several}"]


def _hours(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
