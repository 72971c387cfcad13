#!/usr/bin/env python3
"""Runs every avatar workflow in each ComfyUI that is found, and compares the pictures with the first one's.

    python scripts/pictures_by_core.py [--venv FOLDER] [WORKFLOW …]

Prints the largest difference of a colour value, of 255, for each workflow, and beside it that of the same
graph with every subject at strength 0: what the versions of ComfyUI and PyTorch differ by without us. Exits
with 1 if a picture with subjects differs by more than the largest such difference, and by more than 8 of 255.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from install import ROOT, environment, say

from nested_attention.find_comfyui import ComfyUI, find_every_comfyui

ALLOWED = 8
"""Of 255. A sampling of 20 steps amplifies what two matrix multiplications round differently."""


def drawn(comfyui: ComfyUI, python: Path, names: list[str]) -> dict[str, tuple[Any, Any]]:
    """The pictures of each workflow, with its subjects and without: (n, h, w, 3) in 0 … 255 as int16."""
    import numpy as np
    from PIL import Image

    from nested_attention.demo.draw import load_workflow
    from nested_attention.demo.server import ComfyServer

    def pictures(graph: dict[str, Any]) -> Any:
        found = server.run(graph)
        saved = [n for n in sorted(graph) if graph[n]["class_type"] == "SaveImage"]
        paths = [path for number in saved for path in found[number]]
        images = [np.asarray(Image.open(path).convert("RGB"), np.int16) for path in paths]
        return np.concatenate([image.reshape(-1) for image in images])

    result = {}
    with (
        tempfile.TemporaryDirectory(prefix="nested-attention-") as folder,
        ComfyServer(comfyui.folder, Path(folder), python=str(python)) as server,
    ):
        for name in names:
            graph, plain = load_workflow(name), load_workflow(name)
            for node in plain.values():
                if node["class_type"] == "NestedAttentionApplySubject":
                    node["inputs"]["strength"] = 0.0
            say(f"ComfyUI {comfyui.version}: {name}")
            result[name] = pictures(graph), pictures(plain)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="WORKFLOW")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    chosen = parser.parse_args()
    names = chosen.names or sorted(p.stem for p in (ROOT / "workflows" / "api").glob("avatar_*.json"))
    found, where = find_every_comfyui()
    if len(found) < 2:
        sys.exit(f"Two versions of ComfyUI are compared, and {len(found)} found ({where}).")
    each = [drawn(one, environment(one, chosen.venv.absolute()), names) for one in found]
    wrong = []
    for version, other in zip(found[1:], each[1:], strict=True):
        print(
            f"| ComfyUI {found[0].version} and {version.version} | with subjects | at strength 0 |\n"
            "|---|---|---|"
        )
        rows = {
            name: [int(abs(a - b).max()) for a, b in zip(each[0][name], other[name], strict=True)]
            for name in names
        }
        for name, (with_subjects, without) in rows.items():
            print(f"| {name} | {with_subjects} | {without} |")
        limit = max(ALLOWED, *(without for _, without in rows.values()))
        wrong += [name for name, (with_subjects, _) in rows.items() if with_subjects > limit]
    if wrong:
        sys.exit(f"Drawn otherwise: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
