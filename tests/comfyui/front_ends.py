"""The front ends that tests in a browser run with, for the fixtures of conftest.py.

ComfyUI's own, and on a newer ComfyUI that of front-end.txt too, where it is installed; with both renderers of
nodes where the front end has both.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = (1900, 780)

NEWER = Path(__file__).resolve().parent / "front-end.txt"
NEWER_PLACE = Path(sys.prefix) / "front-end"
"""Where scripts/install.py puts it."""
NEWER_FILES = NEWER_PLACE / "comfyui_frontend_package" / "static"
BOTH_RENDERERS = (1, 41)
"""The front end whose new installations may start with Nodes 2.0; those before it call that a trial."""


@dataclass(frozen=True)
class FrontEnd:
    version: str
    nodes_2: bool
    own: bool
    """Whether it is the one that ComfyUI's requirements name."""

    @property
    def searches_names(self) -> bool:
        """Whether its search looks at the names of nodes alone, not at their search_aliases."""
        return _number(self.version) < BOTH_RENDERERS

    def __str__(self) -> str:
        return f"{self.version}{' Nodes 2.0' if self.nodes_2 else ''}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def front_ends() -> list[FrontEnd]:
    try:
        version = metadata.version("comfyui-frontend-package")
    except metadata.PackageNotFoundError:
        return [FrontEnd("none", nodes_2=False, own=True)]  # there is no ComfyUI either
    if _number(version) < BOTH_RENDERERS:
        return [FrontEnd(version, nodes_2=False, own=True)]
    newer = NEWER.read_text().strip().rpartition("==")[2]
    versions = {version: True, newer: version == newer}
    return [FrontEnd(one, nodes_2, own) for one, own in versions.items() for nodes_2 in (False, True)]


FRONT_ENDS = front_ends()
