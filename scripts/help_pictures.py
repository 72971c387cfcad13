#!/usr/bin/env python3
"""Draws the pictures of the help pages that come from no model: python scripts/help_pictures.py"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.avatars.references import KINDS, held_out, reference_picture  # noqa: E402

SIDE, GAP, SEEDS = 80, 8, range(6)


def references() -> Image.Image:
    """What Demo World draws for the first seeds: a row of people, a row of pets."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (len(SEEDS) * step + GAP, len(KINDS) * step + GAP), (250, 249, 246))
    for row, kind in enumerate(KINDS):
        for column, seed in enumerate(SEEDS):
            picture = Image.fromarray(reference_picture(held_out(kind, seed)))
            shown = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (GAP + column * step, GAP + row * step))
    return sheet


if __name__ == "__main__":
    place = ROOT / "web" / "docs" / "demo_world.png"
    references().quantize(64, dither=Image.Dither.NONE).save(place, optimize=True)
