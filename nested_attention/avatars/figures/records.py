"""Figures as files: what they were measured on, on which machine, and how they are written."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from ...paths import PACKAGE, SMALL_WORLD
from ...storage.files import replacing

_CODE = (
    *("attention.py", "regions.py", "qformer.py", "encoder.py", "settings.py"),
    *("kernels", "avatars", "hosts/diffusers"),
)
"""What a figure depends on beside the weights, relative to the library."""


def circumstances(started: float) -> dict[str, Any]:
    """Seconds since `started` (of `time.monotonic`), date and machine, for the `run` of a document."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "seconds": round(time.monotonic() - started),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}",
    }


def hashes(folder: Path = SMALL_WORLD) -> dict[str, str]:
    """What the figures belong to: a hash of each weight file, by its path under `folder`, and one of the code
    they depend on."""
    files = sorted(folder.rglob("*.safetensors"))
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    code = hashlib.sha256()
    for entry in _CODE:
        path = PACKAGE / entry
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            code.update(source.relative_to(PACKAGE).as_posix().encode() + b"\0" + source.read_bytes())
    found["code"] = code.hexdigest()
    return found


def write(document: dict[str, Any], path: Path, belongs: dict[str, str] | None = None) -> None:
    """Write figures in one piece, with the hashes of what they belong to: all of the folder's by default."""
    found = hashes(path.parent) if belongs is None else belongs
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**document, "hashes": found}, indent=1) + "\n")
