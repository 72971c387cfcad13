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

WORKFLOWS = ("avatar_person", "avatar_person_and_pet")
SIDE = 256
"""Pixels a side of one picture: 8 an art pixel."""


def main() -> None:
    comfyui, where = find_comfyui()
    if comfyui is None:
        sys.exit(f"ComfyUI was not found: {where}")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        for name in WORKFLOWS:
            graph = load_workflow(name)
            sheet = Image.new("RGB", (2 * SIDE, 2 * SIDE))
            for number, path in enumerate(server.run(graph)[node_of(graph, "SaveImage")][:4]):
                with Image.open(path) as picture:
                    shown = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
                sheet.paste(shown, (number % 2 * SIDE, number // 2 * SIDE))
            sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=90, subsampling=0)


if __name__ == "__main__":
    main()
