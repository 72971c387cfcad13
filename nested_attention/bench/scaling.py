"""How the cost of a subject grows with each thing it can grow with: one axis varied at a time, and a fit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .layers import Grid, run_layers
from .shapes import sdxl_shapes

AXES: dict[str, tuple[int, ...]] = {
    "tokens": (16, 64, 256, 1024, 4096),
    "subjects": (1, 2, 4, 10),
    "size": (512, 768, 1024, 1280),
    "batch": (1, 2, 4, 8),
}
_FIELDS = {"tokens": "tokens", "subjects": "subjects", "size": "sizes", "batch": "batches"}


@dataclass(frozen=True)
class Scaling:
    """What subjects add to a layer, in ms, along one axis.

    added: nested − plain at each value. per_unit: slope of a straight line through them, in ms per token, per
    subject, per million queries or per picture; start: the line at 0. exponent: slope between logarithms, 1
    where the cost is in proportion. r2: of the straight line.
    """

    axis: str
    layer: str
    values: tuple[int, ...]
    added: tuple[float, ...]
    per_unit: float
    start: float
    exponent: float
    r2: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def fit(axis: str, layer: str, values: Sequence[int], added: Sequence[float]) -> Scaling:
    """A picture's size counts by its area: x is (size / 1000)² there."""
    xs = [(value / 1000) ** 2 if axis == "size" else float(value) for value in values]
    line = statistics.linear_regression(xs, added)
    logs = [math.log(max(y, 1e-6)) for y in added]
    exponent = statistics.linear_regression([math.log(x) for x in xs], logs).slope
    r2 = statistics.correlation(xs, added) ** 2 if len(set(added)) > 1 else 1.0
    return Scaling(axis, layer, tuple(values), tuple(added), line.slope, line.intercept, exponent, r2)


def run_scaling(
    grid: Grid, axes: Sequence[str] = tuple(AXES), say: Callable[[str], None] = lambda line: None
) -> list[Scaling]:
    """On the layer that most of SDXL's are (1024×1280 at 1024²), from 256 tokens of one subject on."""
    found = []
    for axis in axes:
        base = replace(
            grid,
            tokens=(256,),
            subjects=(1,),
            sizes=(1024,),
            batches=(1,),
            dtypes=grid.dtypes[:1],
            forms=("plain", "nested"),
        )
        changed: dict[str, Any] = {_FIELDS[axis]: AXES[axis]}
        varied = replace(base, **changed)
        added: dict[int, dict[str, float]] = {}
        layer = ""
        for measured in run_layers(varied, say):
            if measured.layer == sdxl_shapes(measured.size)[-1].name:
                layer = measured.layer
                added.setdefault(getattr(measured, axis), {})[measured.form] = measured.time.median
        differences = [times["nested"] - times["plain"] for times in added.values()]
        found.append(fit(axis, layer if axis != "size" else "all sizes × 1280", list(added), differences))
    return found
