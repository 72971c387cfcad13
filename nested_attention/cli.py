"""`nested-attention …`: the library's work from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

try:
    import typer
except ImportError as error:  # the nodes do not need it
    raise SystemExit("nested-attention: the command line needs typer (pip install typer)") from error

from .download_command import download
from .errors import NestedAttentionError

app = typer.Typer(
    help="Nested Attention: a subject attached to one word of the prompt.",
    no_args_is_help=True,
    add_completion=False,
)


class Part(str, Enum):
    """What the benchmark measures."""

    LAYERS = "layers"
    SWEEP = "sweep"
    SLOPES = "slopes"
    SHORTCUTS = "shortcuts"
    SLOTS = "slots"
    SAMPLING = "sampling"
    LOADING = "loading"


class Clock(str, Enum):
    """What the benchmark counts as time."""

    WALL = "wall"
    CPU = "cpu"


class Host(str, Enum):
    """What draws the demo's pictures."""

    AUTO = "auto"
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"


app.command()(download)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the picture is saved.")] = Path("output/demo.png"),
    host: Annotated[Host, typer.Option(help="auto: ComfyUI where it is found, else diffusers.")] = Host.AUTO,
    rows: Annotated[int, typer.Option(min=1, max=16, help="How many people and pets are drawn.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=1000, help="Which people, pets and prompts.")] = 0,
) -> None:
    """Draw people and pets that no model has seen with the weights that come with the repository."""
    from .demo.run import run_demo
    from .find_comfyui import find_comfyui

    comfyui, where = find_comfyui()
    if host is Host.COMFYUI and comfyui is None:
        _stop(f"ComfyUI was not found: {where}")
    if host is not Host.DIFFUSERS:
        typer.echo(f"ComfyUI: {comfyui or 'not found, so diffusers draws'} ({where})")
    with _stopping():
        lines = run_demo(out, rows=rows, seed=seed, comfyui=None if host is Host.DIFFUSERS else comfyui)
    typer.echo("\n".join(lines))


@app.command()
def train(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Which stages; all, in order, if none is named.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for each stage, in place of the recipe's own.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where checkpoints are kept; an interrupted run goes on.")
    ] = Path("runs/world"),
    weights: Annotated[Path | None, typer.Option(help="Where the weights go, instead of the pack's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    onward: Annotated[
        bool, typer.Option(help="Begin with the weights that are there, with a new schedule.")
    ] = False,
) -> None:
    """Train the small world from scratch, stage by stage, or go on where a run was interrupted."""
    from .avatars.tokenizer import WEIGHTS
    from .avatars.train.stages import STAGES, Recipe
    from .avatars.train.stages import train as run_stages

    recipe = Recipe(runs=runs, weights=weights or WEIGHTS, threads=threads, onward=onward)
    with _stopping():
        run_stages(stages or list(STAGES), recipe, minutes=minutes, say=typer.echo)


@app.command()
def acceptance(
    out: Annotated[
        Path | None, typer.Option(help="Where the figures go, instead of the committed ones.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="How many parts are measured at once, with the threads shared out.")
    ] = 1,
) -> None:
    """Measure the small world on held-out subjects at full counts, and write the figures as JSON."""
    import torch

    from .evaluation import acceptance as measured
    from .evaluation import records

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    path = out or measured.RESULTS
    with _stopping():
        document = measured.run(measured.Counts(), typer.echo, workers=workers)
    records.write(document, path)
    typer.echo(f"The figures: {path.resolve()}")


@app.command()
def references() -> None:
    """Measure what the reference decides: a calm close-up, two pictures, four."""
    from .evaluation import acceptance as measured
    from .evaluation import records
    from .evaluation import references as kinds

    with _stopping():
        judges = measured.Judges.load()
    records.write(kinds.measure(judges, measured.Counts(), typer.echo), kinds.RESULTS)
    typer.echo(f"The figures: {kinds.RESULTS.resolve()}")


@app.command()
def compare(
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each alternative.")] = 1000,
    runs: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path("runs/compare"),
) -> None:
    """Train nested values and one global value a subject alike, and compare who is recognised."""
    from .evaluation import acceptance as measured
    from .evaluation import alternatives

    with _stopping():
        judges = measured.Judges.load()
        document = alternatives.compare(judges, runs, steps=steps, say=typer.echo)
    alternatives.write(document)
    typer.echo(f"The figures: {alternatives.RESULTS.resolve()}")


@app.command()
def extras(
    number: Annotated[int, typer.Option(min=2, help="How many held-out people.")] = 64,
) -> None:
    """Measure the pose ControlNet and the ink LoRA: with and without, on held-out people."""
    from .evaluation.extras import report as measured

    with _stopping():
        measured(number, typer.echo)


@app.command()
def probe(
    encoder: Annotated[Path, typer.Argument(help="The file of an encoder of the small world.")],
    number: Annotated[int, typer.Option(min=2, help="How many crops the probes learn from.")] = 8_000,
) -> None:
    """Read a subject's attributes from an encoder's tokens and from what the vision encoder offers it."""
    from .avatars.world import load_world
    from .checkpoint import load_subject_encoder
    from .evaluation.probe import probe as read

    with _stopping():
        loaded = load_subject_encoder(encoder)
        rates = read(load_world(), loaded, trained=number, held=max(1, number // 4))
    for name in rates["subject tokens"]:
        typer.echo(
            f"{name:12} " + "  ".join(f"{source} {each[name]['rate']:.3f}" for source, each in rates.items())
        )


@app.command()
def report() -> None:
    """Put the committed figures into the small world's card and into the README."""
    from .evaluation.report import PAGES, insert

    for path, figures in PAGES.items():
        path.write_text(insert(path.read_text(encoding="utf-8"), figures()), encoding="utf-8")
        typer.echo(f"The figures are in {path}")


@app.command()
def bench(
    parts: Annotated[
        list[Part] | None, typer.Argument(help="What is measured; the layers if nothing is named.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Tokens of a subject, as 16,64,256,1024,4096.")] = "256,1024",
    subjects: Annotated[str, typer.Option(help="Subjects at once, as 1,2,4.")] = "1",
    batches: Annotated[str, typer.Option(help="Pictures at once, as 1,8.")] = "1",
    sizes: Annotated[str, typer.Option(help="Sides of the picture in pixels, as 512,1024.")] = "1024",
    dtypes: Annotated[str, typer.Option(help="Of fp32, bf16, fp16.")] = "fp32",
    forms: Annotated[str, typer.Option(help="Which forms, by comma; all if empty.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Run every form through torch.compile.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved repetitions; the median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    clock: Annotated[
        Clock, typer.Option(help="cpu: this process's CPU time, on a busy machine and with one thread.")
    ] = Clock.WALL,
    out: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("output/bench.json"),
) -> None:
    """Time nested attention against its floor, its explicit form and decoupled cross-attention."""
    from .bench.run import Settings, run

    with _stopping():
        settings = Settings.parse(
            [part.value for part in parts or [Part.LAYERS]],
            {"tokens": tokens, "subjects": subjects, "batches": batches, "sizes": sizes},
            dtypes=dtypes,
            forms=forms,
            device=device,
            compiled=compiled,
            repeats=repeats,
            threads=threads,
            clock=clock.value,
        )
        typer.echo(run(settings, out, say=lambda line: typer.echo(line, err=True)))
    typer.echo(f"The figures: {out.resolve()}")


@contextmanager
def _stopping() -> Iterator[None]:
    """What the user can mend is said in a line, without a stack trace."""
    try:
        yield
    except (NestedAttentionError, FileNotFoundError) as error:
        _stop(str(error))


def _stop(message: str) -> NoReturn:
    typer.echo(f"nested-attention: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="nested-attention")
