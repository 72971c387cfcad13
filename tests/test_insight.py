"""insightface's detector behind the same interface: what it says is translated, what is missing is
explained."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.insight import InsightFaceDetector


class FakeModel:
    """What `insightface.model_zoo.get_model` gives for a detector."""

    def __init__(self) -> None:
        self.prepared: dict[str, Any] = {}
        self.seen = np.zeros(0)

    def prepare(self, ctx_id: int, **kwargs: Any) -> None:
        self.prepared = {"ctx_id": ctx_id, **kwargs}

    def detect(self, picture: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, Any]:
        self.seen = picture
        boxes = np.array([[10, 20, 30, 50, 0.7], [40, 20, 90, 80, 0.9]], np.float32)
        eyes_nose_mouth = np.array([[15, 30], [25, 30], [20, 37], [16, 43], [24, 41]], np.float32)
        return boxes, np.stack([eyes_nose_mouth, eyes_nose_mouth + 40])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """insightface's folder with two packs, of which buffalo_l comes second by name."""
    for pack, name in (("antelopev2", "det_10g"), ("buffalo_l", "det_10g"), ("buffalo_l", "w600k_r50")):
        (tmp_path / "models" / pack).mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / pack / f"{name}.onnx").touch()
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[str]:
    asked: list[str] = []
    package, zoo = ModuleType("insightface"), ModuleType("insightface.model_zoo")
    zoo.get_model = lambda path: asked.append(path) or model  # type: ignore[attr-defined, func-returns-value]
    package.model_zoo = zoo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "insightface", package)
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", zoo)
    return asked


def test_its_five_points_become_a_face(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    model = FakeModel()
    asked = install(monkeypatch, model)
    picture = torch.rand(60, 100, 3, generator=torch.Generator().manual_seed(0))
    faces = InsightFaceDetector(folder, 0.6)(picture)
    assert asked == [str(folder / "models" / "buffalo_l" / "det_10g.onnx")]
    assert model.prepared == {"ctx_id": -1, "input_size": (640, 640), "det_thresh": 0.6}
    assert model.seen.dtype == np.uint8
    # OpenCV's order of colours
    np.testing.assert_array_equal(model.seen[..., ::-1], (picture * 255).round().byte().numpy())
    larger, smaller = faces
    assert (smaller.centre, smaller.width, smaller.height) == (20 + 35j, 20, 30)
    assert (smaller.left_eye, smaller.right_eye, smaller.mouth) == (15 + 30j, 25 + 30j, 20 + 42j)
    assert smaller.score == pytest.approx(0.7)
    assert larger.centre == 65 + 50j


def test_no_face_and_no_points(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    model = FakeModel()
    install(monkeypatch, model)
    detect = InsightFaceDetector(folder)
    for points in (None, np.zeros((0, 5, 2), np.float32)):
        monkeypatch.setattr(model, "detect", lambda *a, p=points, **k: (np.zeros((0, 5), np.float32), p))
        assert detect(torch.zeros(20, 20, 3)) == []


def test_what_is_missing_is_explained(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)  # as if it were not installed
    with pytest.raises(NestedAttentionError, match="cannot be imported.*built-in detector.*non-commercial"):
        InsightFaceDetector(folder)
    install(monkeypatch, FakeModel())
    with pytest.raises(NestedAttentionError, match=r"no det_\*.onnx lies in .*buffalo_l.*non-commercial"):
        InsightFaceDetector(tmp_path / "elsewhere")
    install(monkeypatch, None)
    with pytest.raises(NestedAttentionError, match=r"det_10g.onnx is no face detector.*built-in"):
        InsightFaceDetector(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Whoever opens one waits for ever, and the server with them."""
    asked = install(monkeypatch, FakeModel())
    os.mkfifo(folder / "models" / "buffalo_l" / "det_0.onnx")
    InsightFaceDetector(folder)
    assert [Path(path).name for path in asked] == ["det_10g.onnx"]
