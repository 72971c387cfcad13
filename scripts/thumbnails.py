#!/usr/bin/env python3
"""Saves what ComfyUI's list of templates shows of each workflow, beside it and under its name.

An avatar workflow is run as it is in ComfyUI, and shown by its pictures. What an SDXL one draws depends on
files that do not come with the pack: its graph is shown instead, with the words "needs SDXL".

Run it from the repository's root when weights or workflows change: .venv/bin/python scripts/thumbnails.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "workflows")]

from names import server_name, template  # noqa: E402

from nested_attention.demo.draw import load_workflow, node_of  # noqa: E402
from nested_attention.demo.server import ComfyServer  # noqa: E402
from nested_attention.find_comfyui import find_comfyui  # noqa: E402

SIDE = 256
"""Pixels a side of one picture in a sheet of four: 8 an art pixel."""

PAPER, BOX, EDGE, WIRE, TEXT = "#1e1e1e", "#353535", "#6f6f6f", "#8a8a8a", "#dddddd"
TITLE = 30  # drawn above a node's position


def main(names: Sequence[str]) -> None:
    paths = [ROOT / "workflows" / f"{template(name)}.json" for name in names or workflows()]
    missing = [path.stem for path in paths if not path.is_file()]
    if missing:
        sys.exit(f"there is no workflow {', '.join(missing)}; there are {', '.join(workflows())}")
    drawn = [path for path in paths if server_name(path.stem).startswith("avatar_")]
    for path in paths:
        if path not in drawn:
            save(graph(json.loads(path.read_text(encoding="utf-8"))), path)
    if not drawn:
        return
    comfyui, where = find_comfyui()
    if comfyui is None:
        sys.exit(f"ComfyUI was not found: {where}")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        for path in drawn:
            workflow = load_workflow(server_name(path.stem))
            save(sheet(server.run(workflow)[node_of(workflow, "SaveImage")]), path)


def workflows() -> list[str]:
    return sorted(server_name(path.stem) for path in (ROOT / "workflows").glob("*.json"))


def save(picture: Image.Image, workflow: Path) -> None:
    picture.save(workflow.with_suffix(".jpg"), quality=90, subsampling=0)


def sheet(pictures: Sequence[Path]) -> Image.Image:
    """One picture at the size of four, two beside each other, or the first four; all as high as the first."""
    if len(pictures) == 1:
        with Image.open(pictures[0]) as picture:
            if picture.width > picture.height:
                return whole_picture(picture)
    side = 2 * SIDE if len(pictures) == 1 else SIDE
    columns, rows = min(len(pictures), 2), 1 if len(pictures) < 3 else 2
    with Image.open(pictures[0]) as first:
        height = min(round(side * first.height / first.width), side)  # two figures take a wider picture
    whole = Image.new("RGB", (columns * side, max(rows * height, SIDE)), PAPER)
    top = (whole.height - rows * height) // 2
    for number, path in enumerate(pictures[: columns * rows]):
        with Image.open(path) as picture:
            smooth = max(picture.size) > side  # a labelled sheet, and no art pixels
            how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
            shown = picture.convert("RGB").resize((side, height), how)
        whole.paste(shown, (number % 2 * side, top + number // 2 * height))
    return whole


def whole_picture(picture: Image.Image) -> Image.Image:
    """One picture that is wider than high, as wide as a sheet."""
    height = round(2 * SIDE * picture.height / picture.width)
    shown = picture.convert("RGB").resize((2 * SIDE, height), Image.Resampling.NEAREST)
    whole = Image.new("RGB", (2 * SIDE, max(height, SIDE)), PAPER)
    whole.paste(shown, (0, (whole.height - height) // 2))
    return whole


def graph(editor: dict[str, Any]) -> Image.Image:
    """The workflow's groups, nodes and wires as the editor lays them out, without its note."""
    nodes = {node["id"]: node for node in editor["nodes"] if node["type"] != "MarkdownNote"}
    frames = [group["bounding"] for group in editor["groups"]]
    left, top = (min(frame[axis] for frame in frames) for axis in (0, 1))
    right, bottom = (max(frame[axis] + frame[axis + 2] for frame in frames) for axis in (0, 1))
    fine = 2  # drawn larger, and shrunk at the end
    width = 2 * SIDE * fine
    scale = width / (right - left)
    height = max(round((bottom - top) * scale), width // 2)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x - left) * scale, (y - top) * scale

    for group in editor["groups"]:
        x, y, w, h = group["bounding"]
        draw.rectangle([*at(x, y), *at(x + w, y + h)], outline=group.get("color", EDGE), width=3)
    for _, source, output, target, entry, _ in editor["links"]:
        one, other = nodes[source], nodes[target]
        start = at(one["pos"][0] + one["size"][0], one["pos"][1] + 14 + 20 * output)
        end = at(other["pos"][0], other["pos"][1] + 14 + 20 * entry)
        draw.line([start, end], fill=WIRE, width=2)
    for node in nodes.values():
        (x, y), (w, h) = node["pos"], node["size"]
        fill = "#28506e" if node["type"].startswith("NestedAttention") else BOX
        draw.rectangle([*at(x, y - TITLE), *at(x + w, y + h)], fill=fill, outline=EDGE, width=2)
    banner = "needs SDXL"
    draw.rectangle([0, height - 90, width, height], fill=PAPER)
    draw.text((width / 2, height - 45), banner, fill=TEXT, font=ImageFont.load_default(56), anchor="mm")
    return picture.resize((width // fine, height // fine), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="workflows; all, if none is named")
    main(parser.parse_args().names)
