"""Planned samples → shards: the frozen encoders run once over what has not been encoded before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as functional
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from tqdm import tqdm

from ...errors import NestedAttentionError
from ...storage.files import replacing
from ..frozen import FrozenEncoders
from ..shards import PARTS, Row, Shard, Verified, read_shard, write_shard
from .plan import Planned
from .recipes import Prepared, Recipe

Tensors = dict[str, Tensor]


class Journal:
    """`done.jsonl` of a prepared folder: every shard that has been written, whoever will want it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "done.jsonl"
        self._verified = Verified(folder)
        self._shards: list[Shard] = []
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            for line in tqdm(lines, desc="looking at what is there", unit="shard", disable=None):
                try:
                    values = json.loads(line)
                except ValueError:  # a line that a kill cut off
                    continue
                rows = tuple(Row(**row) for row in values.pop("rows"))
                shard = Shard(**{**values, "size": tuple(values["size"])}, rows=rows)
                if self._whole(shard):
                    self._shards.append(shard)
            self._verified.write()
        self._places = {
            (part, row.keys[part]): (shard, number)
            for shard in self._shards
            for number, row in enumerate(shard.rows)
            for part in row.keys  # shards of an older version have no weights
        }

    def _whole(self, shard: Shard) -> bool:
        try:
            self._verified.check(shard.file, shard.checksum)
        except NestedAttentionError:
            return False
        return True

    def find(self, group: Sequence[Planned]) -> Shard | None:
        """The file that holds exactly these, if there is one."""
        rows = tuple(planned.row for planned in group)
        first = group[0]
        return next(
            (
                s
                for s in self._shards
                if s.rows == rows and (s.held_out, s.size) == (first.held_out, first.size)
            ),
            None,
        )

    def take(self, group: Sequence[Planned]) -> dict[str, dict[int, Tensors]]:
        """Part → place in the group → tensors, for what some file has already."""
        found: dict[str, dict[int, Tensors]] = {part: {} for part in PARTS}
        wanted: dict[str, list[tuple[str, int, int]]] = {}
        shards = {}
        for part in PARTS:
            for place, planned in enumerate(group):
                known = self._places.get((part, planned.row.keys[part]))
                if known is not None:
                    shard, number = known
                    shards[shard.file] = shard
                    wanted.setdefault(shard.file, []).append((part, place, number))
        for file, entries in wanted.items():
            tensors = read_shard(self._folder / file, shards[file].checksum).tensors
            for part, place, number in entries:
                found[part][place] = {name: tensors[name][number].clone() for name in PARTS[part]}
        return found

    def add(self, shard: Shard) -> None:
        self._append(shard)
        self._shards.append(shard)
        for number, row in enumerate(shard.rows):
            for part in PARTS:
                self._places[part, row.keys[part]] = shard, number

    def _append(self, shard: Shard) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(shard))

    def finish(self, shards: Sequence[Shard], blank: str) -> None:
        """Forget what is not among the shards of the new index, and delete its files."""
        used = {shard.file for shard in shards} | {blank}
        for shard in shards:
            self._verified.check(shard.file, shard.checksum)
        with replacing(self._path) as temporary:  # at no time is what has been encoded forgotten
            temporary.write_text("".join(map(_line, shards)), encoding="utf-8")
        for path in (self._folder / "shards").glob("*.safetensors"):
            if f"shards/{path.name}" not in used:
                path.unlink()
        self._verified.write()


def _line(shard: Shard) -> str:
    return json.dumps(asdict(shard)) + "\n"


class Encoding:
    """Encodes groups of samples. batch: how many at once; fewer from the first time that memory is full."""

    def __init__(self, recipe: Recipe, frozen: FrozenEncoders, journal: Journal) -> None:
        self._recipe, self._frozen, self._journal = recipe, frozen, journal
        self.batch = recipe.settings.batch

    def shard(self, group: Sequence[Planned], folder: Path, advance: Callable[[int], object]) -> Shard:
        """The shard of a group: the one that is there, or a new one. advance: is told of samples that are
        done."""
        there = self._journal.find(group)
        if there is not None:
            advance(len(group))
            return there
        parts = self._journal.take(group)
        missing = [i for i in range(len(group)) if any(i not in parts[part] for part in PARTS)]
        advance(len(group) - len(missing))
        with ThreadPoolExecutor(self._recipe.settings.workers) as pool:
            at = 0
            while at < len(missing):
                places = missing[at : at + self.batch]
                if self._fill([(i, group[i]) for i in places], parts, pool):
                    at += len(places)
                    advance(len(places))
        tensors = {
            name: torch.stack([parts[part][i][name] for i in range(len(group))])
            for part, names in PARTS.items()
            for name in names
        }
        file, found = write_shard(folder, tensors)
        rows = tuple(planned.row for planned in group)
        made = Shard(file=file, checksum=found, size=group[0].size, held_out=group[0].held_out, rows=rows)
        self._journal.add(made)
        return made

    def _fill(
        self,
        some: Sequence[tuple[int, Planned]],
        parts: dict[str, dict[int, Tensors]],
        pool: ThreadPoolExecutor,
    ) -> bool:
        """Encode what is missing of some samples; False if memory did not suffice, and `batch` is halved."""
        try:
            found = self._encode(some, parts, pool)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            reason = str(error).splitlines()[0]
        else:
            for part, each in found.items():
                parts[part] |= each
            return True
        clear_device_cache(garbage_collection=True)
        if len(some) == 1:
            raise NestedAttentionError(
                f"{some[0][1].row.name}: out of memory with one picture at a time ({reason}). Lower "
                "`resolution`, or set precision: bf16"
            )
        self.batch = len(some) // 2
        return False

    def _encode(
        self,
        some: Sequence[tuple[int, Planned]],
        parts: dict[str, dict[int, Tensors]],
        pool: ThreadPoolExecutor,
    ) -> dict[str, dict[int, Tensors]]:
        lacking = {part: [(i, p) for i, p in some if i not in parts[part]] for part in PARTS}
        looked = {i: p for part in ("picture", "reference", "weight") for i, p in lacking[part]}
        prepared = dict(zip(looked, pool.map(self._prepared, looked.values()), strict=True))
        found: dict[str, dict[int, Tensors]] = {part: {} for part in PARTS}
        if chosen := lacking["picture"]:
            pictures = torch.stack([prepared[i].target for i, _ in chosen])
            mean, deviation = (
                self._checked(x, chosen, "latents") for x in self._frozen.encode_pictures(pictures)
            )
            for n, (i, _) in enumerate(chosen):
                told = torch.tensor(prepared[i].told, dtype=torch.float32)
                found["picture"][i] = {
                    "latent_mean": mean[n],
                    "latent_deviation": deviation[n],
                    "sizes": told,
                }
        if chosen := lacking["caption"]:
            texts = self._frozen.encode_captions([p.row.caption for _, p in chosen])
            context, pooled = (self._checked(x, chosen, "text states") for x in texts)
            for n, (i, p) in enumerate(chosen):
                mask = torch.zeros(context.shape[1], dtype=torch.bool)
                mask[list(p.positions)] = True
                found["caption"][i] = {"context": context[n], "pooled": pooled[n], "mask": mask}
        for i, _ in lacking["weight"]:
            there = found["picture"].get(i) or parts["picture"][i]
            height, width = there["latent_mean"].shape[-2:]
            counts = torch.ones(height, width)
            if (weight := prepared[i].weight) is not None:
                counts = functional.adaptive_avg_pool2d(weight[None], (height, width))[0]
            found["weight"][i] = {"loss_weight": counts.to(torch.bfloat16)}
        if chosen := lacking["reference"]:
            shown = [prepared[i].reference for i, _ in chosen]
            features = self._frozen.encode_references(shown, self._recipe.settings.features)
            features = self._checked(features, chosen, "vision features")
            for n, (i, _) in enumerate(chosen):
                found["reference"][i] = {"features": features[n]}
        return found

    def _prepared(self, planned: Planned) -> Prepared:
        try:
            return self._recipe.prepare(planned.sample, planned.look)
        except Exception as error:
            raise NestedAttentionError(
                f"{planned.row.name} was there a moment ago, and now cannot be used ({error}); run the same "
                "command again when nothing changes the source"
            ) from error

    def _checked(self, values: Tensor, some: Sequence[tuple[int, Planned]], what: str) -> Tensor:
        """As bf16 on the CPU. Raises NestedAttentionError, naming the picture, for values that are not
        finite."""
        kept = values.to("cpu", torch.bfloat16)
        bad = (~kept.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if bad:
            dtype = str(values.dtype).removeprefix("torch.")
            raise NestedAttentionError(
                f"{some[bad[0]][1].row.name}: its {what} are NaN or infinite in {dtype}. SDXL's own "
                "autoencoder does not work in float16: set precision: bf16 or fp32, or vae: to one that "
                "does (madebyollin/sdxl-vae-fp16-fix). What is encoded already is kept"
            )
        return kept
