"""Likeness as ComfyUI runs it: figure, verdict, batches, and messages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from skimage import data
from test_prepare import astronaut, cat, nodes, run  # noqa: F401  (a fixture)
from torch import Tensor


def photographer() -> Tensor:
    """Another person, in profile, as large as the astronaut's picture."""
    return torch.from_numpy(data.camera()).float()[None, ..., None].expand(-1, -1, -1, 3) / 255


def test_the_same_person_in_another_picture(nodes: dict[str, Any]) -> None:  # noqa: F811
    darker = astronaut()[:, :300, 60:420] * 0.5
    result = run(nodes["Likeness"], reference=astronaut(), image=darker)
    distance, same, verdict = result.args
    assert 0 < distance < 0.3 and same is True
    assert verdict == f"the same person: distance {distance:.2f}, below 0.6"
    assert result.ui == {"nested_attention_state": [[verdict]]}  # shown on the node


def test_another_person_and_nobody(nodes: dict[str, Any]) -> None:  # noqa: F811
    distance, same, verdict = run(nodes["Likeness"], reference=astronaut(), image=photographer()).args
    assert 0.6 < distance < 1.2 and same is False and verdict.startswith("another person")
    distance, same, verdict = run(nodes["Likeness"], reference=astronaut(), image=cat()).args
    assert distance == math.inf and same is False and verdict == "no face was found"


def test_a_batch_is_the_person_if_every_picture_is(nodes: dict[str, Any]) -> None:  # noqa: F811
    both = torch.cat([astronaut(), photographer()])
    distance, same, verdict = run(nodes["Likeness"], reference=astronaut(), image=both).args
    first, second = verdict.split("\n")
    assert first == "picture 1 of 2: the same person: distance 0.00, below 0.6"
    assert second.startswith("picture 2 of 2: another person") and same is False
    assert distance == pytest.approx(float(second.split("distance ")[1].split(",")[0]) / 2, abs=0.01)
    # Of several references the nearest counts.
    assert run(nodes["Likeness"], reference=both, image=both).args[1] is True


def test_a_reference_without_a_face_is_named(nodes: dict[str, Any]) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=r"^Likeness: reference 1 of 1 \(451 × 300 pixels\): no face"):
        run(nodes["Likeness"], reference=cat(), image=astronaut())
