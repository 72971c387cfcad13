"""`nested-attention download`: the licence first, then the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import NestedAttentionError
from .stopping import stopping


def download(
    name: Annotated[str | None, typer.Argument(help="Which weights; without one, all are listed.")] = None,
    comfyui: Annotated[
        Path | None, typer.Option(help="ComfyUI's folder, where it is not found by itself.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Do not ask: the licence is known and accepted.")
    ] = False,
    accept_unverified: Annotated[
        bool,
        typer.Option(
            "--accept-unverified",
            help="Take a file for which the hub gives no SHA-256, by which a changed one would be noticed.",
        ),
    ] = False,
) -> None:
    """Fetch known weights into ComfyUI's folders, after showing their licence."""
    with stopping():
        _download(name, comfyui, accept_licence, accept_unverified)


def _download(name: str | None, comfyui: Path | None, accepted: bool, unverified: bool) -> None:
    from ..find_comfyui import find_comfyui
    from ..storage.download import download as fetch
    from ..storage.download import licence_text, models_folder, overview
    from ..storage.registry import find_weights

    where = "--comfyui"
    if comfyui is None:
        comfyui, where = find_comfyui()
    if name is None:
        typer.echo("\n".join(overview(None if comfyui is None else models_folder(comfyui))))
        return
    known = find_weights(name)
    if comfyui is None:
        raise NestedAttentionError(
            f"ComfyUI was not found ({where}). Say where it is with --comfyui. Or by hand: "
            f"{known.by_hand(Path('ComfyUI') / 'models')}"
        )
    models = models_folder(comfyui)
    typer.echo("\n".join(licence_text(known)))
    if not accepted:
        if not sys.stdin.isatty():
            raise NestedAttentionError(
                "nobody is there to be asked whether the licence is accepted; if it is, say so with "
                "--accept-licence"
            )
        if not typer.confirm("Do you accept this licence?"):
            raise NestedAttentionError("the licence was not accepted, and nothing was fetched")
    fetch(known, models, typer.echo, accept_unverified=unverified)
