"""How a command stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from ..errors import NestedAttentionError


@contextmanager
def stopping() -> Iterator[None]:
    """What the user can mend is said in a line, without a stack trace."""
    try:
        yield
    except (NestedAttentionError, FileNotFoundError) as error:
        stop(str(error))


def stop(message: str) -> NoReturn:
    typer.echo(f"nested-attention: {message}", err=True)
    raise typer.Exit(1)
