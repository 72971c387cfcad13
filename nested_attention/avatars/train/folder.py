"""Pictures of the small world as a folder of photographs would be: what `nested-attention prepare` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..drawing.picture import enlarge, render
from ..drawing.prompts import caption, sample_identities, sample_picture, subject_words
from ..drawing.references import sample_crop
from .data import LOSS_WEIGHTS, MIXES, loss_weights_for, wanted_figure


def write_pictures(folder: Path, word: str, number: int, *, seed: int = 0) -> None:
    """`number` pictures with a person or a pet (`word`), some with somebody else besides.

    A pixel is an art pixel in `NAME.png`, and in `NAME.weight.png`, which says how much each counts in the
    loss. `NAME.txt` is the caption, in which angle brackets mark the word of the subject, and
    `NAME.reference.png` a crop of the same subject from another picture. Each picture has its own subject.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mix = MIXES[word]
    for place in range(number):
        rng = np.random.default_rng([seed, place])
        kinds = str(rng.choice(list(mix), p=list(mix.values())))
        picture = sample_picture(rng, sample_identities(rng, kinds))
        wanted = wanted_figure(picture, word, rng)
        words = tuple(
            f"<{said}>" if figure == wanted else said for figure, said in enumerate(subject_words(picture))
        )
        drawn = render(picture)
        stem = folder / f"{word}-{place:05d}"
        Image.fromarray(drawn.rgb).save(f"{stem}.png")
        weights = loss_weights_for(drawn, wanted) / max(LOSS_WEIGHTS.values())
        Image.fromarray((255 * weights).round().astype(np.uint8)).save(f"{stem}.weight.png")
        Path(f"{stem}.txt").write_text(caption(picture, rng, words=words) + "\n", encoding="utf-8")
        reference = sample_crop(rng, picture.figures[wanted].identity)
        Image.fromarray(enlarge(reference)).save(f"{stem}.reference.png")
