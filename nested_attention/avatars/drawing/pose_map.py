"""The control picture of a pose: where head, eyes, neck, shoulders and arms of each figure are.

As OpenPose's skeletons do for photographs: one colour a part on black, the same for everybody, so that the
picture says how a figure stands and nothing of who it is. Expression is left to the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import NestedAttentionError
from .canvas import Canvas, Color
from .picture import enlarge
from .pose import Pose, width_of

HEAD: Color = (255, 0, 85)
EYE: Color = (0, 80, 255)
PUPIL: Color = (0, 255, 255)
NOSE: Color = (255, 170, 0)
NECK: Color = (255, 255, 0)
SHOULDERS: Color = (0, 255, 85)
LEFT_ARM: Color = (170, 0, 255)
RIGHT_ARM: Color = (255, 0, 255)


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


def pose_picture(poses: Sequence[Pose], behind: np.ndarray | None = None) -> np.ndarray:
    """The control picture as a ControlNet is shown it, in front of another one if there is one already.

    behind: (…, 128, W, 3) float in [0, 1]. → (128, W, 3), or behind's shape, float32 in [0, 1]; without a
    picture behind, W is 128 for one pose and 192 for two. Raises NestedAttentionError for one of another
    height, or of a width that the poses do not fit.
    """
    drawn = enlarge(pose_map(poses)).astype(np.float32) / 255
    if behind is None:
        return drawn
    if behind.shape[-3:] != drawn.shape:
        height, width = behind.shape[-3:-1]
        raise NestedAttentionError(
            f"the pose picture behind is {width} × {height} pixels; expected one of Demo Pose, "
            f"{drawn.shape[1]} × {drawn.shape[0]}. Connect another Demo Pose to it"
        )
    return np.where(drawn.any(-1, keepdims=True), drawn, behind).astype(np.float32)
