"""`nested-attention evaluate`: prompts × subjects × λ → pictures, figures, a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .stopping import stop, stopping


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

    from ..errors import NestedAttentionError
    from ..evaluation.figures import read_figures
    from ..evaluation.run import Output, conclude, score
    from ..evaluation.settings import EvaluateSettings
    from ..training.reading import read_config

    default = EvaluateSettings(output=Path("output/evaluation"), title="Evaluation")
    settings = default if config is None else read_config(config, EvaluateSettings)
    if images is not None:
        settings = replace(settings, images=images, draw=None, small_world=None)
    if settings.draw is None and settings.small_world is None and settings.images is None:
        raise NestedAttentionError(f"{config} says nothing of pictures; expected draw, small_world or images")
    output = Output(out or settings.output)
    if against is not None:
        read_figures(against)  # a wrong path is said before anything is drawn
    samples, scorers, told = _pictures(settings, output)
    found = score(samples, scorers, output, track=_track)
    conclude(samples, scorers, found, output, settings.title, against, told)
    return output.page, output.figures


def _pictures(settings: Any, output: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """The samples to be scored, drawn if they have to be, with their judges and what they were drawn with."""
    from ..evaluation.judges import load_judges
    from ..evaluation.recognisers import FaceFinder

    if settings.images is not None:
        from ..evaluation.folders import read_folder

        samples = read_folder(settings.images)
        return samples, load_judges(settings.scorers, samples, FaceFinder()), {"images": str(settings.images)}
    if settings.small_world is not None:
        return _small_world(settings.small_world, output)
    from ..evaluation.drawing import SdxlDrawer, plan, told_of
    from ..evaluation.judges import load_vision
    from ..evaluation.run import draw

    find, model = FaceFinder(), settings.draw.model
    vision = load_vision(model.vision or model.base, None if model.vision else "image_encoder")
    drawer = SdxlDrawer(settings.draw, vision, find)
    drawings = plan(settings.draw, output.pictures, drawer.words())
    samples = [drawing.sample for drawing in drawings]
    scorers = load_judges(settings.scorers, samples, find, vision)
    told = told_of(settings.draw)
    draw(drawings, drawer, told, output, track=_track)
    return samples, scorers, told


def _small_world(settings: Any, output: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
    from ..avatars.figures.evaluate import WorldDrawer, plan_world, told, world_judges
    from ..evaluation.run import draw

    planned, drawer = plan_world(settings, output.folder), WorldDrawer(settings)
    samples = [drawing.sample for drawing in planned.drawings]
    draw(planned.drawings, drawer, told(settings), output, track=_track)
    return samples, world_judges(settings, planned, drawer.world), told(settings)


def _track(items: Iterable[Any], number: int, what: str) -> Iterable[Any]:
    from rich.progress import track

    return track(items, what, number)
