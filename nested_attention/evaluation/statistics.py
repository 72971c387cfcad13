"""Rates with their uncertainty, and retrieval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

import torch
from scipy.special import stdtrit
from torch import Tensor


class Rate(TypedDict):
    """A share of successes, its 95 % Wilson interval, and the number of trials."""

    rate: float
    low: float
    high: float
    trials: int


def wilson(successes: int, trials: int) -> Rate:
    """The Wilson score interval of a binomial rate. Raises ValueError without trials."""
    if trials <= 0:
        raise ValueError(f"a rate needs at least one trial; found {trials}")
    share = successes / trials
    low, high = _wilson(share, trials)
    return {"rate": share, "low": low, "high": high, "trials": trials}


def _wilson(share: float, trials: float) -> tuple[float, float]:
    """The ends of Wilson's interval of a share of that many trials, which need not be a whole number."""
    z = 1.96  # of a normal distribution, two-sided at 95 %
    scale = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, center - half), min(1.0, center + half)


def rate(hits: Tensor) -> Rate:
    """A rate from (n,) bool."""
    return wilson(int(hits.sum()), len(hits))


class Discordance(TypedDict):
    """Two rates on the same trials: how many trials only one of them hits, the exact two-sided p-value of
    McNemar's test, and the smallest difference of the rates that the counts could have shown at `LEVEL`."""

    only_first: int
    only_second: int
    p: float
    smallest: float


LEVEL = 0.05
"""Of tests, two-sided; intervals are at 1 − LEVEL."""


def mcnemar(first: Tensor, second: Tensor) -> Discordance:
    """Compare the hits of two rates (n,) bool each, trial by trial. Raises ValueError for unequal lengths.

    Where both hit or both miss, a trial says nothing. Under no difference, each of the m others is as likely
    to be hit by the one as by the other: p is of a binomial with 1/2. The smallest difference is that of the
    least one-sided split of m trials, at least of as many as can be significant at all, that has p < LEVEL.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise ValueError(f"hits of the same cases are equally many; found {len(first)} and {len(second)}")

    def p_of(lesser: int, trials: int) -> float:
        return float(binomtest(lesser, trials, 0.5).pvalue) if trials else 1.0

    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    m = b + c
    while p_of(0, m) >= LEVEL:
        m += 1
    lesser = max(k for k in range(m // 2 + 1) if p_of(k, m) < LEVEL)
    smallest = (m - 2 * lesser) / len(first)
    return {"only_first": b, "only_second": c, "p": p_of(min(b, c), b + c), "smallest": smallest}


def as_text(hits: Tensor) -> str:
    """(n,) bool → "1" and "0" case by case, as documents keep them."""
    return "".join("1" if hit else "0" for hit in hits.tolist())


def from_text(text: str) -> Tensor:
    """`as_text` back. (n,) bool"""
    return torch.tensor([hit == "1" for hit in text])


def top1(similarity: Tensor, truth: Tensor) -> Tensor:
    """Whether the true candidate beats every other one. similarity (n, candidates), truth (n,) → (n,) bool

    A tie with a wrong candidate is a miss.
    """
    own = similarity.gather(1, truth[:, None])  # (n, 1)
    others = similarity.scatter(1, truth[:, None], -torch.inf)
    return (own > others.max(dim=1, keepdim=True).values).view(-1)


def balanced(hits: Tensor, strata: Tensor) -> Rate:
    """The mean of the strata's rates, with its 95 % interval. hits (n,) bool, strata (n,) int64

    The interval is Wilson's of k² / Σ 1/nᵢ trials, for k strata of nᵢ: as many as leave a plain rate as
    uncertain as this mean, if all strata are alike. So strata in which all hit are uncertain too. Raises
    ValueError without hits.
    """
    if not len(hits):
        raise ValueError("a rate needs at least one trial; found 0")
    groups = [hits[strata == value] for value in strata.unique()]
    share = sum(float(group.double().mean()) for group in groups) / len(groups)
    low, high = _wilson(share, len(groups) ** 2 / sum(1 / len(group) for group in groups))
    return {"rate": share, "low": low, "high": high, "trials": len(hits)}


def repeated(hits: Sequence[Tensor]) -> Rate:
    """The mean rate of the same n trials, each made several times, with its 95 % interval. hits: (n,) bool of
    each time.

    The interval is Wilson's of as many trials as leave a plain rate as uncertain as this mean is over the n:
    at least n, for a trial made again says no less, and at most all. So a rate of none is uncertain too.
    Raises ValueError without hits.
    """
    if not hits or not len(hits[0]):
        raise ValueError("a rate needs at least one trial; found 0")
    means = torch.stack([each.double() for each in hits]).mean(dim=0)  # of each trial
    share, number = float(means.mean()), len(means)
    variance = float(means.var()) / number if number > 1 else 0.0
    alike = share * (1 - share) / variance if variance else 0.0
    low, high = _wilson(share, min(max(alike, number), number * len(hits)))
    return {"rate": share, "low": low, "high": high, "trials": number * len(hits)}


FEWEST = 3
"""Subjects from which on a mean has an interval: that of two would reach 13 standard errors to each side."""


class Mean(TypedDict):
    """A mean over subjects, its 95 % interval (None with fewer than FEWEST that share nobody), and what it is
    of."""

    mean: float
    low: float | None
    high: float | None
    pictures: int
    subjects: int


def clustered_mean(values: Sequence[float], clusters: Sequence[str | frozenset[str]]) -> Mean:
    """The mean of the subjects' means, with Student's t interval over subjects.

    clusters: the subject of each picture, or everybody who is in it. Pictures of one subject are alike, so
    that each subject counts as one observation, however many pictures it has. The interval is at most as
    often wrong as it says where subjects' means differ in variance, as those of few and of many pictures do
    (Ibragimov and Müller, 2010). Where subjects share people, the standard error is the jackknife's over
    people, and the degrees of freedom are of the subjects that share nobody.

    Raises ValueError without values.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"a mean needs values, each with its subject; found {len(values)}, {len(clusters)}")
    groups: dict[frozenset[str], list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        who = frozenset([cluster]) if isinstance(cluster, str) else cluster
        groups.setdefault(who, []).append(value)
    means = torch.tensor([sum(group) / len(group) for group in groups.values()], dtype=torch.float64)
    mean, number, apart = float(means.mean()), len(groups), _sharing_nobody(groups)
    low = high = None
    if apart >= FEWEST:
        error = _jackknife(means, list(groups)) if apart < number else float(means.std()) / math.sqrt(number)
        half = float(stdtrit(apart - 1, 1 - LEVEL / 2)) * error
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "pictures": len(values), "subjects": number}


def _sharing_nobody(groups: Iterable[frozenset[str]]) -> int:
    """How many of the groups of people share nobody, taken as they come, the smallest first."""
    found, number = set[str](), 0
    for group in sorted(groups, key=len):
        if found.isdisjoint(group):
            found |= group
            number += 1
    return number


def _jackknife(means: Tensor, groups: Sequence[frozenset[str]]) -> float:
    """The standard error of the mean of `means` (n,), each of a group of people: everybody is left out once,
    with all of their groups. Those who are always together are left out together.

    It is too large rather than too small: what two people have in common counts for each of them.
    """
    everybody = sorted(frozenset().union(*groups))
    of_whom = {tuple(person in group for group in groups) for person in everybody}
    without = [float(means[~torch.tensor(rows)].mean()) for rows in sorted(of_whom)]
    squares = sum((one - float(means.mean())) ** 2 for one in without)
    return math.sqrt(squares * (len(without) - 1) / len(without))
