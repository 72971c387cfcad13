"""What a step reads: examples in a seeded order, and the noise that belongs to each of them.

Both follow from the seed and from how many examples came before. A run can therefore go on anywhere, and
neither the number of processes nor that of workers changes what is learned from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
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

    @property
    def buckets(self) -> Sequence[np.ndarray]:
        """The rows of each kind of example, (n,) int64 each: only examples of one kind stack to a batch."""
        ...

    def read(self, rows: Tensor, noise: Batch) -> Batch:
        """The examples of some rows (B,) int64 of one bucket. noise: theirs, with `position` (B,) int64, how
        many examples came before in the run: what is left to chance about reading is taken from there."""
        ...

    def name(self, row: int) -> str:
        """What a person calls an example, for messages."""
        ...


class Arrays:
    """Examples in memory: arrays or tensors by name, whose first axis counts examples."""

    def __init__(self, **arrays: np.ndarray | Tensor) -> None:
        self._tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
        lengths = {name: len(tensor) for name, tensor in self._tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of examples must be equally long; found {lengths}")
        self.buckets = (np.arange(next(iter(lengths.values()))),)

    def read(self, rows: Tensor, noise: Batch) -> Batch:
        return {
            name: tensor[rows.to(tensor.device, non_blocking=True)] for name, tensor in self._tensors.items()
        }

    def name(self, row: int) -> str:
        return f"example {row}"

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def to(self, device: torch.device, *, on_host: Collection[str] = ()) -> Arrays:
        """The same on a device, but for the names `on_host`: batches are put together there."""
        return Arrays(
            **{n: tensor if n in on_host else tensor.to(device) for n, tensor in self._tensors.items()}
        )


class Joined:
    """Several sets of examples as one. Each brings its own buckets, so that their shapes may differ."""

    def __init__(self, *parts: Arrays) -> None:
        self._parts = parts
        lengths = [sum(len(rows) for rows in part.buckets) for part in parts]
        self._starts = [sum(lengths[:number]) for number in range(len(parts))]
        self.buckets = tuple(
            rows + start for part, start in zip(parts, self._starts, strict=True) for rows in part.buckets
        )

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    def to(self, device: torch.device, *, on_host: Collection[str] = ()) -> Joined:
        """The same on a device, as `Arrays.to`."""
        return Joined(*(part.to(device, on_host=on_host) for part in self._parts))

    def _part(self, row: int) -> tuple[Arrays, int]:
        number = bisect_right(self._starts, row) - 1
        return self._parts[number], self._starts[number]

    def read(self, rows: Tensor, noise: Batch) -> Batch:
        part, start = self._part(int(rows[0]))
        return part.read(rows - start, noise)

    def name(self, row: int) -> str:
        part, start = self._part(row)
        return part.name(row - start)


def resident(data: Data, device: torch.device, on_host: Collection[str] = ()) -> Arrays | Joined | None:
    """Examples in memory, on a GPU, where they take at most half of what is free there; else None."""
    if device.type != "cuda" or not isinstance(data, (Arrays, Joined)):
        return None
    if data.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return None
    return data.to(device, on_host=on_host)


def no_noise(rng: np.random.Generator) -> dict[str, Any]:
    """For objectives without noise."""
    return {}


@lru_cache(maxsize=64)
def _order(length: int, seed: int, epoch: int, bucket: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch, bucket]).permutation(length)


@lru_cache(maxsize=8)
def _shuffled(groups: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """The bucket of each group of an epoch: so many of each bucket."""
    labels = np.repeat(np.arange(len(groups)), groups)
    np.random.default_rng([seed, 2, epoch]).shuffle(labels)
    return labels


class Order:
    """Which row each place of a run reads: an endless stream of seeded permutations of every bucket.

    Places come in groups, each of one bucket; a group may reach into its bucket's next permutation, so that
    nothing is left out and nothing is read twice an epoch. Within an epoch the buckets' groups are shuffled.
    """

    def __init__(self, buckets: Sequence[np.ndarray], *, group: int, seed: int) -> None:
        self._buckets, self._group, self._seed = [np.asarray(rows) for rows in buckets], group, seed
        self._starts = [0]  # of each epoch, in groups

    def __call__(self, place: int) -> int:
        group, within = divmod(place, self._group)
        bucket, number = self._find(group)
        epoch, position = divmod(number * self._group + within, len(self._buckets[bucket]))
        order = _order(len(self._buckets[bucket]), self._seed, epoch, bucket)
        return int(self._buckets[bucket][order[position]])

    def _find(self, group: int) -> tuple[int, int]:
        """The bucket of a group, and how many of its groups came before."""
        if len(self._buckets) == 1:
            return 0, group
        while self._starts[-1] <= group:
            self._starts.append(sum(self._before(len(self._starts))))
        epoch = bisect_right(self._starts, group) - 1
        first, end = self._before(epoch), self._before(epoch + 1)
        labels = _shuffled(tuple(np.subtract(end, first).tolist()), self._seed, epoch)
        place = group - self._starts[epoch]
        bucket = int(labels[place])
        return bucket, first[bucket] + int((labels[:place] == bucket).sum())

    def _before(self, epoch: int) -> list[int]:
        """The complete groups of each bucket before an epoch."""
        return [epoch * len(rows) // self._group for rows in self._buckets]


class Draws(Dataset[tuple[Tensor, Batch]]):
    """What is to be read, by position: item p holds the rows of the p-th example of the run and of the
    `batch` − 1 that follow, and their noise, with `position` (B,) besides.

    group: examples a step, of all processes together; the same for any number of them, if the step reads as
    many.
    """

    def __init__(
        self, buckets: Sequence[np.ndarray], noise: Noise, *, batch: int, seed: int, group: int | None = None
    ) -> None:
        self.noise, self.batch, self.seed = noise, batch, seed
        self._order = Order(buckets, group=group or batch, seed=seed)

    def __getitem__(self, position: int) -> tuple[Tensor, Batch]:
        positions = range(position, position + self.batch)
        drawn = [self.noise(np.random.default_rng([self.seed, 1, p])) for p in positions]
        noise = {name: torch.from_numpy(np.stack([each[name] for each in drawn])) for name in drawn[0]}
        noise["position"] = torch.tensor(positions)
        return torch.as_tensor([self._order(p) for p in positions]), noise


class Examples(Dataset[tuple[Batch, Batch]]):
    """Batches by position: what `Draws` of the same arguments draws, read. An item is (batch, noise); the
    batch has `row` (B,) besides."""

    def __init__(self, data: Data, noise: Noise, *, batch: int, seed: int, group: int | None = None) -> None:
        self.data, self.batch = data, batch
        self.draws = Draws(data.buckets, noise, batch=batch, seed=seed, group=group)

    def __getitem__(self, position: int) -> tuple[Batch, Batch]:
        rows, noise = self.draws[position]
        return {**self.data.read(rows, noise), "row": rows}, noise
