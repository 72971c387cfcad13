"""Where ComfyUI is, for the command line, the scripts and the tests; needs the standard library only.

Looked for in this order: the environment variable COMFYUI_PATH, which may name several (separated as PATH
is); the ComfyUI in whose custom_nodes this pack lies; every `~/comfy/ComfyUI*`, comfy-cli's default place.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_PACK = Path(
    os.path.abspath(__file__)
).parent.parent  # not resolved: a pack is often linked into custom_nodes


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI checkout. folder: absolute, links resolved."""

    folder: Path

    @property
    def version(self) -> str:
        """As ComfyUI says itself."""
        try:
            text = (self.folder / "comfyui_version.py").read_text(encoding="utf-8")
        except OSError:
            text = ""
        found = re.search(r'__version__ = "(.+?)"', text)
        return found.group(1) if found else "of unknown version"

    @property
    def name(self) -> str:
        """Tells it apart from every other on this machine, and is fit for a folder's name."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.folder.name)
        if self.folder.parent == _default_place():
            return readable
        return f"{readable}-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:6]}"

    @property
    def python(self) -> Path | None:
        """The interpreter of its own virtual environment, as comfy-cli and manual installs make it."""
        places = (interpreter(self.folder / name) for name in (".venv", "venv"))
        return next((place for place in places if place.is_file()), None)


def interpreter(environment: Path) -> Path:
    """Where a virtual environment has its Python."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_every_comfyui() -> tuple[list[ComfyUI], str]:
    """All that are found, and in words where; or none, and in words where they were looked for."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        places = [Path(place).expanduser() for place in named.split(os.pathsep) if place]
        wrong = [str(place) for place in places if not _is_comfyui(place)]
        if wrong:
            return [], (
                f"COMFYUI_PATH names {' and '.join(wrong)}, and there is no ComfyUI there (no main.py and "
                "comfy/sd.py)"
            )
        return _distinct(places), "COMFYUI_PATH"
    if _PACK.parent.name == "custom_nodes" and _is_comfyui(_PACK.parent.parent):
        return _distinct([_PACK.parent.parent]), "the ComfyUI that contains this pack"
    default = _default_place()
    places = sorted(place for place in default.glob("ComfyUI*") if _is_comfyui(place))
    if places:
        return _distinct(places), "comfy-cli's default place"
    return [], (
        "COMFYUI_PATH is not set, this pack does not lie in a ComfyUI's custom_nodes, and there is no "
        f"ComfyUI in {default}"
    )


def find_comfyui() -> tuple[Path | None, str]:
    """One ComfyUI's folder, or None; and in words where it is or was looked for.

    Of several it is the one that this Python is installed for, else the first.
    """
    found, where = find_every_comfyui()
    if not found:
        return None, where
    return next((each for each in found if _runs_this(each)), found[0]).folder, where


def _runs_this(comfyui: ComfyUI) -> bool:
    """Whether this process's environment is the ComfyUI's own, or was made for it by scripts/install.py."""
    prefix = Path(sys.prefix).resolve()
    return prefix.name == comfyui.name or comfyui.folder in prefix.parents


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "sd.py").is_file()


def _distinct(places: list[Path]) -> list[ComfyUI]:
    return [ComfyUI(folder) for folder in dict.fromkeys(place.resolve() for place in places)]


def _default_place() -> Path:
    return (Path.home() / "comfy").resolve()
