"""`nested-attention …`: the library's work from the command line."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .errors import NestedAttentionError

app = typer.Typer(
    help="Nested Attention: a subject attached to one word of the prompt.",
    no_args_is_help=True,
    add_completion=False,
)


class Host(str, Enum):
    """What draws the demo's pictures."""

    AUTO = "auto"
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"


@app.callback()
def _commands() -> None:
    """Keeps `demo` a command of its own while it is the only one."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the picture is saved.")] = Path("output/demo.png"),
    host: Annotated[Host, typer.Option(help="auto: ComfyUI where it is found, else diffusers.")] = Host.AUTO,
    rows: Annotated[int, typer.Option(min=1, max=16, help="How many people and pets are drawn.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=1000, help="Which people, pets and prompts.")] = 0,
) -> None:
    """Draw people and pets that no model has seen with the weights that come with the repository."""
    from .demo.run import find_comfyui, run_demo

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


def _stop(message: str) -> None:
    typer.echo(f"nested-attention: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="nested-attention")
