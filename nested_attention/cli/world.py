"""`nested-attention world …`: the small world is trained, measured and reported."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import NestedAttentionError
from .stopping import needing_training

world = typer.Typer(help="The small world: train it, measure it, report its figures.", no_args_is_help=True)


@world.command()
def train(
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which stages; all, in order, if none is named. NAME=MINUTES gives one its time."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for each stage without one, in place of the recipe's own.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where checkpoints are kept; an interrupted run goes on.")
    ] = Path("runs/world"),
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The folder that weights are read from and written to, instead of the pack's (adapters go "
            "to the pack's)."
        ),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pictures of one figure for the base model, beside half as many of two; an encoder gets "
            "half of both.",
        ),
    ] = 40_000,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    onward: Annotated[
        bool,
        typer.Option(help="Begin with the weights that are there: vae, vision, base, person, pet and pose."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where each stage's files are copied as soon as it ends.")
    ] = None,
) -> None:
    """Train the small world from scratch, stage by stage, or go on where a run was interrupted."""
    with needing_training():
        from ..avatars.train.stages import STAGES, Recipe
        from ..avatars.train.stages import train as run_stages
        from ..paths import SMALL_WORLD

        recipe = Recipe(
            runs=runs,
            weights=weights or SMALL_WORLD,
            pictures=pictures,
            encoder_pictures=max(1, pictures // 2),
            threads=threads,
            workers=workers,
            onward=onward,
            out=out,
        )
        chosen = dict(_stage(name, minutes) for name in stages or STAGES)
        run_stages(chosen, recipe, say=typer.echo)


def _stage(text: str, minutes: float | None) -> tuple[str, float | None]:
    """A stage's name and minutes. Raises NestedAttentionError for minutes that are no number."""
    name, equals, given = text.partition("=")
    if not equals:
        return name, minutes
    try:
        return name, float(given)
    except ValueError as error:
        raise NestedAttentionError(f"{text}: expected NAME=MINUTES, for example base=4.5") from error


@world.command()
def acceptance(
    out: Annotated[
        Path | None, typer.Option(help="Where the figures go, instead of the committed ones.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="How many parts are measured at once, with the threads shared out.")
    ] = 1,
    development: Annotated[
        bool,
        typer.Option(help="On the development set, for choices; the sealed one is for the final figures."),
    ] = False,
    parts: Annotated[
        list[str] | None, typer.Option("--part", help="Which parts, on the development set; all by default.")
    ] = None,
) -> None:
    """Measure the small world on held-out subjects at full counts, and write the figures as JSON.

    Each run on the sealed set is counted in the committed figures, before it begins, wherever it writes.
    """
    with needing_training():
        import torch

        from ..avatars.figures import acceptance as measured
        from ..avatars.figures import records
        from ..avatars.figures.judges import Counts

        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        path = out or (Path("runs/world/development.json") if development else measured.RESULTS)
        counts = Counts(half="development" if development else "sealed")
        if parts and not development:
            raise NestedAttentionError(
                "--part goes with --development: the sealed set is measured as a whole"
            )
        unknown = sorted(set(parts or ()) - set(measured.PARTS))
        if unknown:
            known = ", ".join(measured.PARTS)
            raise NestedAttentionError(f"no such part: {', '.join(unknown)}. The parts are {known}")
        chosen = {name: part for name, part in measured.PARTS.items() if not parts or name in parts}
        number = None if development else measured.count_run(measured.RESULTS)
        document = measured.run(counts, typer.echo, workers=workers, parts=chosen)
        if number is not None:
            document["run"]["number"] = number
            document["runs"] = measured.runs_begun(measured.RESULTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write(document, path, records.hashes())
    typer.echo(f"The figures: {path.resolve()}")


class Device(str, Enum):
    """What runs train and draw on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@world.command()
def compare(
    questions: Annotated[
        list[str] | None, typer.Argument(help="Which questions of the page; all if none is named.")
    ] = None,
    mechanism: Annotated[
        list[str] | None, typer.Option(help="Only runs of this mechanism; repeat it.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only runs of this seed; repeat it.")] = None,
    left: Annotated[
        bool, typer.Option("--list", help="Say what is left, and how long it takes here, and do nothing.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(help="Stop after so long, saved; the same command goes on.")
    ] = float("inf"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs made at once: by default 5 on a GPU, 1 on CPUs.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each.")] = 1,
    device: Annotated[Device, typer.Option(help="Where runs are made.")] = Device.AUTO,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each run; fewer than 5,000 are a trial.")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(min=4, help="Held-out cases of each drawing; fewer than 120 are a trial.")
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Pictures of one figure that runs learn from, beside half as many of two; fewer than "
            "20,000 are a trial.",
        ),
    ] = None,
    draws: Annotated[
        bool,
        typer.Option(
            "--draw/--only-train",
            help="Train alone, as for a GPU that is there for minutes; the same command without it draws.",
        ),
    ] = True,
    runs: Annotated[Path, typer.Option(help="Where runs and their figures are kept.")] = Path("runs/compare"),
    out: Annotated[
        Path | None,
        typer.Option(help="The page's folder: by default docs once all is complete, else beside the runs."),
    ] = None,
) -> None:
    """Train the paper's injection mechanisms alike, compare what they draw, and write a page about it."""
    if device is Device.CPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for one
    with needing_training():
        import dataclasses

        import torch

        from ..avatars.figures.reproduction import command
        from ..avatars.figures.reproduction.matrix import Selection, Size

        gpu = torch.cuda.is_available()
        if device is Device.CUDA and not gpu:
            raise NestedAttentionError("there is no GPU that torch can use; leave --device out")
        real = Size()
        size = dataclasses.replace(
            real,
            steps=steps or real.steps,
            cases=cases or real.cases,
            pictures=pictures or real.pictures,
        )
        request = command.Request(
            root=runs,
            selection=Selection(tuple(questions or ()), tuple(mechanism or ()), tuple(seed or ())),
            size=size,
            minutes=minutes,
            workers=workers or (5 if gpu else 1),
            threads=threads,
            draws=draws,
        )
        if left:
            for line in command.told(command.what_is_left(request), request.workers):
                typer.echo(line)
            return
        complete = command.compare(request, typer.echo)
        if draws:
            typer.echo(f"The page: {command.publish(request, out).resolve()}")
        elif complete:
            typer.echo("All is trained; the same command without --only-train draws.")
        else:
            typer.echo("Not all is trained; the same command goes on.")


@world.command()
def anchored(
    parts: Annotated[
        list[str] | None, typer.Argument(help="Which parts; all, in order, if none is named.")
    ] = None,
    number: Annotated[int, typer.Option(min=2, max=100, help="How many held-out cases a part has.")] = 100,
    use: Annotated[
        list[str] | None, typer.Option(help="Which rows, one option each; the others stay. All without it.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="The folder of the adapters, instead of the pack's; with --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the figures go, instead of the committed ones.")
    ] = None,
) -> None:
    """Measure decoupled adapters: added everywhere, within a true mask, anchored; beside nested encoders."""
    with needing_training():
        import dataclasses

        from ..avatars.figures import anchored as measured
        from ..avatars.figures.judges import Counts, Judges
        from ..paths import ADAPTERS

        if adapters is not None and out is None:
            raise NestedAttentionError(
                "--adapters goes with --out: the committed figures are of the pack's own adapters"
            )
        measured.check(parts or (), use or ())
        folder, path = adapters or ADAPTERS, out or measured.RESULTS
        own, judges = measured.adapters(folder), Judges.load()
        counts = dataclasses.replace(Counts(), subjects=number, pairs=number)
        for part in parts or measured.PARTS:  # each is written when it is there
            document = measured.measure(judges, own, counts, [part], typer.echo, use or ())
            measured.write(document, path, folder)
    typer.echo(f"The figures: {path.resolve()}")


@world.command()
def maps(
    number: Annotated[int, typer.Option(min=2, help="How many held-out subjects of each kind.")] = 48,
    training: Annotated[int, typer.Option(min=2, help="And identities that thresholds are chosen on.")] = 32,
    out: Annotated[
        Path | None, typer.Option(help="Where the figures go, instead of the committed ones.")
    ] = None,
) -> None:
    """Measure whether the maps of what subjects do show it: where a subject stands, and its parts."""
    with needing_training():
        from ..avatars.figures import maps as measured
        from ..avatars.figures import records
        from ..avatars.figures.judges import Judges

        document = measured.measure(Judges.load(), number, training, typer.echo)
        records.write(document, out or measured.RESULTS, records.hashes())
    typer.echo(f"The figures: {(out or measured.RESULTS).resolve()}")


@world.command()
def gallery(
    out: Annotated[Path, typer.Option(help="The pictures' folder.")] = Path("docs/gallery"),
) -> None:
    """Draw the pictures of docs/gallery.md: what subjects do, and what settings do."""
    with needing_training():
        from ..avatars.figures.gallery import make
        from ..avatars.figures.judges import Judges

        make(Judges.load(), out, typer.echo)


@world.command()
def probe(
    encoder: Annotated[Path, typer.Argument(help="The file of an encoder of the small world.")],
    number: Annotated[int, typer.Option(min=2, help="How many subjects the probes learn from.")] = 8_000,
    steps: Annotated[int, typer.Option(min=1, help="How many steps of 64 they learn for.")] = 1_000,
) -> None:
    """Redraw close-ups of held-out subjects from an encoder's tokens alone, and from the image features that
    it reads.

    Says how much of their variance is told, of the whole and of each part, and how often the nearest close-up
    is the subject's own: of 100 subjects, and of 20 near-twins.
    """
    with needing_training():
        from ..avatars.figures.probe import probe as read
        from ..avatars.models.world import load_world
        from ..checkpoint import load_subject_encoder

        found = read(load_world(), load_subject_encoder(encoder), trained=number, steps=steps)
    for source, legible in found.items():
        parts = ", ".join(f"{part.name.lower()} {told:.0%}" for part, told in legible.parts.items())
        known = (
            f"{legible.top1['rate']:.0%} of {legible.top1['trials']}, {legible.twins['rate']:.0%} of twins"
        )
        typer.echo(f"{source}: {legible.told:.0%} told ({parts}); known: {known}")


@world.command()
def export(folder: Annotated[Path, typer.Argument(help="Where it is written.")]) -> None:
    """Write the small world as any SDXL on disk, in diffusers' layout: a base model for `train`."""
    with needing_training():
        from ..avatars.models.pipeline import export_world

        export_world(folder)
    typer.echo(f"The small world: {folder.resolve()}")


@world.command()
def pictures(
    word: Annotated[str, typer.Argument(help="person or pet.")],
    folder: Annotated[Path, typer.Argument(help="Where they are written.")],
    number: Annotated[int, typer.Option(min=1, help="How many, three of each subject.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Which subjects.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
) -> None:
    """Draw pictures of people or pets with captions and reference pictures: a source for `prepare`."""
    with needing_training():
        from ..avatars.drawing.identity import KINDS
        from ..avatars.train.folder import write_pictures

        if word not in KINDS:
            raise NestedAttentionError(f"the small world has no {word!r}; expected {' or '.join(KINDS)}")
        write_pictures(folder, word, number, seed=seed, workers=workers)
    typer.echo(f"The pictures: {folder.resolve()}")


@world.command()
def report() -> None:
    """Put the committed figures into the small world's card, the README and the gallery."""
    with needing_training():
        from ..avatars.figures.pages import PAGES, PICTURES, insert

        for path, picture in PICTURES.items():
            path.write_text(picture(), encoding="utf-8")
        for path, figures in PAGES.items():
            path.write_text(insert(path.read_text(encoding="utf-8"), figures()), encoding="utf-8")
            typer.echo(f"The figures are in {path}")
