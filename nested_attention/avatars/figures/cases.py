"""What is evaluated: held-out subjects in combinations of prompt attributes that no model learned to draw.

There are two sets. Every choice is made on the development set. The sealed one has other subjects and other
pictures; `acceptance` alone draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..drawing.identity import KINDS, Half, Identity, sample
from ..drawing.picture import Figure, Picture, render
from ..drawing.prompts import caption, prompt, sample_picture
from ..drawing.references import sample_crop
from ..drawing.shown import Shown
from ..models.model import LATENT, LATENT_WIDE

Cases = Half | Literal["train"]
"""Whom cases show: one half of the held-out identities, or those of training."""

_STREAM: dict[Cases, int] = {"development": 0, "sealed": 1, "train": 2}
"""What a set's pictures, prompts and noise are drawn with, beside the seed."""


@dataclass(frozen=True, eq=False)
class Case:
    """One picture to be generated: the drawing a perfect model would match, its words, references, seed."""

    picture: Picture
    prompt: str
    described: str
    references: tuple[np.ndarray, ...]  # (28, 28, 3) uint8 a subject, from a picture of its own
    seed: int

    def number(self, word: str) -> int:
        """Which of the figures the subject is that `word` names: the first of its kind."""
        kinds = [isinstance(figure.identity, KINDS[word]) for figure in self.picture.figures]
        return kinds.index(True)

    def figure(self, word: str) -> Figure:
        return self.picture.figures[self.number(word)]

    def reference(self, word: str) -> np.ndarray:
        return self.references[self.number(word)]

    def shown(self, word: str) -> Shown:
        """How the subject of a word is shown, as the prompt says."""
        return Shown.of(self.picture, self.number(word))

    @property
    def latent_width(self) -> int:
        """Latent cells across the picture: two figures stand in a wide one."""
        return LATENT if len(self.picture.figures) == 1 else LATENT_WIDE


def draw_cases(words: tuple[str, ...], number: int, seed: int, split: Cases = "development") -> list[Case]:
    """`number` cases with one subject of the split a word, all of them different."""
    rng = np.random.default_rng([seed, _STREAM[split]])
    seen: set[Identity] = set()
    cases: list[Case] = []
    while len(cases) < number:
        identities = tuple(sample(KINDS[word], rng, split) for word in words)  # type: ignore[type-var]
        if len(set(identities) - seen) < len(identities):
            continue
        seen.update(identities)
        picture = sample_picture(rng, identities, split="train" if split == "train" else "heldout")
        form = int(rng.integers(2**31))
        cases.append(
            Case(
                picture=picture,
                prompt=prompt(picture, np.random.default_rng(form)),
                described=caption(picture, np.random.default_rng(form), described=True),
                references=tuple(sample_crop(rng, figure.identity) for figure in picture.figures),
                seed=int(rng.integers(2**31)),
            )
        )
    return cases


def true_drawings(cases: list[Case]) -> np.ndarray:
    """What a perfect model would draw. (n, 32, W, 3) uint8"""
    return np.stack([render(case.picture).rgb for case in cases])


def anyone(cases: list[Case]) -> np.ndarray:
    """Where the drawings show a figure, whoever it is. (n, 32, W) bool"""
    return np.stack([render(case.picture).subject > 0 for case in cases])


def background(cases: list[Case], margin: int = 2) -> np.ndarray:
    """Where no figure of the true drawing is, nor `margin` art pixels around. (n, 32, W) bool"""
    side = 2 * margin + 1
    around = np.pad(anyone(cases), ((0, 0), (margin, margin), (margin, margin)))
    near = np.lib.stride_tricks.sliding_window_view(around, (side, side), (1, 2)).max((-1, -2))
    return np.logical_not(near)


def change(rgb: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """The mean difference of pixels, of 255. rgb, other (n, 32, W, 3) uint8, where (n, 32, W) bool"""
    return round(float(np.abs(rgb.astype(float) - other).mean(-1)[where].mean()), 2)
