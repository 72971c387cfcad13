"""A layer's slot while somebody watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ....attention import BoundSubject
from ....errors import NestedAttentionError
from ....inspection.observed import ObservedLayer, ObservedSubject
from .carried import CarriedSubject
from .layer import NestedLayer
from .places import Pass
from .regions import grid_of
from .run import SamplingRun


@dataclass(frozen=True, eq=False)
class ObservedPass:
    """A forward pass that the run's observers see, and where its rows are."""

    run: SamplingRun
    where: Pass


@dataclass(frozen=True, eq=False)
class ObservedSlot:
    """The same as `layer`, which is shown to the run's observers before it runs.

    carried: everybody in the pass, whether or not they count at this layer.
    """

    layer: NestedLayer
    carried: Sequence[CarriedSubject]
    observed: ObservedPass

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        self._show(q, k, v, extra_options)
        return self.layer(q, k, v, extra_options)

    def _show(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> None:
        """Raises NestedAttentionError where the rows' places in the pictures are not known."""
        site, rows, run = self.layer.site, self.observed.where.rows, self.observed.run
        if len(q) != len(rows):
            raise NestedAttentionError(
                f"Nested Attention: {site} runs on {len(q)} prompts and the pass has {len(rows)}: another "
                "node adds rows of its own in the attention (attention couple does), so it cannot be told "
                f"which picture each is, and {run.purpose.lost}. Take it out, or {run.purpose.way_out}"
            )
        tokens = k.shape[1]

        def bind(one: CarriedSubject) -> BoundSubject | None:
            return one.bind(site, q, tokens, options) if one.subject.strength_at(site) else None

        subjects = [
            ObservedSubject(one.subject.key, one.seen_in(tokens), one.word_in(tokens), partial(bind, one))
            for one in self.carried
        ]
        grid = grid_of(site, q.shape[1], options, run.purpose)
        run.show(ObservedLayer(site, run.number, grid, rows, q, k, v, options["n_heads"], subjects))
