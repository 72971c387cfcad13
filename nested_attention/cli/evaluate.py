"""`nested-attention evaluate`: prompts × subjects × λ → pictures, figures, a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .stopping import stop, stopping

if TYPE_CHECKING:
    from ..evaluation.run import Output
    from ..evaluation.settings import EvaluateSettings
    from ..evaluation.tasks import Task


def evaluate(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file: what is drawn, and who judges it.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Score pictures of any other workflow: a folder as docs/evaluation.md shows."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where pictures, figures and the page go, in place of CONFIG's.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier evaluation's figures.json, or its folder, to compare with."),
    ] = None,
) -> None:
    """Draw held-out subjects and score them, or score the pictures in a folder. A run can be gone on with."""
    if config is None and images is None:
        stop("say what is evaluated: a CONFIG, or --images FOLDER")
    with stopping():
        page, figures = _evaluate(config, images, out, against)
    typer.echo(f"The page: {page.resolve()}\nThe figures: {figures.resolve()}")


def _evaluate(
    config: Path | None, images: Path | None, out: Path | None, against: Path | None
) -> tuple[Path, Path]:
    from dataclasses import replace

    from ..evaluation.figures import read_figures
    from ..evaluation.run import Output
    from ..evaluation.settings import EvaluateSettings
    from ..evaluation.tasks import carry_out
    from ..training.reading import read_config

    default = EvaluateSettings(output=Path("output/evaluation"), title="Evaluation")
    settings = default if config is None else read_config(config, EvaluateSettings)
    if images is not None:
        settings = replace(settings, images=images, draw=None, small_world=None)
    output = Output(out or settings.output)
    if against is not None:
        read_figures(against)  # a wrong path is said before anything is drawn
    task = _task(settings, output)
    for reason in task.left_out.values():
        typer.echo(f"left out: {reason}", err=True)
    carry_out(task, output, settings.title, against, _track)
    return output.page, output.figures


def _task(settings: EvaluateSettings, output: Output) -> Task:
    from ..errors import NestedAttentionError
    from ..evaluation.tasks import folder_task, sdxl_task

    if settings.images is not None:
        return folder_task(settings.images, settings.scorers)
    if settings.draw is not None:
        return sdxl_task(settings.draw, settings.scorers, output)
    if settings.small_world is not None:
        from ..avatars.figures.evaluate import world_task

        return world_task(settings.small_world, output)
    raise NestedAttentionError("the configuration names no pictures; expected draw, small_world or images")


def _track(items: Iterable[Any], number: int, what: str) -> Iterable[Any]:
    from rich.progress import track

    return track(items, what, number)
