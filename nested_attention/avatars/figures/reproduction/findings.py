"""From the figures of single cases to findings: differences in pairs, with what could have been shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
NOT_SHOWN: Verdict = "no difference shown"
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
    choices, seeds, first, second = pairs
    change = _differences(first, second)
    mean = _over_cases(change)
    tests = []
    if claim.second is None:  # a rate beside one half
        hits = np.concatenate(first)
        rate = wilson(int(hits.sum()), len(hits))
        mean = {**mean, "low": rate["low"] - 0.5, "high": rate["high"] - 0.5}
    elif MEASURES[claim.measure].hits:
        tests = [
            mcnemar(torch.from_numpy(a > 0.5), torch.from_numpy(b > 0.5))
            for a, b in zip(first, second, strict=True)
        ]
    low, high = _ends(mean)
    least = tests[0]["smallest"] if len(tests) == 1 else 0.0
    if len({choice.keeps for choice in choices}) > 1:
        verdict = _by_prompt(summary, claim, choices, seeds)
    else:
        verdict = _verdict(claim, mean["mean"] > 0) if _is_shown(mean, change, tests) else NOT_SHOWN
    return Finding(
        claim,
        verdict,
        tuple(_label(each, choice) for each, choice in zip(_looked_at(claim), choices, strict=True)),
        (float(np.mean(first)), float(np.mean(second))),
        mean,
        tuple(float(each.mean()) for each in change),
        tuple(tests),
        max((high - low) / 2, least),
    )


def find_all(summary: Summary) -> list[Finding]:
    return [find(summary, claim) for claim in CLAIMS]


def _looked_at(claim: Claim) -> list[Shown]:
    return [claim.first, *([claim.second] if claim.second else [])]


def _pairs(
    summary: Summary, claim: Claim
) -> tuple[list[Choice], tuple[int, ...], list[np.ndarray], list[np.ndarray]] | None:
    """What is looked at, of which seeds, and both measures of each seed's cases; of the same cases."""
    shown = _looked_at(claim)
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
    values = _values(summary, claim, choices, seeds, claim.measure)
    if len(values) == 1:
        return choices, seeds, values[0], [np.full(len(value), 0.5) for value in values[0]]
    return choices, seeds, values[0], values[1]


def _values(
    summary: Summary, claim: Claim, choices: list[Choice], seeds: tuple[int, ...], measure: str
) -> list[list[np.ndarray]]:
    """A measure of each that is looked at and of each seed, without the cases that chose a value: (n,)"""
    shown = _looked_at(claim)
    tested = any(each.drawing is None for each in shown)
    cases = slice(summary.size.development if tested else 0, None)
    found = []
    for each, choice in zip(shown, choices, strict=True):
        read = [summary.values(replace(each.run, seed=s), choice.drawing, measure) for s in seeds]
        found.append([value[cases] for value in read if value is not None])
    return found


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


def _differences(first: list[np.ndarray], second: list[np.ndarray]) -> list[np.ndarray]:
    """Of each seed: (n,)"""
    return [a - b for a, b in zip(first, second, strict=True)]


def _over_cases(change: list[np.ndarray]) -> Mean:
    """With an interval over cases, which seeds share."""
    return clustered_mean(
        np.concatenate(change).tolist(), [str(i) for each in change for i in range(len(each))]
    )


def _ends(mean: Mean) -> tuple[float, float]:
    low, high = (mean["mean"] if end is None else end for end in (mean["low"], mean["high"]))
    return low, high


def _is_shown(mean: Mean, change: list[np.ndarray], tests: Sequence[Discordance] = ()) -> bool:
    """Whether the interval excludes 0, every seed has the mean's sign, and, with a single seed of hits,
    McNemar's test says so too."""
    low, high = _ends(mean)
    alike = all(np.sign(each.mean()) == np.sign(mean["mean"]) for each in change)
    shown = (low > 0 or high < 0) and alike
    return shown and (len(tests) != 1 or tests[0]["p"] < LEVEL)


def _by_prompt(summary: Summary, claim: Claim, choices: list[Choice], seeds: tuple[int, ...]) -> Verdict:
    """Of two at their chosen values of which one keeps the prompt, that one is ahead, where it is shown to
    keep more of the prompt than the other: which keeps it was told by few cases."""
    first, second = _values(summary, claim, choices, seeds, "prompt")
    change = _differences(first, second)
    mean = _over_cases(change)
    keeps = choices[0].keeps
    return _verdict(claim, keeps) if _is_shown(mean, change) and (mean["mean"] > 0) == keeps else NOT_SHOWN


def _verdict(claim: Claim, ahead: bool) -> Verdict:
    """Where a difference is shown. ahead: whether the first is."""
    if claim.expected is None:
        return "shown"
    return "agrees" if ahead == (claim.expected == "higher") else "disagrees"
