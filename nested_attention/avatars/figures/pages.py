"""Pages that show committed figures, and how they are put there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...paths import PACK, SMALL_WORLD
from . import anchored_tables, curve, map_tables, maps
from .acceptance import RESULTS
from .anchored import RESULTS as ANCHORED
from .report import figures, summary


def read(path: Path = RESULTS) -> dict[str, Any]:
    """The committed figures."""
    return json.loads(path.read_text())


BEGIN, END = "<!-- figures: written by `nested-attention world report` -->\n", "\n<!-- end of figures -->"


def insert(page: str, figures: str) -> str:
    """A page with its figures replaced. Raises ValueError if it has no place for them."""
    if BEGIN not in page or END not in page:
        raise ValueError(
            f"the page has no lines {BEGIN.strip()!r} and {END.strip()!r} to put figures between"
        )
    before, rest = page.split(BEGIN, 1)
    return before + BEGIN + "\n" + figures + "\n" + END + rest.split(END, 1)[1]


PAGES: dict[Path, Callable[[], str]] = {
    SMALL_WORLD / "README.md": lambda: figures(read()),
    PACK / "README.md": lambda: summary(read()),
    PACK / "docs" / "gallery.md": lambda: map_tables.tables(read(maps.RESULTS)),
    PACK / "docs" / "anchored.md": lambda: anchored_tables.tables(read(ANCHORED)),
}
"""The cards and pages, with what stands in each."""

PICTURES: dict[Path, Callable[[], str]] = {curve.PICTURE: lambda: curve.picture(read()["curve"])}
"""Pictures of figures, that pages show."""
