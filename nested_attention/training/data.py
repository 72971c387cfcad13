"""What a step reads: examples in a seeded order, and the noise that belongs to each of them.

Both follow from the seed and from how many examples came before. A run can therefore go on anywhere, and
neither the number of processes nor that of workers changes what is learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = dict[str, Tensor]
"""Tensors by name; the first axis counts examples."""

Noise = Callable[[np.random.Generator], Mapping[str, Any]]
"""Draws whatever is random about one example: arrays or scalars by name, the same names and shapes each
time."""


class Data(Protocol):
    """Examples that can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Batch:
        """The examples of some rows (B,) int64."""


class Arrays:
    """Examples in memory: arrays or tensors by name, whose first axis counts examples."""

    def __init__(self, **arrays: np.ndarray | Tensor) -> None:
        self._tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
        lengths = {name: len(tensor) for name, tensor in self._tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of examples must be equally long; found {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def __getitem__(self, rows: Tensor) -> Batch:
        return {name: tensor[rows] for name, tensor in self._tensors.items()}


def no_noise(rng: np.random.Generator) -> dict[str, Any]:
    """For objectives without noise."""
    return {}


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


class Examples(Dataset[tuple[Batch, Batch]]):
    """Batches by position: item p holds the p-th example of the run and the `batch` − 1 that follow.

    Each epoch is a permutation of the data; a batch may reach into the next one. An item is (batch, noise).
    """

    def __init__(self, data: Data, noise: Noise, *, batch: int, seed: int) -> None:
        self.data, self.noise, self.batch, self.seed = data, noise, batch, seed

    def __getitem__(self, position: int) -> tuple[Batch, Batch]:
        positions, length = range(position, position + self.batch), len(self.data)
        rows = [_order(length, self.seed, p // length)[p % length] for p in positions]
        drawn = [self.noise(np.random.default_rng([self.seed, 1, p])) for p in positions]
        noise = {name: torch.from_numpy(np.stack([each[name] for each in drawn])) for name in drawn[0]}
        return self.data[torch.as_tensor(np.asarray(rows))], noise
