"""The pose of a figure: place, gaze and expression. It changes between pictures of one subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import SIZE, WIDE

EXPRESSIONS = ("calm", "smiling", "laughing", "sad", "surprised", "angry")
PLACEMENTS = ("left", "middle", "right")

_ALONE = {"left": (11, 12), "middle": (15, 16, 17), "right": (20, 21)}
_TOGETHER = {"left": (11, 12, 13), "right": (35, 36, 37)}
_TOPS = (8, 9)


@dataclass(frozen=True)
class Pose:
    """Column border of the face's centre and row of its top in art pixels, gaze (−1, 0, 1) and expression."""

    x: int
    y: int
    gaze: int
    expression: str

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        placement: str,
        expression: str | None = None,
        *,
        together: bool = False,
    ) -> Pose:
        """A random pose at a placement, alone or together with somebody else in a wide picture."""
        return cls(
            x=int(rng.choice((_TOGETHER if together else _ALONE)[placement])),
            y=int(rng.choice(_TOPS)),
            gaze=int(rng.integers(-1, 2)),
            expression=expression or str(rng.choice(EXPRESSIONS)),
        )


def poses(placement: str, *, together: bool = False) -> list[Pose]:
    """Every pose that may stand at a placement."""
    columns = (_TOGETHER if together else _ALONE)[placement]
    return [
        Pose(x, y, gaze, expression)
        for x in columns
        for y in _TOPS
        for gaze in (-1, 0, 1)
        for expression in EXPRESSIONS
    ]


def width_of(number: int) -> int:
    """Art pixels across a picture of one or two figures."""
    return SIZE if number == 1 else WIDE


def window(placement: str, *, together: bool = False) -> tuple[int, int]:
    """Top-left corner of the 28×28 window in which a subject at this placement is looked for."""
    columns = (_TOGETHER if together else _ALONE)[placement]
    return sum(columns) // len(columns) - 14, 0
