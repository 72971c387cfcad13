"""How a command shows that it is at work, and how it stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from ..errors import NestedAttentionError
from .extras import command


@contextmanager
def stopping() -> Iterator[None]:
    """What the user can mend is said in a line, without a stack trace."""
    try:
        yield
    except (NestedAttentionError, FileNotFoundError) as error:
        stop(str(error))


@contextmanager
def needing_training() -> Iterator[None]:
    """`stopping`, and what is not installed is named, with the command that installs it."""
    try:
        with stopping():
            yield
    except ImportError as error:
        stop(f"{error.name} is not installed, which this needs: {command('training')}")


def stop(message: str) -> NoReturn:
    typer.echo(f"nested-attention: {message}", err=True)
    raise typer.Exit(1)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Within the context a terminal shows that something is going on; a file does not."""
    with Console(stderr=True).status(f"{what} …"):
        yield
