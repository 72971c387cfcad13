"""A different subject in each picture of a batch: encoding them, and the keys and values of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....attention import onto
from ....subject import Subject
from ....subject_batch import SubjectBatch, pad_biases
from ..encoding.memory import SubjectEncoderHandle
from ..encoding.pictures import check_number, encode_subject

Values = Callable[[str, torch.device], tuple[Tensor, Tensor]]
"""Site and device → K̆, V̆ (1|B, N, inner)."""


def encode_batch(handle: SubjectEncoderHandle, clip_vision: Any, image: Tensor) -> Subject | SubjectBatch:
    """One subject a picture of an IMAGE batch; for one picture the subject itself. Raises as
    `encode_subject`."""
    if image.dim() != 4 or len(image) <= 1:
        return encode_subject(handle, clip_vision, image)
    check_number(handle, len(image))
    return SubjectBatch(tuple(encode_subject(handle, clip_vision, picture[None]) for picture in image))


@dataclass(frozen=True, eq=False)
class RowValues:
    """K̆ and V̆ of a batch in which each row has a subject of its own.

    values: of each different subject. rows: which of them each row has. length: tokens a row; shorter
    subjects are filled up with zeros, which their bias switches off.
    """

    values: Sequence[Values]
    rows: Sequence[int]
    length: int
    _rows: dict[torch.device, Tensor] = field(default_factory=dict)

    def __call__(self, site: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """→ two times (B, N, inner)"""
        found = [one(site, device) for one in self.values]
        key, value = (torch.cat([self._fill(pair[i]) for pair in found]) for i in (0, 1))
        if device not in self._rows:
            self._rows[device] = onto(torch.tensor(self.rows), device)
        rows = self._rows[device]
        return key[rows], value[rows]

    def _fill(self, x: Tensor) -> Tensor:
        return pad(x, (0, 0, 0, self.length - x.shape[1]))


def row_values(
    values: Sequence[Values], biases: Sequence[Tensor], pictures: Sequence[int]
) -> tuple[Values, Tensor | None]:
    """The values and token biases, (B, N) or None, of the rows of a forward pass.

    values, biases: of a batch's subjects; biases are (N,) on the CPU. pictures: number of each row's picture.
    """
    chosen = [number % len(values) for number in pictures]
    used = sorted(set(chosen))
    if len(used) == 1:
        only = biases[used[0]]
        return values[used[0]], only if bool(only.any()) else None
    length = max(len(biases[number]) for number in used)
    rows = [used.index(number) for number in chosen]
    filled = pad_biases([biases[i] for i in used])
    chosen_values = RowValues([values[number] for number in used], rows, length)
    return chosen_values, filled[rows] if bool(filled.any()) else None
