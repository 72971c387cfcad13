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
from .pose import Pose

HEAD: Color = (255, 0, 85)
EYE: Color = (0, 80, 255)
PUPIL: Color = (0, 255, 255)
NOSE: Color = (255, 170, 0)
NECK: Color = (255, 255, 0)
SHOULDERS: Color = (0, 255, 85)
LEFT_ARM: Color = (170, 0, 255)
RIGHT_ARM: Color = (255, 0, 255)


def pose_map(poses: Sequence[Pose]) -> np.ndarray:
    """Draw the skeletons of all figures of a picture, later ones in front. → (32, 32, 3) uint8"""
    canvas = Canvas()
    for pose in poses:
        _skeleton(canvas, pose)
    return canvas.rgb


def _skeleton(canvas: Canvas, pose: Pose) -> None:
    x, y = pose.x, pose.y
    canvas.box(x - 7, y + 17, 2, 32, LEFT_ARM)
    canvas.box(x + 5, y + 17, 2, 32, RIGHT_ARM)
    canvas.box(x - 7, y + 15, 14, 2, SHOULDERS)
    canvas.box(x - 1, y + 12, 2, 5, NECK)
    _outline(canvas, x, y)
    for eye in (x - 4, x + 2):
        canvas.box(eye, y + 4, 2, 2, EYE if pose.gaze else PUPIL)
        if pose.gaze:
            canvas.box(eye + (1 if pose.gaze > 0 else 0), y + 4, 1, 2, PUPIL)
    canvas.box(x - 1, y + 6, 2, 2, NOSE)


def _outline(canvas: Canvas, x: int, y: int) -> None:
    """An oval of 12 by 12 art pixels, as high as a face."""
    canvas.box(x - 4, y, 8, 1, HEAD)
    canvas.box(x - 4, y + 11, 8, 1, HEAD)
    canvas.box(x - 6, y + 2, 1, 8, HEAD)
    canvas.box(x + 5, y + 2, 1, 8, HEAD)
    canvas.dots([(x - 5, y + 1), (x + 4, y + 1), (x - 5, y + 10), (x + 4, y + 10)], HEAD)


def pose_picture(poses: Sequence[Pose], behind: np.ndarray | None = None) -> np.ndarray:
    """The control picture as a ControlNet is shown it, in front of another one if there is one already.

    behind: (…, 128, 128, 3) float in [0, 1]. → (128, 128, 3), or behind's shape, float32 in [0, 1]. Raises
    NestedAttentionError for a picture behind of another size.
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
