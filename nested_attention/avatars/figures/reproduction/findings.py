"""From the figures of single cases to findings: differences in pairs, with what could have been shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ....evaluation.statistics import LEVEL, Discordance, Mean, clustered_mean, mcnemar, wilson
from ....training.mechanisms import mechanism
from .claims import CLAIMS, Claim, Shown, seeds_of
from .drawings import Figures
from .matrix import Drawing, Run, Size, curve, plan
from .measures import MEASURES

Verdict = Literal["agrees", "disagrees", "no difference shown", "cannot be told", "shown", "not measured"]
NOT_SHOWN: Verdict = "no difference shown"
PROMPT_LOSS = 0.02
"""How much of what is asked for a value of the control may cost against the base model, to be chosen."""
FEWEST = 6
"""Cases that must differ for hits to tell anything: five of five have p = 0.06."""


Seeds = tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """A drawing that is looked at. keeps: whether it costs no more of what is asked for than PROMPT_LOSS."""

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

    def mean(
        self, run: Run, drawing: Drawing, measure: str, seeds: Seeds, cases: int | None = None
    ) -> float | None:
        """Of a measure over seeds and the first cases, by default all; None where one is not measured yet."""
        found = [self.values(replace(run, seed=seed), drawing, measure) for seed in seeds]
        there = [value[:cases] for value in found if value is not None]
        return float(np.mean(there)) if len(there) == len(found) else None

    def chosen(self, run: Run, seeds: Seeds) -> Choice | None:
        """The value of the control that keeps most of the identity on the development cases, of those that
        cost no more of what is asked for than PROMPT_LOSS there; the one that costs least, if all cost more;
        of equals the least. None where a value is not measured yet."""
        first = self.size.development
        base = self.references.get(run.words[0], {}).get("base")
        told = MEASURES["asked"].read(base) if base else None
        found: list[tuple[bool, float, float, Choice]] = []
        for drawing in curve(run.mechanism, run.words[0]):
            good, kept = (self.mean(run, drawing, name, seeds, first) for name in ("identity", "asked"))
            if told is None or good is None or kept is None:
                return None
            within = kept >= float(told[:first].mean()) - PROMPT_LOSS
            found.append((within, good if within else kept, -drawing.value, Choice(drawing, within)))
        return max(found, key=lambda each: each[:3])[3]

    def alike(self, run: Run, like: float, seeds: Seeds) -> Choice | None:
        """The value of the control whose identity is nearest to `like`, of equals the least. None where a
        value is not measured yet."""
        found: list[tuple[float, float, Choice]] = []
        for drawing in curve(run.mechanism, run.words[0]):
            good = self.mean(run, drawing, "identity", seeds)
            if good is None:
                return None
            found.append((round(abs(good - like), 9), drawing.value, Choice(drawing)))
        return min(found, key=lambda each: each[:2])[2]

    def choice(self, shown: Shown, seeds: Seeds) -> Choice | None:
        """The drawing that is looked at; None where that is not told yet."""
        if shown.drawing is not None:
            return Choice(shown.drawing)
        if shown.like is None:
            return self.chosen(shown.run, seeds)
        target = self.choice(shown.like, seeds)
        if target is None:
            return None
        like = self.mean(shown.like.run, target.drawing, "identity", seeds)
        return None if like is None else self.alike(shown.run, like, seeds)

    def spread(self, drawings: Collection[Drawing], measure: str) -> float:
        """The largest difference between two seeds of anything that is trained with several, in one of these
        drawings: what the training itself may make. 0 where there are no two."""
        found: dict[tuple[Run, Drawing], list[float]] = {}
        for run in plan():
            for drawing in drawings:
                value = self.values(run, drawing, measure)
                if value is not None:
                    found.setdefault((replace(run, seed=0), drawing), []).append(float(value.mean()))
        return max((max(means) - min(means) for means in found.values()), default=0.0)


@dataclass(frozen=True)
class Finding:
    """What the figures say of a claim.

    values: what the two are called. means: of the first and the second. difference: the mean over cases and
    seeds, with an interval over cases. seeds: the mean difference at each. tests: McNemar's, for hits, at
    each. differ: how many cases differ at any seed. spread: what two seeds of the same training may differ
    by; 0 where both are of one training. smallest: the smallest difference that could have been shown. asked:
    where one of the two costs too much of what is asked for, the difference in that, which decides.
    """

    claim: Claim
    verdict: Verdict
    values: tuple[str, ...] = ()
    means: tuple[float, float] = (0.0, 0.0)
    difference: Mean | None = None
    seeds: tuple[float, ...] = ()
    tests: tuple[Discordance, ...] = ()
    differ: int = 0
    spread: float = 0.0
    smallest: float = 0.0
    asked: Mean | None = None


def find(summary: Summary, claim: Claim) -> Finding:
    """The finding of one claim, from as many of its seeds as are measured."""
    pairs = _pairs(summary, claim)
    if pairs is None:
        return Finding(claim, "not measured")
    choices, seeds, first, second = pairs
    change = _differences(first, second)
    mean, tests, measure = over_cases(change), [], MEASURES[claim.measure]
    if claim.second is None:  # a rate beside one half
        hits = np.concatenate(first)
        rate = wilson(int(hits.sum()), len(hits))
        mean = {**mean, "low": rate["low"] - 0.5, "high": rate["high"] - 0.5}
    elif measure.hits:
        tests = [
            mcnemar(torch.from_numpy(a > 0.5), torch.from_numpy(b > 0.5))
            for a, b in zip(first, second, strict=True)
        ]
    differ = int(np.any(np.stack(change) != 0, axis=0).sum())
    spread = 0.0
    if claim.second is not None and claim.second.run != claim.first.run:
        spread = summary.spread({choice.drawing for choice in choices}, claim.measure) / len(seeds) ** 0.5
    asked = None
    if len({choice.keeps for choice in choices}) > 1:
        verdict, asked = _by_prompt(summary, claim, choices, seeds)
    elif measure.share and differ < FEWEST:
        verdict = "cannot be told"
    else:
        shown = _is_shown(mean, change, tests, spread)
        verdict = _verdict(claim, mean["mean"] > 0) if shown else NOT_SHOWN
    low, high = ends(mean)
    least = tests[0]["smallest"] if len(tests) == 1 else 0.0
    return Finding(
        claim,
        verdict,
        tuple(_label(each, choice) for each, choice in zip(_looked_at(claim), choices, strict=True)),
        (float(np.mean(first)), float(np.mean(second))),
        mean,
        tuple(float(each.mean()) for each in change),
        tuple(tests),
        differ,
        spread,
        max((high - low) / 2, least, spread),
        asked,
    )


def find_all(summary: Summary) -> list[Finding]:
    return [find(summary, claim) for claim in CLAIMS]


def _looked_at(claim: Claim) -> list[Shown]:
    return [claim.first, *([claim.second] if claim.second else [])]


def _pairs(
    summary: Summary, claim: Claim
) -> tuple[list[Choice], Seeds, list[np.ndarray], list[np.ndarray]] | None:
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
        choice = summary.choice(each, seeds)
        if choice is None:
            return None
        choices.append(choice)
    values = _values(summary, claim, choices, seeds, claim.measure)
    if len(values) == 1:
        return choices, seeds, values[0], [np.full(len(value), 0.5) for value in values[0]]
    return choices, seeds, values[0], values[1]


def _values(
    summary: Summary, claim: Claim, choices: list[Choice], seeds: Seeds, measure: str
) -> list[list[np.ndarray]]:
    """A measure of each that is looked at and of each seed, without the cases that chose a value: (n,)"""
    shown = _looked_at(claim)
    tested = any(each.drawing is None and each.like is None for each in shown)
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
        told.append("costs too much of the prompt")
    return f"{shown.label} ({', '.join(told)})" if told else shown.label


def _differences(first: list[np.ndarray], second: list[np.ndarray]) -> list[np.ndarray]:
    """Of each seed: (n,)"""
    return [a - b for a, b in zip(first, second, strict=True)]


def over_cases(values: Sequence[np.ndarray]) -> Mean:
    """Of each seed's cases (n,): the mean, with an interval over cases, which seeds share."""
    cases = [str(i) for each in values for i in range(len(each))]
    return clustered_mean(np.concatenate(values).tolist(), cases)


def ends(mean: Mean) -> tuple[float, float]:
    """Of its interval; the mean itself where it has none."""
    low, high = (mean["mean"] if end is None else end for end in (mean["low"], mean["high"]))
    return low, high


def _is_shown(
    mean: Mean, change: list[np.ndarray], tests: Sequence[Discordance] = (), spread: float = 0.0
) -> bool:
    """Whether the interval excludes 0, every seed has the mean's sign, it is more than seeds differ by, and,
    with a single seed of hits, McNemar's test says so too."""
    low, high = ends(mean)
    alike = all(np.sign(each.mean()) == np.sign(mean["mean"]) for each in change)
    shown = (low > 0 or high < 0) and alike and abs(mean["mean"]) > spread
    return shown and (len(tests) != 1 or tests[0]["p"] < LEVEL)


def _by_prompt(summary: Summary, claim: Claim, choices: list[Choice], seeds: Seeds) -> tuple[Verdict, Mean]:
    """Of two at their chosen values of which one keeps what is asked for, that one is ahead, where it is
    shown to keep more of it than the other: which keeps it was told by few cases. With that difference."""
    first, second = _values(summary, claim, choices, seeds, "asked")
    change = _differences(first, second)
    mean, keeps = over_cases(change), choices[0].keeps
    shown = _is_shown(mean, change) and (mean["mean"] > 0) == keeps
    return (_verdict(claim, keeps) if shown else NOT_SHOWN), mean


def _verdict(claim: Claim, ahead: bool) -> Verdict:
    """Where a difference is shown. ahead: whether the first is."""
    if claim.expected is None:
        return "shown"
    return "agrees" if ahead == (claim.expected == "higher") else "disagrees"
