"""From the figures of single cases to findings: differences in pairs, with what could have been shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ....evaluation.statistics import LEVEL, Discordance, Mean, clustered_mean, mcnemar, wilson
from ....training.mechanisms import mechanism
from ..judges import NEAREST
from .claims import CLAIMS, Claim, Shown, seeds_of
from .drawings import EXPRESSION, Figures
from .matrix import Drawing, Run, Size, curve

Verdict = Literal["agrees", "disagrees", "no difference shown", "shown", "not measured"]
PROMPT_LOSS = 0.02
"""How much of the prompt a value of the control may cost against the base model, to be chosen."""


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


def _asked_for(figures: Figures) -> np.ndarray | None:
    """The share of the prompt's attributes that each picture shows, without the expression."""
    told = [digits(hits) for name, hits in figures.get("prompt", {}).items() if name != EXPRESSION]
    return np.mean(told, axis=0) if told else None


def _attribute(name: str) -> Callable[[Figures], np.ndarray | None]:
    return lambda figures: digits(figures["prompt"][name]) if name in figures.get("prompt", {}) else None


MEASURES: dict[str, Measure] = {
    "identity": Measure("identity", _hits("identity"), hits=True),
    NEAREST: Measure("identity, nearest drawing", _hits(NEAREST), hits=True),
    "twins": Measure("among near-twins", _hits("twins"), hits=True),
    "prompt": Measure("prompt", _asked_for),
    EXPRESSION: Measure("expression", _attribute(EXPRESSION), hits=True),
    "style": Measure("style", _attribute("style"), hits=True),
    "outside": Measure("change outside, of 255", _numbers("outside"), share=False),
    "error": Measure("error of the prediction", _numbers("error"), share=False),
    "person": Measure("person", _hits("person"), hits=True),
    "pet": Measure("pet", _hits("pet"), hits=True),
    "both": Measure("resembles both", _hits("both"), hits=True),
    "moved": Measure("moved towards the noun", _hits("moved"), hits=True),
}


@dataclass(frozen=True)
class Choice:
    """A drawing that is looked at. keeps: whether it costs no more of the prompt than PROMPT_LOSS."""

    drawing: Drawing
    keeps: bool = True


@dataclass(frozen=True)
class Summary:
    """The figures of all runs of a place, as they are committed.

    runs: by name, each with `run`, `training` and `drawn`. references: by words, the base model's figures and
    those of the true drawings.
    """

    size: Size
    runs: dict[str, dict[str, Any]]
    references: dict[str, dict[str, Figures]]

    def figures(self, run: Run, drawing: Drawing) -> Figures | None:
        return self.runs.get(run.name, {}).get("drawn", {}).get(drawing.key)

    def values(self, run: Run, drawing: Drawing, measure: str) -> np.ndarray | None:
        """A measure of every case, (n,); None where it is not measured yet."""
        found = self.figures(run, drawing)
        return None if found is None else MEASURES[measure].read(found)

    def chosen(self, run: Run, seeds: tuple[int, ...]) -> Choice | None:
        """The value of the control that keeps most of the identity on the development cases, of those that
        cost no more of the prompt than PROMPT_LOSS there; the one that costs least, if all cost more. None
        where a value is not measured yet."""
        first = slice(0, self.size.development)
        base = self.references.get(run.words[0], {}).get("base")
        told = MEASURES["prompt"].read(base) if base else None
        found: list[tuple[bool, float, Choice]] = []
        for drawing in curve(run.mechanism, run.words[0]):
            of_seeds = [replace(run, seed=seed) for seed in seeds]
            identity = [self.values(each, drawing, "identity") for each in of_seeds]
            prompt = [self.values(each, drawing, "prompt") for each in of_seeds]
            if told is None or any(value is None for value in (*identity, *prompt)):
                return None
            kept = float(np.mean([value[first] for value in prompt if value is not None]))
            within = kept >= float(told[first].mean()) - PROMPT_LOSS
            good = float(np.mean([value[first] for value in identity if value is not None]))
            found.append((within, good if within else kept, Choice(drawing, within)))
        return max(found, key=lambda each: each[:2])[2]


@dataclass(frozen=True)
class Finding:
    """What the figures say of a claim.

    values: what the two are called. means: of the first and the second. difference: the mean over cases and
    seeds, with an interval over cases. seeds: the mean difference at each. tests: McNemar's, for hits, at
    each. smallest: the smallest difference that the counts could have shown.
    """

    claim: Claim
    verdict: Verdict
    values: tuple[str, ...] = ()
    means: tuple[float, float] = (0.0, 0.0)
    difference: Mean | None = None
    seeds: tuple[float, ...] = ()
    tests: tuple[Discordance, ...] = ()
    smallest: float = 0.0


def find(summary: Summary, claim: Claim) -> Finding:
    """The finding of one claim, from as many of its seeds as are measured."""
    pairs = _pairs(summary, claim)
    if pairs is None:
        return Finding(claim, "not measured")
    choices, first, second = pairs
    change = [a - b for a, b in zip(first, second, strict=True)]
    numbers = np.concatenate(change).tolist()
    cases = [str(i) for each in change for i in range(len(each))]
    mean = clustered_mean(numbers, cases)
    tests = []
    if claim.second is None:  # a rate beside one half
        rate = wilson(int(np.concatenate(first).sum()), len(numbers))
        mean = {**mean, "low": rate["low"] - 0.5, "high": rate["high"] - 0.5}
    elif MEASURES[claim.measure].hits:
        tests = [
            mcnemar(torch.from_numpy(a > 0.5), torch.from_numpy(b > 0.5))
            for a, b in zip(first, second, strict=True)
        ]
    low, high = (mean["mean"] if x is None else x for x in (mean["low"], mean["high"]))
    least = tests[0]["smallest"] if len(tests) == 1 else 0.0
    shown = [claim.first, *([claim.second] if claim.second else [])]
    return Finding(
        claim,
        _verdict(claim, choices, mean["mean"], low, high, change, tests),
        tuple(_label(each, choice) for each, choice in zip(shown, choices, strict=True)),
        (float(np.mean(first)), float(np.mean(second))),
        mean,
        tuple(float(each.mean()) for each in change),
        tuple(tests),
        max((high - low) / 2, least),
    )


def find_all(summary: Summary) -> list[Finding]:
    return [find(summary, claim) for claim in CLAIMS]


def _pairs(summary: Summary, claim: Claim) -> tuple[list[Choice], list[np.ndarray], list[np.ndarray]] | None:
    """What is looked at, and both measures of each seed's cases; of the same seeds and cases."""
    shown = [claim.first, *([claim.second] if claim.second else [])]
    seeds = tuple(
        seed
        for seed in seeds_of(claim)
        if all(_measured(summary, each, seed, claim.measure) for each in shown)
    )
    if not seeds:
        return None
    choices = []
    for each in shown:
        choice = Choice(each.drawing) if each.drawing else summary.chosen(each.run, seeds)
        if choice is None:
            return None
        choices.append(choice)
    tested = any(each.drawing is None for each in shown)
    cases = slice(summary.size.development if tested else 0, None)
    values: list[list[np.ndarray]] = []
    for each, choice in zip(shown, choices, strict=True):
        found = [summary.values(replace(each.run, seed=s), choice.drawing, claim.measure) for s in seeds]
        values.append([value[cases] for value in found if value is not None])
    if len(values) == 1:
        return choices, values[0], [np.full(len(value), 0.5) for value in values[0]]
    return choices, values[0], values[1]


def _measured(summary: Summary, shown: Shown, seed: int, measure: str) -> bool:
    run = replace(shown.run, seed=seed)
    drawings = curve(run.mechanism) if shown.drawing is None else (shown.drawing,)
    return all(summary.values(run, drawing, measure) is not None for drawing in drawings)


def _label(shown: Shown, choice: Choice) -> str:
    control = mechanism(shown.run.mechanism).control
    told = []
    if shown.drawing is None and control:
        told.append(f"{control.symbol} = {choice.drawing.value:g}")
    if not choice.keeps:
        told.append("costs more of the prompt")
    return f"{shown.label} ({', '.join(told)})" if told else shown.label


def _verdict(
    claim: Claim,
    choices: list[Choice],
    mean: float,
    low: float,
    high: float,
    change: list[np.ndarray],
    tests: list[Discordance],
) -> Verdict:
    """A difference is shown where its interval excludes 0, every seed has its sign, and, with a single seed
    of hits, McNemar's test says so too. Of two at their chosen values of which one keeps the prompt, that one
    is ahead."""
    keeps = [choice.keeps for choice in choices]
    if len(set(keeps)) > 1:
        return "agrees" if keeps[0] == (claim.expected == "higher") else "disagrees"
    alike = all(np.sign(each.mean()) == np.sign(mean) for each in change)
    shown = (low > 0 or high < 0) and alike
    if len(tests) == 1:
        shown = shown and tests[0]["p"] < LEVEL
    if not shown:
        return "no difference shown"
    if claim.expected is None:
        return "shown"
    return "agrees" if (mean > 0) == (claim.expected == "higher") else "disagrees"
