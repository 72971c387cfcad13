"""What commands need beside the library's own requirements, and how it is installed."""

from __future__ import annotations

import sys

from ..paths import PACK


def command(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, from the pack's folder, for this Python."""
    folder = str(PACK) if (PACK / "pyproject.toml").is_file() else "FOLDER OF THE REPOSITORY"
    return f'"{sys.executable}" -m pip install -e "{folder}[{extra}]"'
