"""Below the floor, third way: what the subjects change is computed in some steps only. Off unless asked for.

What a layer's queries ask changes little from one step of a sampling to the next, and so does what the
subjects answer: P[s*]·g·(v*_q − V[s*]), added to a text attention that is computed in every step. How much it
changes is not known beforehand, so there is no bound on the error; docs/performance.md has it measured.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import NestedAttentionError


class ReusedChanges:
    """The subjects' change in each layer: computed in every n-th step of a sampling, kept for those between.

    A step is one forward pass, at a lower timestep than the one before; a pass at the same timestep or a
    higher one (another sampling, a sampler that asks twice) begins anew, so that nothing old is reused.
    """

    def __init__(self, every: int) -> None:
        """Raises NestedAttentionError for less than 1."""
        if every < 1:
            raise NestedAttentionError(
                f"a subject's change is to be computed in every {every}th step; expected 1, for all, or more"
            )
        self.every = every
        self._changes: dict[str, Tensor] = {}
        self._passes = 0
        self._timestep = float("-inf")

    def begin(self, timestep: Tensor | float) -> None:
        """Call before each forward pass. A GPU is waited for where the timestep lies on it."""
        if self.every == 1:
            return
        now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        self._passes = self._passes + 1 if now < self._timestep else 0
        self._timestep = now
        if self._passes % self.every == 0:
            self._changes.clear()

    def clear(self) -> None:
        """Forget everything: the subjects are others from here on."""
        self._changes.clear()
        self._passes = 0

    def change(self, site: str, query: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """(B, L, H·d), the subjects' change at a layer: the kept one, or else what `compute` returns."""
        kept = self._changes.get(site)
        if kept is None or kept.shape != query.shape or kept.dtype != query.dtype:
            kept = compute()
            if self.every > 1:
                self._changes[site] = kept
        return kept
