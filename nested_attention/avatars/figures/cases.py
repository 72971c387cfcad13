"""What is evaluated: held-out subjects in combinations of prompt attributes that no training picture had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..drawing.identity import KINDS, Identity, Split, sample
from ..drawing.picture import Figure, Picture, crop, render
from ..drawing.pose import window
from ..drawing.prompts import caption, prompt, sample_picture
from ..drawing.references import sample_crop


@dataclass(frozen=True, eq=False)
class Case:
    """One picture to be generated: the drawing a perfect model would match, its words, references, seed."""

    picture: Picture
    prompt: str
    described: str
    references: tuple[np.ndarray, ...]  # (20, 20, 3) uint8 a subject, from a picture of its own
    seed: int

    def figure(self, word: str) -> Figure:
        """The figure of the subject that `word` names."""
        return next(f for f in self.picture.figures if isinstance(f.identity, KINDS[word]))

    def reference(self, word: str) -> np.ndarray:
        return self.references[self.picture.figures.index(self.figure(word))]


def draw_cases(words: tuple[str, ...], number: int, seed: int, split: Split = "heldout") -> list[Case]:
    """`number` cases with one subject of the split a word, all of them different."""
    rng = np.random.default_rng(seed)
    seen: set[Identity] = set()
    cases: list[Case] = []
    while len(cases) < number:
        identities = tuple(sample(KINDS[word], rng, split) for word in words)  # type: ignore[type-var]
        if len(set(identities) - seen) < len(identities):
            continue
        seen.update(identities)
        picture = sample_picture(rng, identities, split=split)
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


def windows(pictures_rgb: np.ndarray, cases: list[Case], word: str) -> np.ndarray:
    """The place of one subject in each picture. (n, 32, 32, 3) → (n, 20, 20, 3)"""
    corners = [window(case.figure(word).placement) for case in cases]
    return np.stack([crop(rgb, corner) for rgb, corner in zip(pictures_rgb, corners, strict=True)])


def true_drawings(cases: list[Case]) -> np.ndarray:
    """What a perfect model would draw. (n, 32, 32, 3) uint8"""
    return np.stack([render(case.picture).rgb for case in cases])


def anyone(cases: list[Case]) -> np.ndarray:
    """Where the drawings show a figure, whoever it is. (n, 32, 32) bool"""
    return np.stack([render(case.picture).subject > 0 for case in cases])
