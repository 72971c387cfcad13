"""The control picture of a pose: where head, eyes, neck, shoulders and arms of each figure are.

As OpenPose's skeletons do for photographs: one colour a part on black, the same for everybody, so that the
picture says how a figure stands and nothing of who it is. Expression is left to the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import NestedAttentionError
from .canvas import SIZE, WIDE, Canvas, Color
from .picture import ENLARGE, enlarge
from .pose import Pose, width_of

HEAD: Color = (255, 0, 85)
EYE: Color = (0, 80, 255)
PUPIL: Color = (0, 255, 255)
NOSE: Color = (255, 170, 0)
NECK: Color = (255, 255, 0)
SHOULDERS: Color = (0, 255, 85)
LEFT_ARM: Color = (170, 0, 255)
RIGHT_ARM: Color = (255, 0, 255)

MARGIN = 6
"""Art pixels that a pose's column is away from the borders of its picture, at least."""


def pose_map(poses: Sequence[Pose], width: int | None = None) -> np.ndarray:
    """Draw the skeletons of all figures of a picture, later ones in front, on a canvas of `width` (by
    default as wide as a picture of so many figures). → (32, width, 3) uint8"""
    canvas = Canvas(width_of(len(poses)) if width is None else width)
    for pose in poses:
        _skeleton(canvas, pose)
    return canvas.rgb


def _skeleton(canvas: Canvas, pose: Pose) -> None:
    x, y = pose.x, pose.y
    canvas.box(x - 10, y + 20, 2, 32, LEFT_ARM)
    canvas.box(x + 8, y + 20, 2, 32, RIGHT_ARM)
    canvas.box(x - 10, y + 18, 20, 2, SHOULDERS)
    canvas.box(x - 1, y + 16, 2, 3, NECK)
    _outline(canvas, x, y)
    for eye in (x - 5, x + 1):
        canvas.box(eye, y + 7, 4, 2, EYE)
        canvas.box(eye + 1 + pose.gaze, y + 7, 2, 2, PUPIL)
    canvas.box(x - 1, y + 10, 2, 2, NOSE)


def _outline(canvas: Canvas, x: int, y: int) -> None:
    """An oval of 16 by 16 art pixels, as high as a face."""
    halves = [5, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7, 6, 4]
    for row, half in enumerate(halves):
        if row in (0, len(halves) - 1):
            canvas.box(x - half, y + row, 2 * half, 1, HEAD)
        else:
            canvas.box(x - half, y + row, 1, 1, HEAD)
            canvas.box(x + half - 1, y + row, 1, 1, HEAD)


def pose_picture(
    poses: Sequence[Pose], behind: np.ndarray | None = None, figures: int | None = None
) -> np.ndarray:
    """The control picture as a ControlNet is shown it, in front of another one if there is one already.

    behind: (…, 128, W, 3) float in [0, 1], of whatever number of figures it was made for. figures: of how
    many the picture is to be, by default as many as there are poses. → (128, W, 3), or behind's shape,
    float32 in [0, 1]; W is 128 for one figure and 192 for two. Raises NestedAttentionError for a picture
    behind of another size or too narrow for so many figures, and for a pose that is not in the picture.
    """
    asked = width_of(figures or len(poses))
    width = asked if behind is None else _width(behind, asked)
    last = width - MARGIN
    for pose in poses:
        if not MARGIN <= pose.x <= last:
            wider = ". Set figures to 2, in the Demo Pose behind it too" if width == SIZE else ""
            raise NestedAttentionError(
                f"x is {pose.x}; expected {MARGIN} to {last} in a picture that is {width} art pixels "
                f"across{wider}"
            )
    drawn = enlarge(pose_map(poses, width)).astype(np.float32) / 255
    if behind is None:
        return drawn
    return np.where(drawn.any(-1, keepdims=True), drawn, behind).astype(np.float32)


def _width(behind: np.ndarray, asked: int) -> int:
    """The width of a control picture in art pixels, which is `asked` at least."""
    height, width = behind.shape[-3:-1]
    fitting = [fits for fits in (SIZE, WIDE) if fits >= asked]
    if (height, width) not in [(ENLARGE * SIZE, ENLARGE * fits) for fits in fitting]:
        sizes = " or ".join(f"{ENLARGE * fits} × {ENLARGE * SIZE}" for fits in fitting)
        wide = " with figures 2" if asked == WIDE else ""
        raise NestedAttentionError(
            f"the pose picture behind is {width} × {height} pixels; expected one of Demo Pose, {sizes}. "
            f"Connect another Demo Pose{wide} to it"
        )
    return width // ENLARGE
