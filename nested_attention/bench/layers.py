"""One layer, or all 70 of SDXL in a row, in every form, at chosen sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .baselines import FORMS, Inputs, make_inputs
from .shapes import LayerShape, sdxl_layers, sdxl_shapes
from .timing import Call, Clock, Timing, host_syncs, interleaved, launches, peak_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which cases are run: every combination of the lists. `repeats` interleaved repetitions each."""

    sizes: Sequence[int] = (1024,)
    tokens: Sequence[int] = (256, 1024)
    subjects: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("fp32",)
    forms: Sequence[str] = tuple(FORMS)
    device: str = "cpu"
    compiled: bool = False
    repeats: int = 5
    clock: Clock = "wall"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One form in one case. peak: bytes beside the inputs; launches and syncs: None where there are none."""

    layer: str
    form: str
    size: int
    tokens: int
    subjects: int
    batch: int
    dtype: str
    device: str
    compiled: bool
    time: Timing
    peak: int | None = None
    launches: int | None = None
    syncs: int | None = None
    ratios: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_layers(grid: Grid, say: Callable[[str], None] = lambda line: None) -> Iterator[Measured]:
    """Each of SDXL's layers by itself."""
    for case in _cases(grid):
        for shape in sdxl_shapes(case["size"]):
            say(f"{shape.name} {case}")
            inputs = _inputs(shape, case, grid)
            calls = {form: _call(form, (inputs,), grid) for form in grid.forms}
            yield from _measure(shape.name, case, calls, grid)


def run_sweep(grid: Grid, say: Callable[[str], None] = lambda line: None) -> Iterator[Measured]:
    """All 70 layers one after the other, with as many negative rows as positive ones (CFG).

    Layers of one shape share their inputs, which changes no time: each is larger than a cache.
    """
    for case in _cases(grid):
        say(f"70 layers {case}")
        inputs = {
            shape: _inputs(shape, case, grid, guided=True)
            for shape in dict.fromkeys(sdxl_layers(case["size"]))
        }
        layers = [inputs[shape] for shape in sdxl_layers(case["size"])]
        calls = {form: _call(form, layers, grid) for form in grid.forms}
        yield from _measure("70 layers", case, calls, grid)


def _cases(grid: Grid) -> Iterator[dict[str, Any]]:
    keys = ("size", "tokens", "subjects", "batch", "dtype")
    lists = (grid.sizes, grid.tokens, grid.subjects, grid.batches, grid.dtypes)
    return (dict(zip(keys, values, strict=True)) for values in itertools.product(*lists))


def _inputs(shape: LayerShape, case: dict[str, Any], grid: Grid, guided: bool = False) -> Inputs:
    sizes = {key: case[key] for key in ("tokens", "subjects", "batch")}
    return make_inputs(shape, dtype=DTYPES[case["dtype"]], device=grid.device, guided=guided, **sizes)


def _call(form: str, layers: Sequence[Inputs], grid: Grid) -> Call:
    function: Callable[[Inputs], Tensor] = FORMS[form]
    if grid.compiled:
        function = torch.compile(function, dynamic=False)
    return partial(_run, function, layers)


@torch.inference_mode()
def _run(function: Callable[[Inputs], Tensor], layers: Iterable[Inputs]) -> None:
    for inputs in layers:
        function(inputs)


def _measure(layer: str, case: dict[str, Any], calls: dict[str, Call], grid: Grid) -> Iterator[Measured]:
    times = interleaved(calls, repeats=grid.repeats, clock=grid.clock, device=grid.device)
    medians = {form: timing.median for form, timing in times.items()}
    peaks = {
        # What counts the memory on a CPU sees every operation, which compiled code does not have.
        form: None if grid.compiled and grid.device == "cpu" else peak_bytes(call, grid.device)
        for form, call in calls.items()
    }
    for form, call in calls.items():
        yield Measured(
            layer=layer,
            form=form,
            device=grid.device,
            compiled=grid.compiled,
            time=times[form],
            peak=peaks[form],
            launches=launches(call, grid.device),
            syncs=host_syncs(call, grid.device),
            ratios=ratios(form, medians, peaks),
            **case,
        )


def ratios(form: str, medians: dict[str, float], peaks: dict[str, int | None]) -> dict[str, float]:
    """A form against plain + floor (1 is the best there could be), and against the explicit form."""
    found = {}
    if {"plain", "floor"} <= medians.keys():
        found["of plain + floor"] = medians[form] / (medians["plain"] + medians["floor"])
    if "explicit" in medians:
        found["times faster than explicit"] = medians["explicit"] / medians[form]
        mine, theirs = peaks[form], peaks["explicit"]
        if mine is not None and theirs:
            found["of explicit's memory"] = mine / theirs
    return found
