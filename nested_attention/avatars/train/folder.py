"""Pictures of the small world as a folder of photographs would be: what `nested-attention prepare` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..drawing.picture import enlarge, render
from ..drawing.prompts import caption, sample_identities, sample_picture, subject_words
from ..drawing.references import sample_crop
from .data import LOSS_WEIGHTS, loss_weight_of


def write_pictures(folder: Path, word: str, number: int, *, seed: int = 0) -> None:
    """`number` pictures of a person or a pet (`word`) alone: pictures of two are wider than these.

    A pixel is an art pixel in `NAME.png`, and in `NAME.weight.png`, which says how much each counts in the
    loss. `NAME.txt` is the caption, in which angle brackets mark the word of the subject, and
    `NAME.reference.png` a crop of the same subject from another picture. Each picture has its own subject.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(number):
        rng = np.random.default_rng([seed, place])
        picture = sample_picture(rng, sample_identities(rng, word))
        words = tuple(f"<{said}>" for said in subject_words(picture))
        drawn = render(picture)
        stem = folder / f"{word}-{place:05d}"
        Image.fromarray(drawn.rgb).save(f"{stem}.png")
        weights = loss_weight_of(drawn.part) / max(LOSS_WEIGHTS.values())
        Image.fromarray((255 * weights).round().astype(np.uint8)).save(f"{stem}.weight.png")
        Path(f"{stem}.txt").write_text(caption(picture, rng, words=words) + "\n", encoding="utf-8")
        (figure,) = picture.figures
        Image.fromarray(enlarge(sample_crop(rng, figure.identity))).save(f"{stem}.reference.png")
