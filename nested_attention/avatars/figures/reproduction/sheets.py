"""Contact sheets of the page: the same cases, drawn by each run of a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....inspection.draw import Cell, enlarged, sheet
from ..cases import Case
from .drawings import Bench
from .matrix import Drawing, Question, Run, words_of
from .page import told

CASES = (0, 1)
"""Which cases are shown: the first ones, whatever came out."""
SIDE = 128

_LETTERS = str.maketrans({"α": "alpha", "λ": "lambda", "“": '"', "”": '"'})  # the font has no Greek


def contact_sheet(bench: Bench, question: Question) -> np.ndarray | None:
    """For each case its references and the base model's picture, then what each run of the first seed drew, a
    row each; None where nothing is drawn yet. (H, W, 3) uint8"""
    seed = min(run.seed for run, _ in question.asked)
    asked = [(run, drawings) for run, drawings in question.asked if run.seed == seed]
    sets = dict.fromkeys(words_of(each) for _, drawings in asked for each in drawings if each.kind != "error")
    rows: list[list[Cell]] = []
    for number in CASES:
        for words in sets:
            found = [_drawn(bench, run, drawings, words, number) for run, drawings in asked]
            found = [cells for cells in found if cells]
            given = _given(bench, bench.cases(words), words, number)
            if found and max(map(len, found)) == 1:  # a row is enough
                rows.append([*given, *(cell for cells in found for cell in cells)])
            elif found:
                rows += [given, *found]
    return sheet(rows) if rows else None


def _drawn(
    bench: Bench, run: Run, drawings: Sequence[Drawing], words: tuple[str, ...], number: int
) -> list[Cell]:
    """A case of these words in each drawing of a run that shows them."""
    shown = [each for each in drawings if each.kind != "error" and words_of(each) == words]
    pictures = [(each, bench.pictures(f"{run.name} {each.key}")) for each in shown]
    return [Cell(enlarged(rgb[number], SIDE), _lines(run, each)) for each, rgb in pictures if rgb is not None]


def _given(bench: Bench, cases: Sequence[Case], words: tuple[str, ...], number: int) -> list[Cell]:
    case = cases[number]
    cells = [Cell(enlarged(case.reference(word), SIDE), (f"the {word}",)) for word in words]
    base = bench.pictures(f"base {' '.join(words)}")
    if base is not None:
        cells.append(Cell(enlarged(base[number], SIDE), ("base model",)))
    return cells


def _lines(run: Run, drawing: Drawing) -> tuple[str, ...]:
    """The mechanism, what is special about the run, and what is drawn."""
    name, _, special = run.title.translate(_LETTERS).partition(", ")
    return tuple(line for line in (name, special, told(run, drawing).translate(_LETTERS)) if line)
