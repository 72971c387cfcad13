"""`nested-attention draw`: whoever is on a photograph, in a picture of a prompt."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .stopping import busy, stopping


class Prepare(str, Enum):
    """What is taken of a photograph."""

    AUTO = "auto"
    FACE = "face"
    ISOLATE = "isolate"
    NONE = "none"


def draw(
    prompt: Annotated[str, typer.Argument(help="With the subject's word, as 'a person on the beach'.")],
    photo: Annotated[
        list[Path],
        typer.Option("--photo", "--reference", help="A photograph; several of one subject, one option each."),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "--base",
            help="SDXL: a file, a folder in diffusers' layout, or a name on the hub. Without it the small "
            "world draws, which comes with the pack and knows no photographs.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="A name of `download`, or a file. Without it, the first of `download`'s list that is "
            "installed."
        ),
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="The encoder's vision model, where `download` does not know it.")
    ] = None,
    word: Annotated[str | None, typer.Option(help="The subject's word; the encoder's without it.")] = None,
    prepare: Annotated[
        Prepare,
        typer.Option(help="auto: the face if one is found, else the subject cut out of its background."),
    ] = Prepare.AUTO,
    attention_scale: Annotated[
        float, typer.Option(help="λ: more is more of the subject and less of the prompt.")
    ] = 1.0,
    strength: Annotated[float, typer.Option(help="0 is off.")] = 1.0,
    negative: Annotated[str, typer.Option(help="What is not wanted.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another picture.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="30 for SDXL, 20 for the small world.")] = None,
    guidance: Annotated[float, typer.Option(help="More: more of the prompt and of the subject.")] = 5.0,
    size: Annotated[
        int | None,
        typer.Option(
            min=64,
            help="Pixels a side; 1024 for SDXL. The small world's pictures are as wide as the nouns in the "
            "prompt need.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, mps or cpu; without it CUDA where there is one, else cpu.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the picture is saved.")] = Path("output/drawn.png"),
) -> None:
    """Draw whoever is on a photograph into a picture of a prompt."""
    with stopping():
        with busy("Loading"):
            from ..demo.photograph import Drawing, draw_photograph
        drawing = Drawing(
            prompt=prompt,
            photographs=tuple(photo),
            checkpoint=checkpoint,
            encoder=encoder,
            vision=vision,
            word=word,
            prepare=prepare.value,
            attention_scale=attention_scale,
            strength=strength,
            negative=negative,
            seed=seed,
            steps=steps,
            guidance=guidance,
            size=size,
            device=device,
        )
        lines = draw_photograph(drawing, out)
    typer.echo("\n".join(lines))
