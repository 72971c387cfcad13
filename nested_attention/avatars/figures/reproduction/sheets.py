"""Contact sheets of the page: the same cases, drawn by each run of a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....inspection.draw import Cell, enlarged, sheet
from ..cases import Case
from .drawings import Bench
from .matrix import PERSON, PET, Drawing, Question, Run
from .page import told

CASES = (0, 1)
"""Which cases are shown: the first ones, whatever came out."""
SIDE = 128

_LETTERS = str.maketrans({"α": "alpha", "λ": "lambda", "“": '"', "”": '"'})  # the font has no Greek


def contact_sheet(bench: Bench, question: Question) -> np.ndarray | None:
    """For each case its references and the base model's picture, then a row for each run of the first seed;
    None where nothing is drawn yet. (H, W, 3) uint8"""
    seed = min(run.seed for run, _ in question.asked)
    rows: list[list[Cell]] = []
    shown: set[tuple[str, ...]] = set()
    for number in CASES:
        shown.clear()
        for run, drawings in question.asked:
            drawn = [(each, bench.pictures(f"{run.name} {each.key}")) for each in drawings]
            cells = [
                Cell(enlarged(rgb[number], SIDE), _lines(run, each))
                for each, rgb in drawn
                if rgb is not None and number < len(rgb)
            ]
            if run.seed != seed or not cells:
                continue
            words = _words(drawings)
            if words not in shown:
                rows.append(_given(bench, bench.cases(words), words, number))
                shown.add(words)
            rows.append(cells)
    return sheet(rows) if rows else None


def _words(drawings: Sequence[Drawing]) -> tuple[str, ...]:
    """The subjects of the cases that a row shows: of a pair, where there is one."""
    pair = any(each.kind == "pair" for each in drawings)
    return (PERSON, PET) if pair else (drawings[-1].word,)


def _given(bench: Bench, cases: Sequence[Case], words: tuple[str, ...], number: int) -> list[Cell]:
    case = cases[number]
    cells = [Cell(enlarged(case.reference(word), SIDE), (f"the {word}",)) for word in words]
    base = bench.pictures(f"base {' '.join(words)}")
    if base is not None:
        cells.append(Cell(enlarged(base[number], SIDE), ("base model",)))
    return cells


def _lines(run: Run, drawing: Drawing) -> tuple[str, ...]:
    return run.title.translate(_LETTERS), told(run, drawing).translate(_LETTERS)
