"""insightface's face detector, where it is installed. Its models are for non-commercial use only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import NestedAttentionError
from .faces import Face, distinct

_NON_COMMERCIAL = "Its models are for non-commercial research only; the built-in detector has no such limit"
_SIDE = 640
"""Pixels a side of what the detector sees, as its models were trained."""


class InsightFaceDetector:
    """SCRFD, as `FaceDetector`. Reads what is installed; installs and downloads nothing.

    root: the folder of insightface's packs, ComfyUI/models/insightface. Raises NestedAttentionError where
    insightface, or a `det_*.onnx` in `root/models/<pack>`, is missing.
    """

    def __init__(self, root: str | os.PathLike[str], threshold: float = 0.5) -> None:
        folder = Path(root) / "models"
        try:
            from insightface import model_zoo
        except ImportError as error:
            raise NestedAttentionError(
                f"the detector insightface is chosen, and cannot be imported here ({error}). Choose the "
                "built-in detector, which needs nothing, or install insightface and onnxruntime into "
                f"ComfyUI's Python. {_NON_COMMERCIAL}"
            ) from error
        found = [path for path in folder.glob("*/det_*.onnx") if path.is_file()]  # a pipe would wait for ever
        files = sorted(found, key=lambda path: (path.parent.name != "buffalo_l", path))
        if not files:
            raise NestedAttentionError(
                f"the detector insightface is chosen, and no det_*.onnx lies in {folder / 'buffalo_l'} or "
                "a folder beside it. Unpack insightface's buffalo_l there, or choose the built-in "
                f"detector. {_NON_COMMERCIAL}"
            )
        self._model: Any = model_zoo.get_model(str(files[0]))
        if not hasattr(self._model, "detect"):
            raise NestedAttentionError(
                f"{files[0]} is no face detector that insightface knows. Unpack buffalo_l again, or choose "
                "the built-in detector"
            )
        self.threshold = threshold
        self._model.prepare(-1, input_size=(_SIDE, _SIDE), det_thresh=threshold)

    def __call__(self, picture: Tensor) -> list[Face]:
        rgb = picture.mul(255).round().byte().cpu().numpy()
        boxes, points = self._model.detect(np.ascontiguousarray(rgb[..., ::-1]), input_size=(_SIDE, _SIDE))
        if points is None:
            return []
        return distinct([_face(box, five) for box, five in zip(boxes, points, strict=True)])


def _face(box: np.ndarray, points: np.ndarray) -> Face:
    """left, top, right, bottom, score; and eyes, nose and both corners of the mouth, left to right as one
    sees them."""
    left, top, right, bottom, score = (float(value) for value in box[:5])
    left_eye, right_eye, _, left_corner, right_corner = (complex(x, y) for x, y in points.tolist())
    return Face(
        centre=complex(left + right, top + bottom) / 2,
        width=right - left,
        height=bottom - top,
        left_eye=left_eye,
        right_eye=right_eye,
        mouth=(left_corner + right_corner) / 2,
        score=score,
    )
