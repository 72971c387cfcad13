"""How a subject is shown, as far as a prompt says it: where a judge looks for it, and what may hide it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .picture import Picture, crop
from .pose import poses, window


@dataclass(frozen=True)
class Shown:
    """One figure of a picture without who it is. together: whether somebody else stands beside it."""

    placement: str
    style: str
    clothes: str = "plain"
    accessory: str = "none"
    together: bool = False
    expression: str = "calm"

    @classmethod
    def of(cls, picture: Picture, number: int = 0) -> Shown:
        """The figure of a number, counted from 0."""
        figure = picture.figures[number]
        together = len(picture.figures) > 1
        worn = figure.clothes, figure.accessory
        return cls(figure.placement, picture.style, *worn, together, figure.pose.expression)

    @property
    def corner(self) -> tuple[int, int]:
        """Top-left corner of the 28×28 window in which it is looked for."""
        return window(self.placement, together=self.together)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Every column and row (as `Pose` has them) at which it may stand."""
        return sorted({(pose.x, pose.y) for pose in poses(self.placement, together=self.together)})


def windows(rgb: np.ndarray, shown: Sequence[Shown]) -> np.ndarray:
    """The place of one subject in each picture. (n, 32, W, 3) → (n, 28, 28, 3)"""
    return np.stack([crop(picture, one.corner) for picture, one in zip(rgb, shown, strict=True)])
