"""Pictures of the small world as a folder of photographs would be: with captions and reference pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .picture import enlarge, render
from .prompts import prompt, sample_identities, sample_picture
from .references import sample_crop


def write_pictures(folder: Path, word: str, number: int, *, seed: int = 0) -> None:
    """`NAME.png` (32 × 32, a pixel an art pixel), `NAME.txt` and `NAME.reference.png` for each of `number`
    subjects, people or pets (`word`): the reference is a crop of the same subject from another picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(number):
        rng = np.random.default_rng([seed, place])
        picture = sample_picture(rng, sample_identities(rng, word))
        stem = folder / f"{word}-{place:05d}"
        Image.fromarray(render(picture).rgb).save(f"{stem}.png")
        Path(f"{stem}.txt").write_text(prompt(picture, rng) + "\n", encoding="utf-8")
        reference = sample_crop(rng, picture.figures[0].identity)
        Image.fromarray(enlarge(reference)).save(f"{stem}.reference.png")
