"""Contact sheets of the page: the same cases, drawn by each run of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ....inspection.draw import Cell, enlarged, sheet
from ..cases import Case
from .drawings import CASE_SEEDS, Bench, further_crops
from .matrix import QUESTIONS, Asked, Drawing, Question, Run, base_pictures, pictures_of, words_of
from .page import comparable, told

CASES = (0, 1)
"""Which cases are shown: the first ones, whatever came out."""
SIDE = 128

_LETTERS = str.maketrans({"α": "alpha", "λ": "lambda", "“": '"', "”": '"'})  # the font has no Greek


Few = Mapping[str, np.ndarray]
"""By the name of a drawing, the pictures of CASES, (2, H, W, 3) uint8."""


def shown(bench: Bench, before: Few) -> dict[str, np.ndarray]:
    """The pictures of all sheets. before: those that are published, of what was not drawn here."""
    names = [base_pictures(words) for words in CASE_SEEDS]
    for question in QUESTIONS:
        names += [pictures_of(run, each) for run, drawings in question.first for each in drawings]
    found = {name: before[name] for name in names if name in before}
    drawn = {name: bench.pictures(name) for name in names}
    return found | {name: rgb[list(CASES)] for name, rgb in drawn.items() if rgb is not None}


def contact_sheet(bench: Bench, question: Question, pictures: Few) -> np.ndarray | None:
    """For each case its references and the base model's picture, then what each run of the first seed drew, a
    row each; None where there is nothing to compare. pictures: what `shown` gives. (H, W, 3) uint8"""
    asked = question.first
    if not comparable(question, lambda run, each: pictures_of(run, each) in pictures):
        return None
    sets = dict.fromkeys(words_of(each) for _, drawings in asked for each in drawings if each.kind != "error")
    rows: list[list[Cell]] = []
    for index, number in enumerate(CASES):
        for words in sets:
            found = [_drawn(pictures, run, drawings, words, index) for run, drawings in asked]
            found = [cells for cells in found if cells]
            given = _given(asked, bench.cases(words), number, pictures, words, index)
            if found and max(map(len, found)) == 1:  # a row is enough
                rows.append([*given, *(cell for cells in found for cell in cells)])
            elif found:
                rows += [given, *found]
    return sheet(rows) if rows else None


def _drawn(
    pictures: Few, run: Run, drawings: Sequence[Drawing], words: tuple[str, ...], index: int
) -> list[Cell]:
    """A case of these words in each drawing of a run that shows them."""
    asked = [each for each in drawings if each.kind != "error" and words_of(each) == words]
    found = [(each, pictures.get(pictures_of(run, each))) for each in asked]
    return [Cell(enlarged(rgb[index], SIDE), _lines(run, each)) for each, rgb in found if rgb is not None]


def _given(
    asked: Asked, cases: list[Case], number: int, pictures: Few, words: tuple[str, ...], index: int
) -> list[Cell]:
    """The pictures that a case's subjects are taken from, all of those that some drawing takes, and what the
    base model draws."""
    crops = [(cases[number].reference(word), f"the {word}") for word in words]
    shown = [each for _, drawings in asked for each in drawings]
    if any(each.kind == "mixed" for each in shown):
        crops += [(cases[(number + 1) % len(cases)].reference(words[0]), "mixed with")]
    most = max((int(each.value) for each in shown if each.kind == "references"), default=1)
    crops += [(each[number], "the same") for each in further_crops(cases, words[0], most - 1)]
    cells = [Cell(enlarged(crop, SIDE), (label,)) for crop, label in crops]
    base = pictures.get(base_pictures(words))
    return cells if base is None else [*cells, Cell(enlarged(base[index], SIDE), ("base model",))]


def _lines(run: Run, drawing: Drawing) -> tuple[str, ...]:
    """The mechanism, what is special about the run, and what is drawn."""
    name, _, special = run.title.translate(_LETTERS).partition(", ")
    return tuple(line for line in (name, special, told(run, drawing).translate(_LETTERS)) if line)
