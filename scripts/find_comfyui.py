#!/usr/bin/env python3
"""Where ComfyUI is, for the demo and the tests. Prints the folder, or says why there is none and exits with
1.

Looked for in this order: the environment variable COMFYUI_PATH; the ComfyUI in whose custom_nodes this pack
lies; comfy-cli's default place, ~/comfy/ComfyUI.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACK = Path(os.path.abspath(__file__)).parent.parent  # not resolved: a pack is often linked into custom_nodes


def find_comfyui() -> tuple[Path | None, str]:
    """The folder of ComfyUI, or None; and in words where it was found, or where it was looked for."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if is_comfyui(Path(named)):
            return Path(named).resolve(), "COMFYUI_PATH"
        return None, f"COMFYUI_PATH is {named}, and there is no ComfyUI there (no main.py and comfy/sd.py)"
    if PACK.parent.name == "custom_nodes" and is_comfyui(PACK.parent.parent):
        return PACK.parent.parent.resolve(), "the ComfyUI that contains this pack"
    default = Path.home() / "comfy" / "ComfyUI"
    if is_comfyui(default):
        return default.resolve(), "comfy-cli's default place"
    return None, (
        "COMFYUI_PATH is not set, this pack does not lie in a ComfyUI's custom_nodes, and there is no "
        f"ComfyUI in {default}"
    )


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "sd.py").is_file()


if __name__ == "__main__":
    found, reason = find_comfyui()
    if found is None:
        sys.exit(f"ComfyUI was not found: {reason}")
    print(found)
