"""`nested-attention …`: the library's work from the command line."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .download_command import download
from .errors import NestedAttentionError

app = typer.Typer(
    help="Nested Attention: a subject attached to one word of the prompt.",
    no_args_is_help=True,
    add_completion=False,
)


app.command()(download)


class Host(str, Enum):
    """What draws the demo's pictures."""

    AUTO = "auto"
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"


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
    try:
        lines = run_demo(out, rows=rows, seed=seed, comfyui=None if host is Host.DIFFUSERS else comfyui)
    except (NestedAttentionError, FileNotFoundError) as error:
        _stop(str(error))
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
    try:
        run_stages(stages or list(STAGES), recipe, minutes=minutes, say=typer.echo)
    except (NestedAttentionError, FileNotFoundError) as error:
        _stop(str(error))


@app.command()
def acceptance(
    out: Annotated[
        Path | None, typer.Option(help="Where the figures go, instead of the committed ones.")
    ] = None,
) -> None:
    """Measure the small world on held-out subjects at full counts, and write the figures as JSON."""
    from .evaluation import acceptance as measured

    try:
        judges = measured.Judges.load()
    except (NestedAttentionError, FileNotFoundError) as error:
        _stop(str(error))
    path = out or measured.RESULTS
    measured.write(measured.run(judges, measured.Counts(), typer.echo), path)
    typer.echo(f"The figures: {path.resolve()}")


@app.command()
def compare(
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each alternative.")] = 500,
    runs: Annotated[Path, typer.Option(help="Where checkpoints are kept.")] = Path("runs/compare"),
) -> None:
    """Train nested values and one global value a subject alike, and compare who is recognised."""
    from .evaluation import acceptance as measured
    from .evaluation import alternatives

    judges = measured.Judges.load()
    document = alternatives.compare(judges, runs, steps=steps, say=typer.echo)
    alternatives.write(document)
    typer.echo(f"The figures: {alternatives.RESULTS.resolve()}")


@app.command()
def report() -> None:
    """Put the committed figures into the small world's card."""
    from .avatars.tokenizer import WEIGHTS
    from .evaluation.report import insert, read

    card = WEIGHTS / "README.md"
    card.write_text(insert(card.read_text(encoding="utf-8"), read()), encoding="utf-8")
    typer.echo(f"The card: {card}")


def _stop(message: str) -> NoReturn:
    typer.echo(f"nested-attention: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="nested-attention")
