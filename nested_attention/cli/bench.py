"""`nested-attention bench`: what a subject costs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .stopping import stopping


class Part(str, Enum):
    """What the benchmark measures."""

    LAYERS = "layers"
    SWEEP = "sweep"
    SCALING = "scaling"
    SLOTS = "slots"
    SAMPLING = "sampling"
    PICTURES = "pictures"
    LOADING = "loading"


class Clock(str, Enum):
    """What the benchmark counts as time."""

    WALL = "wall"
    CPU = "cpu"


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
    page: Annotated[
        Path | None, typer.Option(help="A page with a place for the part's table, as docs/performance.md.")
    ] = None,
) -> None:
    """Time nested attention against its floor, its explicit form and decoupled cross-attention."""
    from ..bench.run import Settings, run

    with stopping():
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
        typer.echo(run(settings, out, page, say=lambda line: typer.echo(line, err=True)))
    typer.echo(f"The figures: {out.resolve()}")
