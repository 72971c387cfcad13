"""The pose of a figure: place, gaze and expression. It changes between pictures of one subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXPRESSIONS = ("calm", "smiling", "sad", "surprised", "angry")
PLACEMENTS = ("left", "middle", "right")

_COLUMNS = {"left": (8, 10), "middle": (14, 16, 18), "right": (22, 24)}
_TOPS = (8, 10)


@dataclass(frozen=True)
class Pose:
    """Column border of the face's centre and row of its top in art pixels, gaze (−1, 0, 1) and expression."""

    x: int
    y: int
    gaze: int
    expression: str

    @classmethod
    def sample(cls, rng: np.random.Generator, placement: str, expression: str | None = None) -> Pose:
        """A random pose at a placement; positions lie on the latent grid."""
        return cls(
            x=int(rng.choice(_COLUMNS[placement])),
            y=int(rng.choice(_TOPS)),
            gaze=int(rng.integers(-1, 2)),
            expression=expression or str(rng.choice(EXPRESSIONS)),
        )


def window(placement: str) -> tuple[int, int]:
    """Top-left corner of the 20×20 window in which a subject at this placement is looked for."""
    center = {"left": 9, "middle": 16, "right": 23}[placement]
    return center - 10, 3
