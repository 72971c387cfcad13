"""Training shards: what the frozen models made of pictures and captions, in files that a run reads at random.

A prepared folder holds `index.json`, which says what is where, `blank.safetensors`, what takes the place of a
dropped picture or caption, and `shards/`: safetensors files of examples of one size each. Files are named by
their content, so that a name in the index always means the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..encoder import FeatureLayer
from ..errors import NestedAttentionError
from ..storage.files import file_state, replacing
from ..storage.tensors import TensorFile, read_tensors, write_tensors
from .data import Batch

FORMAT, VERSION = "nested_attention.training_shards", 1

PARTS = {
    "picture": ("latent_mean", "latent_deviation", "sizes"),
    "caption": ("context", "pooled", "mask"),
    "reference": ("features",),
    "weight": ("loss_weight",),
}
"""What is encoded together → tensors of a shard; the first axis of each counts examples.

latent_mean, latent_deviation (n, C, h, w): of the target picture, not scaled. sizes (n, 6): its size, the
corner of the crop and the size of the crop, as SDXL is told them. context (n, 77, width), pooled (n, width):
the caption. mask (n, 77) bool: the last token of each occurrence of the word. features (n, patches, width):
of the reference picture. loss_weight (n, h, w): of each latent cell in the loss, in [0, 1]; 1 everywhere if
the source has none. `ShardData` divides it by its mean over the data set, so that weights average 1.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example, as the index lists it.

    name: of its picture in the source. subject: whom it shows; rows of one subject can be each other's
    reference. keys: part → hash of what its tensors were made from.
    """

    name: str
    caption: str
    subject: str
    keys: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of examples. size: (height, width) of their pictures. held_out: for validation alone."""

    file: str
    checksum: str
    size: tuple[int, int]
    held_out: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """A prepared folder. frozen: fingerprints of the encoders. base, vision: what the base model and the
    vision model are called; "": not known, as in folders of an older version. latents: how the autoencoder's
    are scaled: `scaling_factor`, and `shift_factor` if it has one. mean_weight: of `loss_weight`, over the
    pictures to train on."""

    word: str
    domain: str
    features: FeatureLayer
    resolution: int
    base: str
    latents: dict[str, float]
    frozen: dict[str, str]
    blank: str
    shards: tuple[Shard, ...]
    mean_weight: float = 1.0
    vision: str = ""

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        with replacing(folder / "index.json") as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Raises NestedAttentionError for a folder that was not prepared, or not to the end."""
        path = folder / "index.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kind, version = content.pop("format"), content.pop("version")
            if (kind, version) != (FORMAT, VERSION):
                raise ValueError(f"{kind} version {version}")
            shards = tuple(
                Shard(
                    **{**each, "size": tuple(each["size"]), "rows": tuple(Row(**row) for row in each["rows"])}
                )
                for each in content.pop("shards")
            )
            return cls(shards=shards, **content)
        except FileNotFoundError as error:
            raise NestedAttentionError(
                f"{folder} has no index.json, so it was not prepared, or not to the end; run "
                "`nested-attention prepare` with its configuration"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NestedAttentionError(
                f"{path} cannot be read ({error}); expected {FORMAT} version {VERSION}. Run "
                "`nested-attention prepare` again: what is encoded already is kept"
            ) from error

    @cached_property
    def digest(self) -> str:
        """Changes when what a run would learn from does: the examples, or which of them show one subject.
        What subjects are called changes nothing."""
        shards = [shard for shard in self.shards if not shard.held_out]
        told: list[Any] = [[shard.file for shard in shards], self.blank]
        first: dict[str, int] = {}
        subjects = [first.setdefault(row.subject, len(first)) for shard in shards for row in shard.rows]
        if len(first) < len(subjects):  # else there are no pairs, and runs of before go on
            told.append(subjects)
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of all bytes, names and shapes."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def write_shard(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write a file, named by its content, below a prepared folder; its name and checksum."""
    found = checksum(tensors)
    file = f"shards/{found}.safetensors"
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    write_tensors(folder / file, tensors, {"format": FORMAT})
    return file, found


def read_shard(path: Path, wanted: str) -> TensorFile:
    """All of a file. Raises NestedAttentionError if it is missing or its content is not that checksum's."""
    found = read_tensors(path, safetensors_only=True)
    if checksum(found.tensors) != wanted:
        raise NestedAttentionError(f"{path} does not hold what was written: its checksum is another one")
    return found


LOOKED_AT = 16
"""Files after whose reading is noted what has been read."""


class Verified:
    """Which files of a prepared folder have been read and found to be whole: `verified.json`.

    A file is not read again until it changes. What has been read is noted now and then, and by `write`, so
    that a start which is interrupted costs no reading again; data that cannot be written beside is read at
    each start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "verified.json"
        self._new = 0
        try:
            self._known = {name: list(state) for name, state in json.loads(self._path.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError):
            self._known = {}

    def check(self, file: str, wanted: str) -> None:
        """Raises NestedAttentionError for a file that is missing or damaged."""
        path = self._folder / file
        try:
            _, *state = file_state(os.stat(path))  # machines that share a disk number it each in its own way
        except OSError as error:
            raise NestedAttentionError(f"{path} is missing ({error.strerror})") from error
        if self._known.get(file) != state:
            read_shard(path, wanted)
            self._known[file] = state
            self._new += 1
            if self._new == LOOKED_AT:
                self.write()

    def write(self) -> None:
        """Keep what is known by now."""
        if not self._new:
            return
        self._new = 0
        with contextlib.suppress(NestedAttentionError), replacing(self._path) as temporary:
            temporary.write_text(json.dumps(self._known))


def mean_weight(folder: Path, shards: Sequence[Shard]) -> float:
    """The mean of `loss_weight` over the pictures to train on, each of which counts alike. Of each file that
    tensor alone is read."""
    total, rows = 0.0, 0
    for shard in shards:
        if not shard.held_out:
            with safe_open(str(folder / shard.file), framework="pt") as file:
                total += float(file.get_tensor("loss_weight").double().mean(dim=(1, 2)).sum())
            rows += len(shard.rows)
    return total / max(1, rows)


def verify(folder: Path, index: Index) -> None:
    """Read every shard once, before a run's first step. Raises NestedAttentionError, naming what is missing
    or damaged."""
    verified = Verified(folder)
    files = {index.blank: Path(index.blank).stem, **{shard.file: shard.checksum for shard in index.shards}}
    for file, wanted in files.items():
        try:
            verified.check(file, wanted)
        except NestedAttentionError as error:
            raise NestedAttentionError(
                f"a shard cannot be used: {error}. Run `nested-attention prepare` again: it makes what is "
                "missing or damaged, and keeps the rest"
            ) from error
    verified.write()


@dataclass(frozen=True)
class Rising:
    """A share of examples that goes from `first` to `last` over the first `total` examples of a run."""

    first: float
    last: float
    total: int

    def __call__(self, position: int) -> float:
        return self.first + (self.last - self.first) * min(1.0, position / self.total)


class ShardData:
    """The examples of a prepared folder, read row by row from its files (`Data`).

    held_out: those kept for validation, or all others. pair_share: from how many examples came before in the
    run, the share of examples whose reference is another picture of their subject, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        *,
        held_out: bool = False,
        pair_share: Callable[[int], float] = Rising(1.0, 1.0, 1),
    ) -> None:
        self.folder, self.index, self._pair_share = folder, index, pair_share
        self.shards = [shard for shard in index.shards if shard.held_out is held_out]
        self._places = [(s, r) for s, shard in enumerate(self.shards) for r in range(len(shard.rows))]
        rows: dict[tuple[int, int], list[int]] = {}
        self._of_subject: dict[str, list[int]] = {}
        for number, (s, r) in enumerate(self._places):
            rows.setdefault(self.shards[s].size, []).append(number)
            self._of_subject.setdefault(self.shards[s].rows[r].subject, []).append(number)
        self.buckets: Sequence[np.ndarray] = [np.asarray(each, np.int64) for each in rows.values()]
        self.sizes = list(rows)
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process opens files of its own

    def row(self, number: int) -> Row:
        shard, place = self._places[number]
        return self.shards[shard].rows[place]

    def name(self, row: int) -> str:
        shard, _ = self._places[row]
        return f"{self.row(row).name} (in {self.folder / self.shards[shard].file})"

    @cached_property
    def blank(self) -> Batch:
        """`features`, `context` and `pooled` of a blank picture and an empty caption, (1, …) each."""
        return read_shard(self.folder / self.index.blank, Path(self.index.blank).stem).tensors

    def read(self, rows: Tensor, noise: Batch) -> Batch:
        """The tensors of PARTS, with loss weights that average 1.

        noise: `pair` and `mate` (B,) in [0, 1) choose the references, where they are there; without them each
        has its own. With `more` (B, K) in [0, 1), each has up to K references: `features` is (B, K, patches,
        width) then, and `shown` (B, K) bool says which of them count.
        """
        numbers = rows.tolist()
        own = [name for part in ("picture", "caption") for name in PARTS[part]]
        batch = {name: torch.stack([self._tensor(number, name) for number in numbers]) for name in own}
        batch["loss_weight"] = torch.stack([self._weight(number) for number in numbers])
        first = [self._reference(i, number, noise) for i, number in enumerate(numbers)]
        if "more" not in noise:
            batch["features"] = torch.stack([self._tensor(number, "features") for number in first])
            return batch
        all_of = [self._references(*each) for each in zip(first, noise["more"].tolist(), strict=True)]
        most = noise["more"].shape[1]
        batch["shown"] = torch.tensor([[place < len(rows) for place in range(most)] for rows in all_of])
        filled = [number for rows in all_of for number in [*rows, *[rows[0]] * (most - len(rows))]]
        features = torch.stack([self._tensor(number, "features") for number in filled])
        batch["features"] = features.unflatten(0, (-1, most))
        return batch

    def another(self, row: int) -> int:
        """A row of the same subject with another picture, always the same; the row itself where there is
        none."""
        return next(iter(self._others(row)), row)

    def _reference(self, place: int, row: int, noise: Batch) -> int:
        """The row whose reference picture an example is given."""
        others = self._others(row)
        if "pair" not in noise or not others:
            return row
        if float(noise["pair"][place]) >= self._pair_share(int(noise["position"][place])):
            return row
        return others[int(float(noise["mate"][place]) * len(others))]

    def _references(self, first: int, chance: list[float]) -> list[int]:
        """Rows whose reference pictures an example is given, the first one's among them: of the subject's
        own, and no more of them than there are. chance: in [0, 1); how many, then which."""
        others, rows = self._others(first), [first]
        for each in chance[1 : 1 + int(chance[0] * len(chance))]:
            if others:
                rows.append(others.pop(int(each * len(others))))
        return rows

    def _others(self, row: int) -> list[int]:
        """The rows of a row's subject but for itself."""
        return [other for other in self._of_subject[self.row(row).subject] if other != row]

    def _weight(self, number: int) -> Tensor:
        if "weight" in self.row(number).keys:
            return self._tensor(number, "loss_weight") / self.index.mean_weight
        return torch.ones_like(self._tensor(number, "latent_mean")[0])  # prepared by an older version

    def _tensor(self, number: int, name: str) -> Tensor:
        shard, row = self._places[number]
        path = self.folder / self.shards[shard].file
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(str(path), framework="pt")
            return self._open[shard].get_slice(name)[row : row + 1][0]
        except (OSError, SafetensorError) as error:
            raise NestedAttentionError(
                f"the shard {path} cannot be read ({error}). Run `nested-attention prepare` again; the run "
                "goes on from its last checkpoint"
            ) from error
