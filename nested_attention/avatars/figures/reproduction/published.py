"""The figures that a page is written from, kept beside it: whoever compares more goes on from them.

Runs take hours and their weights are not kept in the repository, but the figures of each case are. A run that
is published counts as complete, so that another seed, or a mechanism of one's own, costs its own runs alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import NestedAttentionError
from ....paths import PACK
from ....storage.files import replacing
from ...models.world import Sampling
from .findings import Summary
from .matrix import Size
from .runs import Place, write_json

PAGE = PACK / "docs" / "reproduction.md"
PICTURES, FIGURES = "reproduction", "figures.json"
"""The folder of its pictures, beside the page, and in it the figures that the page is written from."""
SHOWN = "shown.npz"
"""There too: the first pictures of each drawing, of which contact sheets are made."""


def read_summary(folder: Path = PAGE.parent / PICTURES) -> Summary:
    """Raises NestedAttentionError for figures of another shape."""
    return _summary(_document(folder), folder)


def write_published(summary: Summary, place: Place, shown: Mapping[str, np.ndarray], folder: Path) -> None:
    """The figures of a place's runs; and by name the first pictures of their drawings, (n, H, W, 3) uint8."""
    with replacing(folder / FIGURES) as temporary:
        temporary.write_text(json.dumps({"place": place.name, **asdict(summary)}) + "\n", encoding="utf-8")
    with replacing(folder / SHOWN) as temporary:
        np.savez_compressed(temporary, **shown)  # type: ignore[arg-type]


def take_over(place: Place, folder: Path) -> None:
    """Bring the published figures of a place to it, of the runs that it does not have.

    Nothing is taken that was trained in another world, judged by other judges, or of another size.
    """
    document = _of(place, folder)
    if document is None:
        return
    summary = _summary(document, folder)
    place.drawn.mkdir(parents=True, exist_ok=True)
    for name, figures in summary.runs.items():
        own = place.drawn / f"{name}.json"
        if not own.exists() and not (place.folder / name).exists():
            write_json(own, figures)
    if not place.references.exists():
        write_json(place.references, summary.references)


def shown_before(place: Place, folder: Path) -> dict[str, np.ndarray]:
    """The published pictures of a place, by name."""
    if _of(place, folder) is None:
        return {}
    with np.load(folder / SHOWN) as stored:
        return {name: stored[name] for name in stored.files}


def _of(place: Place, folder: Path) -> dict[str, Any] | None:
    """What is published of a place, if anything is."""
    document = _document(folder) if (folder / FIGURES).exists() else {}
    return document if document.get("place") == place.name else None


def _document(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refused(folder, error) from error
    if not isinstance(found, dict):
        raise _refused(folder, "a list")
    return found


def _summary(document: Mapping[str, Any], folder: Path) -> Summary:
    try:
        size = dict(document["size"])
        sampling = Sampling(**size.pop("sampling"))
        return Summary(Size(**size, sampling=sampling), document["runs"], document["references"])
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(folder, error) from error


def _refused(folder: Path, why: object) -> NestedAttentionError:
    return NestedAttentionError(
        f"{folder / FIGURES} does not hold the figures of a comparison ({why}); restore it, or remove "
        "it, and `nested-attention world compare` writes it anew"
    )
