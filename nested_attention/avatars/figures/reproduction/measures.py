"""What is read of a drawing's figures, case by case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..judges import NEAREST
from .drawings import EXPRESSION, Figures
from .matrix import NOUNS


@dataclass(frozen=True)
class Measure:
    """A figure of a case. read: None where a drawing does not have it."""

    title: str
    read: Callable[[Figures], np.ndarray | None]
    share: bool = True  # in percent; else a number
    hits: bool = False  # 0 or 1 a case


def digits(hits: str) -> np.ndarray:
    return np.fromiter(map(int, hits), float)


def _hits(name: str) -> Callable[[Figures], np.ndarray | None]:
    return lambda figures: digits(figures[name]) if name in figures else None


def _numbers(name: str) -> Callable[[Figures], np.ndarray | None]:
    return lambda figures: np.asarray(figures[name]) if name in figures else None


def _asked_for(*without: str) -> Callable[[Figures], np.ndarray | None]:
    """The share of the prompt's attributes that each picture shows."""

    def read(figures: Figures) -> np.ndarray | None:
        told = [digits(hits) for name, hits in figures.get("prompt", {}).items() if name not in without]
        return np.mean(told, axis=0) if told else None

    return read


def _each(figures: Figures) -> np.ndarray | None:
    """The share of a picture's two subjects that is recognised."""
    both = [digits(figures[word]) for word in ("person", "pet") if word in figures]
    return np.mean(both, axis=0) if both else None


def _fits(noun: str) -> Callable[[Figures], np.ndarray | None]:
    return lambda figures: np.asarray(figures["fits"][noun]) if noun in figures.get("fits", {}) else None


def _attribute(name: str) -> Callable[[Figures], np.ndarray | None]:
    return lambda figures: digits(figures["prompt"][name]) if name in figures.get("prompt", {}) else None


MEASURES: dict[str, Measure] = {
    "identity": Measure("identity", _hits("identity"), hits=True),
    NEAREST: Measure("identity, nearest drawing", _hits(NEAREST), hits=True),
    "twins": Measure("among near-twins", _hits("twins"), hits=True),
    "prompt": Measure("prompt", _asked_for(EXPRESSION)),
    "asked": Measure("prompt and expression", _asked_for()),
    EXPRESSION: Measure("expression", _attribute(EXPRESSION), hits=True),
    "style": Measure("style", _attribute("style"), hits=True),
    "clothes": Measure("clothes", _attribute("clothes"), hits=True),
    "outside": Measure("change outside, of 255", _numbers("outside"), share=False),
    "error": Measure("error of the prediction", _numbers("error"), share=False),
    "person": Measure("person", _hits("person"), hits=True),
    "pet": Measure("pet", _hits("pet"), hits=True),
    "each": Measure("each of the two", _each),
    "first": Measure("resembles the first", _hits("first"), hits=True),
    "second": Measure("resembles the second", _hits("second"), hits=True),
    "both": Measure("resembles both", _hits("both"), hits=True),
    "own": Measure("the subject still", _hits("own"), hits=True),
    **{f"fits {noun}": Measure(f"fits “{noun}”", _fits(noun), share=False) for noun in NOUNS},
}
