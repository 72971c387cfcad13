#!/usr/bin/env python3
"""Runs the avatar workflows as they are in ComfyUI and saves what its list of templates shows of them.

Run it from the repository's root when weights or workflows change: .venv/bin/python scripts/thumbnails.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.demo.draw import load_workflow, node_of  # noqa: E402
from nested_attention.demo.server import ComfyServer  # noqa: E402
from nested_attention.find_comfyui import find_comfyui  # noqa: E402

SIDE = 256
"""Pixels a side of one picture in a sheet of four: 8 an art pixel."""


def main() -> None:
    comfyui, where = find_comfyui()
    if comfyui is None:
        sys.exit(f"ComfyUI was not found: {where}")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        for path in sorted((ROOT / "workflows").glob("avatar_*.json")):
            graph = load_workflow(path.stem)
            pictures = server.run(graph)[node_of(graph, "SaveImage")]
            sheet(pictures).save(path.with_suffix(".jpg"), quality=90, subsampling=0)


def sheet(pictures: list[Path]) -> Image.Image:
    """One picture at the size of four, two beside each other, or the first four."""
    side = 2 * SIDE if len(pictures) == 1 else SIDE
    columns, rows = min(len(pictures), 2), 1 if len(pictures) < 3 else 2
    whole = Image.new("RGB", (columns * side, rows * side))
    for number, path in enumerate(pictures[: columns * rows]):
        with Image.open(path) as picture:
            shown = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        whole.paste(shown, (number % 2 * side, number // 2 * side))
    return whole


if __name__ == "__main__":
    main()
