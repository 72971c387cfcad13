"""Where ComfyUI is, as the scripts of the repository find it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "find_comfyui.py"


def find_comfyui() -> tuple[Path | None, str]:
    """ComfyUI's folder or None, and in words where it is or was looked for (`scripts/find_comfyui.py`)."""
    spec = importlib.util.spec_from_file_location("find_comfyui", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: tuple[Path | None, str] = module.find_comfyui()
    return found
