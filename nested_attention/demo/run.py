"""`make demo`: draw, judge, save, and say where."""

from __future__ import annotations

import time
from pathlib import Path

from .cases import make_rows
from .draw import draw_with_comfyui, draw_with_diffusers
from .scores import report
from .sheet import save_sheet


def run_demo(out: Path, *, rows: int = 4, seed: int = 0, comfyui: Path | None = None) -> list[str]:
    """Draws `rows` rows in ComfyUI, or with diffusers if None, saves the picture, and returns what to print.

    Raises NestedAttentionError, or FileNotFoundError naming the file, if something the demo needs is missing.
    """
    start = time.monotonic()
    wanted = make_rows(rows, seed)
    drawn = draw_with_diffusers(wanted) if comfyui is None else draw_with_comfyui(wanted, comfyui)
    save_sheet(wanted, drawn, out)
    host = "diffusers" if comfyui is None else f"ComfyUI ({comfyui})"
    pictures = f"{3 * rows} pictures drawn by {host} in {time.monotonic() - start:.0f} s"
    return [pictures, *report(wanted, drawn), f"The picture: {out.resolve()}"]
