"""How long a run lasts, and its learning rate on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """The length of a run: `steps` or `minutes`, whichever ends first.

    warmup: steps over which the learning rate rises. decay: last share of the run, over which it falls to
    zero. Minutes are those of training, over all starts of the run. A run of minutes is for one process,
    and is not repeatable: how many steps fit depends on the machine.
    """

    steps: int
    minutes: float = math.inf
    warmup: int = 100
    decay: float = 0.3

    def split(self, share: float) -> tuple[Schedule, Schedule]:
        """This length as two runs, one after the other; the first takes `share` of it."""
        parts = (share, 1 - share)
        first, second = (
            replace(self, steps=max(1, round(part * self.steps)), minutes=part * self.minutes)
            for part in parts
        )
        return first, second

    def factor(self, step: int, elapsed: float) -> float:
        """The learning rate of a step as a share of the highest one. elapsed: seconds"""
        progress = max(step / self.steps, elapsed / (60 * self.minutes))
        return min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.0, (1 - progress) / self.decay))

    def done(self, step: int, elapsed: float) -> bool:
        """Whether the run ends before this step. elapsed: seconds"""
        return step >= self.steps or elapsed >= 60 * self.minutes
