"""Time, memory, launches and synchronisations of calls, compared fairly on a machine that may be busy.

Calls are interleaved: each repetition runs every call once, so that whatever else the machine does falls on
all of them. The clock is the wall's, or the process's own CPU time, which a busy machine disturbs less; with
one thread the two agree on an idle one.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .memory import LiveBytes

Call = Callable[[], Any]
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median of `repeats` calls, with quartiles as the spread."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        low, middle, high = (
            statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
        )
        return cls(middle, low, high, len(samples))


def interleaved(
    calls: Mapping[str, Call], *, repeats: int, clock: Clock = "wall", device: str = "cpu", warmups: int = 1
) -> dict[str, Timing]:
    """Times the calls against each other. On a GPU each is waited for, and only the wall's clock makes
    sense."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(warmups + repeats):
        for name, call in calls.items():
            _wait(device)
            start = now()
            call()
            _wait(device)
            if repetition >= warmups:
                samples[name].append(1e3 * (now() - start))
    return {name: Timing.of(found) for name, found in samples.items()}


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The memory that a call takes at its peak beside its inputs, its result included."""
    if not device.startswith("cuda"):
        with LiveBytes() as live:
            call()
        return live.peak
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def launches(call: Call, device: str) -> int | None:
    """Kernels that a call launches on a GPU; None on a CPU, which has none."""
    if not device.startswith("cuda"):
        return None
    from torch.profiler import ProfilerActivity, profile

    call()
    _wait(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        _wait(device)
    kernels = [event for event in profiled.events() if event.device_type.name == "CUDA"]
    return len(kernels)


def host_syncs(call: Call, device: str) -> int | None:
    """How often a call makes the host wait for a GPU; None on a CPU, which has no one to wait for."""
    if not device.startswith("cuda"):
        return None
    _wait(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
