"""Pictures of the small world as a folder of photographs would be: what `nested-attention prepare` reads."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..drawing.identity import Identity
from ..drawing.picture import Picture, enlarge, render
from ..drawing.prompts import caption, sample_identities, sample_picture, subject_words
from ..drawing.references import sample_crop
from .data import ALONE, LOSS_WEIGHTS, TOGETHER, loss_weights_for, wanted_figure

PAIRS = 1 / 3
"""Share of the pictures in which somebody else is besides; these are wider."""

EACH = 3
"""Pictures of a subject: the crop of any of them can be a reference of another."""

COVERED = 0.5
"""Share of the crops in which something covers a part of the head."""


def write_pictures(
    folder: Path,
    word: str,
    number: int,
    *,
    pairs: float = PAIRS,
    each: int = EACH,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """`number` pictures with a person or a pet (`word`), `each` of every subject, a share `pairs` with
    somebody else besides. `workers` processes draw them.

    A pixel is an art pixel in `NAME.png`, and in `NAME.weight.png`, which says how much each counts in the
    loss. `NAME.txt` is the caption, in which angle brackets mark the word of the subject, and
    `NAME.reference.png` a crop of the same subject from another picture, on which, in a share COVERED,
    something covers a part of the head. Several pictures of a subject lie in a folder of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = partial(_write, folder, word, pairs=pairs, each=each, seed=seed)
    if workers == 1:
        draw(range(number))
        return
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(draw, [range(number)[start : start + 500] for start in range(0, number, 500)]))


def _write(folder: Path, word: str, places: range, *, pairs: float, each: int, seed: int) -> None:
    for place in places:
        rng = np.random.default_rng([seed, place])
        subject, one = divmod(place, each)
        (identity,) = sample_identities(np.random.default_rng([seed, subject, 0]), word)
        picture, wanted = _picture_with(identity, word, pairs, rng)
        words = tuple(
            f"<{said}>" if figure == wanted else said for figure, said in enumerate(subject_words(picture))
        )
        drawn = render(picture)
        name = f"{word}-{subject:05d}"
        stem = folder / name / str(one) if each > 1 else folder / name
        stem.parent.mkdir(exist_ok=True)
        Image.fromarray(drawn.rgb).save(f"{stem}.png")
        weights = loss_weights_for(drawn, wanted) / max(LOSS_WEIGHTS.values())
        Image.fromarray((255 * weights).round().astype(np.uint8)).save(f"{stem}.weight.png")
        Path(f"{stem}.txt").write_text(caption(picture, rng, words=words) + "\n", encoding="utf-8")
        reference = sample_crop(rng, identity, covered=COVERED)
        Image.fromarray(enlarge(reference)).save(f"{stem}.reference.png")


def _picture_with(
    identity: Identity, word: str, pairs: float, rng: np.random.Generator
) -> tuple[Picture, int]:
    """A picture of a subject, alone or with somebody else, and which of its figures the subject is."""
    mix = (TOGETHER if rng.random() < pairs else ALONE)[word]
    kinds = str(rng.choice(list(mix), p=list(mix.values())))
    picture = sample_picture(rng, sample_identities(rng, kinds))
    wanted = wanted_figure(picture, word, rng)
    figures = list(picture.figures)
    figures[wanted] = replace(figures[wanted], identity=identity)
    return replace(picture, figures=tuple(figures)), wanted
