"""The demo's picture: every column as wide as what it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nested_attention.demo.cases import Drawn, make_rows
from nested_attention.demo.sheet import HEADER, MARGIN, PIXEL, save_sheet


def test_a_picture_of_two_figures_keeps_its_shape_on_the_sheet(tmp_path: Path) -> None:
    levels = {"base": 40, "alone": 80, "together": 120}
    widths = {"base": 32, "alone": 32, "together": 48}
    pictures = {name: np.full((32, widths[name], 3), level, np.uint8) for name, level in levels.items()}
    save_sheet(make_rows(1), [Drawn(**pictures)], tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as sheet:
        row = np.asarray(sheet)[HEADER + 16 * PIXEL, :, 0]
    start = 2 * MARGIN + 16 * PIXEL
    for name, level in levels.items():
        end = start + widths[name] * PIXEL
        assert (row[start:end] == level).all() and row[start - 1] != level != row[end], name
        start = end + MARGIN
    assert len(row) == start
