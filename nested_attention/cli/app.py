"""The command line, put together of its commands."""

from __future__ import annotations

import io
import sys

from .extras import command

try:
    import typer
except ImportError as error:  # the nodes do not need it
    raise SystemExit(
        "nested-attention: the command line needs packages that the nodes do without. Install them with\n"
        f"    {command('cli')}"
    ) from error

from .bench import bench
from .demo import demo
from .download import download
from .draw import draw
from .evaluate import evaluate
from .inspect import inspect
from .preferences import preferences
from .training import prepare, train
from .world import world

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")  # a file on Windows has no λ

DRAW, TRAIN, MEASURE, SMALL_WORLD = "Draw", "Train an encoder", "Measure", "The small world"

app = typer.Typer(
    help="Nested Attention: a subject attached to one word of the prompt.",
    no_args_is_help=True,
    add_completion=False,
)
app.command(rich_help_panel=DRAW)(draw)
app.command(rich_help_panel=DRAW)(download)
app.command(rich_help_panel=DRAW)(demo)
app.command(rich_help_panel=TRAIN)(prepare)
app.command(rich_help_panel=TRAIN)(train)
app.command(rich_help_panel=MEASURE)(evaluate)
app.add_typer(preferences, name="preferences", rich_help_panel=MEASURE)
app.command(rich_help_panel=MEASURE)(inspect)
app.command(rich_help_panel=MEASURE)(bench)
app.add_typer(world, name="world", rich_help_panel=SMALL_WORLD)
