"""Rates with their uncertainty, and retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor


class Rate(TypedDict):
    """A share of successes, its 95 % Wilson interval, and the number of trials."""

    rate: float
    low: float
    high: float
    trials: int


def wilson(successes: int, trials: int, z: float = 1.96) -> Rate:
    """The Wilson score interval of a binomial rate. Raises ValueError without trials."""
    if trials <= 0:
        raise ValueError(f"a rate needs at least one trial; found {trials}")
    share = successes / trials
    scale = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return {"rate": share, "low": max(0.0, center - half), "high": min(1.0, center + half), "trials": trials}


def rate(hits: Tensor) -> Rate:
    """A rate from (n,) bool."""
    return wilson(int(hits.sum()), len(hits))


class Difference(TypedDict):
    """A mean of paired differences, its 95 % interval, the share of pairs above zero, the number of pairs."""

    mean: float
    low: float
    high: float
    above: float
    pairs: int


def paired(differences: Tensor, z: float = 1.96) -> Difference:
    """The mean of paired differences (n,) with a normal interval. Raises ValueError for fewer than 2."""
    if len(differences) < 2:
        raise ValueError(f"an interval needs at least two pairs; found {len(differences)}")
    values = differences.double()
    mean, half = float(values.mean()), z * float(values.std()) / math.sqrt(len(values))
    above = float((values > 0).double().mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "above": above, "pairs": len(values)}


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


def balanced(hits: Tensor, strata: Tensor, resamples: int = 1000) -> Rate:
    """The mean of the strata's rates, with a bootstrap interval. hits (n,) bool, strata (n,) int64

    Hits are drawn with replacement within each stratum (seeded). Raises ValueError without hits.
    """
    if not len(hits):
        raise ValueError("a rate needs at least one trial; found 0")
    groups = [hits[strata == value].double() for value in strata.unique()]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        group[torch.randint(len(group), (resamples, len(group)), generator=generator)].mean(1)
        for group in groups
    ]
    low, high = torch.stack(drawn).mean(0).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    mean = float(torch.stack([group.mean() for group in groups]).mean())
    return {"rate": mean, "low": float(low), "high": float(high), "trials": len(hits)}


class Mean(TypedDict):
    """A mean over pictures, its 95 % interval (None where one subject alone was drawn), and what it is of."""

    mean: float
    low: float | None
    high: float | None
    pictures: int
    subjects: int


def clustered_mean(values: Sequence[float], clusters: Sequence[str], resamples: int = 1000) -> Mean:
    """The mean of the pictures' values, with a bootstrap interval over subjects.

    clusters: the subject of each picture. Pictures of one subject are alike, so that whole subjects are drawn
    with replacement (seeded), never single pictures. Raises ValueError without values.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"a mean needs values, each with its subject; found {len(values)}, {len(clusters)}")
    groups: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    sums = torch.tensor([sum(group) for group in groups.values()], dtype=torch.float64)
    counts = torch.tensor([len(group) for group in groups.values()], dtype=torch.float64)
    low = high = None
    if len(groups) > 1:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(groups), (resamples, len(groups)), generator=generator)
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
        low, high = (
            float(value) for value in means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype))
        )
    mean = float(sums.sum() / counts.sum())
    return {"mean": mean, "low": low, "high": high, "pictures": len(values), "subjects": len(groups)}
