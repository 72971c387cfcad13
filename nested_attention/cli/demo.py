"""`nested-attention demo`: one picture that shows a subject kept."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .stopping import busy, stop, stopping


class Host(str, Enum):
    """What draws the demo's pictures."""

    AUTO = "auto"
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"


def demo(
    out: Annotated[Path, typer.Option(help="Where the picture is saved.")] = Path("output/demo.png"),
    host: Annotated[Host, typer.Option(help="auto: ComfyUI where it is found, else diffusers.")] = Host.AUTO,
    rows: Annotated[int, typer.Option(min=1, max=16, help="How many people and pets are drawn.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=1000, help="Which people, pets and prompts.")] = 0,
) -> None:
    """Draw people and pets that no model has seen with the weights that come with the repository."""
    from ..demo.run import run_demo
    from ..find_comfyui import find_comfyui

    comfyui, where = find_comfyui()
    if host is Host.COMFYUI and comfyui is None:
        stop(f"ComfyUI was not found: {where}")
    if host is not Host.DIFFUSERS:
        typer.echo(f"ComfyUI: {comfyui or 'not found, so diffusers draws'} ({where})")
    with stopping(), busy(f"Drawing {3 * rows} pictures"):
        lines = run_demo(out, rows=rows, seed=seed, comfyui=None if host is Host.DIFFUSERS else comfyui)
    typer.echo("\n".join(lines))
