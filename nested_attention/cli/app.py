"""The command line, put together of its commands."""

from __future__ import annotations

try:
    import typer
except ImportError as error:  # the nodes do not need it
    raise SystemExit("nested-attention: the command line needs typer (pip install typer)") from error

from .bench import bench
from .demo import demo
from .download import download
from .evaluate import evaluate
from .preferences import preferences
from .training import prepare, train
from .world import world

app = typer.Typer(
    help="Nested Attention: a subject attached to one word of the prompt.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(download)
app.command()(demo)
app.command()(bench)
app.command()(prepare)
app.command()(train)
app.command()(evaluate)
app.add_typer(preferences, name="preferences")
app.add_typer(world, name="world")
