"""Figures as files: what they were measured on, on which machine, and how they are written."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...paths import SMALL_WORLD
from ...storage.files import digest_of, replacing


def circumstances(started: float) -> dict[str, Any]:
    """Seconds since `started` (of `time.monotonic`), date and machine, for the `run` of a document."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "seconds": round(time.monotonic() - started),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {_threads()}, torch {torch.__version__}{gpu}",
    }


def _threads() -> str:
    number = torch.get_num_threads()
    return f"{number} thread{'s' if number > 1 else ''}"


def hashes(folder: Path = SMALL_WORLD) -> dict[str, str]:
    """What the figures belong to: a hash of each weight file, by its path under `folder`."""
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


def write(document: dict[str, Any], path: Path, belongs: Mapping[str, Any]) -> None:
    """Write figures in one piece, with the hashes of what they belong to."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**document, "hashes": belongs}, indent=1) + "\n")
