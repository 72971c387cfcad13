"""Pictures on a labelled sheet."""

from __future__ import annotations

import pytest
import torch

from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.sheet import PAPER, labelled_sheet

COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]])


def test_every_picture_stands_whole_in_its_row_and_column() -> None:
    pictures = COLOURS[:, None, None].expand(6, 48, 64, 3)
    sheet = labelled_sheet(pictures, ["one", "two"], ["a", "b", "c"])
    places = {}
    for number, colour in enumerate(COLOURS):
        there = ((sheet - colour).abs() < 0.01).all(-1)
        rows, columns = there.nonzero().unbind(1)
        assert int(there.sum()) == 192 * 256  # enlarged by 4, each pixel as it was
        places[number] = (int(rows.min()), int(columns.min()))
    assert len({row for row, _ in places.values()}) == 2 and len({at for _, at in places.values()}) == 3
    assert places[0][0] == places[1][0] < places[3][0] and places[0][1] == places[3][1] < places[1][1]
    paper = torch.tensor(PAPER) / 255
    dark = ((sheet - paper).abs().sum(-1) > 1.2) & (sheet.sum(-1) < 1)
    assert bool(dark[: places[0][0]].any()) and bool(dark[:, : places[0][1]].any())  # labels


def test_labels_may_be_empty_and_a_corner_may_be_filled() -> None:
    pictures = torch.zeros(2, 200, 200, 3)
    bare = labelled_sheet(pictures, [""], ["", ""])
    assert bare.shape[0] < 200 + 20 and bare.shape[1] < 400 + 30
    corner = labelled_sheet(pictures, [""], ["", ""], torch.tensor([1.0, 0, 0]).expand(300, 100, 3))
    red = ((corner - torch.tensor([1.0, 0, 0])).abs() < 0.02).all(-1)
    assert 0 < int(red.sum()) < 144 * 144


@pytest.mark.parametrize(
    ("count", "rows", "columns", "message"),
    [
        (3, ["a"], ["b", "c"], "3 pictures, and labels for 1 rows of 2 columns"),
        (1, [], ["b"], "labels for 0 rows"),
        (100, [""] * 100, [""], "expected 16384 a side at most"),
    ],
)
def test_what_does_not_fit_is_refused(count: int, rows: list[str], columns: list[str], message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        labelled_sheet(torch.zeros(count, 200, 200, 3), rows, columns)
