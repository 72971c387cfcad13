"""Looking through a source: which samples are kept, at what size, with what caption; and which are not,
why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ...errors import NestedAttentionError
from ...pictures.square import Square
from ...prompt import Tokenize
from ..shards import Row
from .pictures import Size
from .recipes import Look, Recipe, Rejected
from .settings import PrepareSettings
from .sources import Sample

_TIMES = 1  # raise it when what is made of a picture changes: nothing that was made before is used then


@dataclass(frozen=True)
class Reject:
    """A sample that is left out. reason: of EXPECTED_REASONS."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Planned:
    """A sample that is kept. positions: of the word's last tokens in the caption."""

    sample: Sample
    look: Look
    positions: tuple[int, ...]
    row: Row
    held_out: bool = False

    @property
    def size(self) -> Size:
        return self.look.size


@dataclass(frozen=True, eq=False)
class Plan:
    """kept: in the source's order."""

    kept: list[Planned]
    rejects: list[Reject]


def digest(*parts: object) -> str:
    """A hash of bytes, and of whatever else JSON can hold."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        hashed.update(len(content).to_bytes(8, "little") + content)
    return hashed.hexdigest()


def look_through(
    samples: Iterable[Sample], recipe: Recipe, tokenize: Tokenize, frozen: dict[str, str], notes: Path
) -> Plan:
    """Decide on every sample. frozen: fingerprints of the encoders. notes: a file in which verdicts on
    pictures are kept, so that none is looked at twice."""
    settings = recipe.settings
    known, kept, rejects = _Verdicts(notes), [], []
    names = (
        "recipe",
        "reference",
        "isolate",
        "resolution",
        "square",
        "step",
        "sizes",
        "enlarged",
        "smallest",
        "size_conditioning",
    )
    made = [_TIMES, *(getattr(settings, name) for name in names)]
    texts = frozen["text_encoder"], frozen["text_encoder_2"]
    said = {}
    for sample in samples:
        try:
            said[sample] = recipe.caption(_text(sample), tokenize)
        except Rejected as error:
            rejects.append(Reject(sample.name, error.reason, error.detail))
    for sample, seen in zip(said, _seen(list(said), recipe, made, known), strict=True):
        if isinstance(seen, Rejected):
            rejects.append(Reject(sample.name, seen.reason, seen.detail))
            continue
        caption, positions = said[sample]
        keys = {
            "picture": digest(seen.content, seen.look.size, made, frozen["vae"]),
            "caption": digest(caption, positions, texts),
            "reference": digest(seen.content, made, settings.features, frozen["vision"]),
            "weight": digest(seen.look.size, frozen["vae"], *seen.weight),
        }
        row = Row(name=sample.name, caption=caption, subject=sample.subject, keys=keys)
        kept.append(Planned(sample, seen.look, tuple(positions), row))
    return Plan(_parted(kept, settings), rejects)


class _Seen(NamedTuple):
    """A sample that can be used: a hash of its pictures, the bytes of its weights, and the look at it."""

    content: str
    weight: list[bytes]
    look: Look


def _seen(
    samples: list[Sample], recipe: Recipe, made: list[Any], known: _Verdicts
) -> Iterator[_Seen | Rejected]:
    """What was found of every sample, in order. Threads read and look, each on one core: more make the many
    small operations that a face takes no faster."""

    def see(sample: Sample) -> _Seen | Rejected:
        try:
            weight, extras = _weight_and_others(sample)
            named = (part for extra in extras.items() for part in extra)
            content = digest(_bytes(sample.picture), *named)
            return _Seen(content, weight, known.look(digest(content, made, *weight), recipe, sample))
        except Rejected as error:
            return error

    workers, cores = recipe.settings.workers, torch.get_num_threads()
    left = iter(tqdm(samples, desc="looking", unit="picture", disable=None))
    try:
        with ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1)) as pool:
            while some := list(islice(left, 8 * workers)):  # few, so that it can be stopped
                yield from pool.map(see, some)
    finally:
        torch.set_num_threads(cores)


def _text(sample: Sample) -> str | None:
    try:
        return sample.caption()
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected("no caption", f"it cannot be read ({error})") from error


def _weight_and_others(sample: Sample) -> tuple[list[bytes], dict[str, bytes]]:
    """The picture of weights, if there is one, and what else a sample has beside its picture, by name. No
    encoder reads the weights, so that other ones make none of them run again."""
    more = {name: _bytes(read) for name, read in sorted(sample.more.items())}
    return [more.pop("weight")] if "weight" in more else [], more


def _bytes(read: Any) -> bytes:
    try:
        content: bytes = read()
        return content
    except (OSError, TypeError) as error:
        raise Rejected("not a picture", f"it cannot be read ({error})") from error


def _parted(kept: list[Planned], settings: PrepareSettings) -> list[Planned]:
    """With the subjects marked that are held out: a quarter at most, by their names' hashes."""
    subjects = sorted({planned.row.subject for planned in kept}, key=digest)
    held = set(subjects[: min(settings.held_out, len(subjects) // 4)])
    return [replace(planned, held_out=planned.row.subject in held) for planned in kept]


def in_shards(plan: Plan, size: int) -> Iterator[list[Planned]]:
    """What goes into one file each: of one size, held out or not."""
    groups: dict[tuple[bool, Size], list[Planned]] = {}
    for planned in plan.kept:
        groups.setdefault((planned.held_out, planned.size), []).append(planned)
    for _, group in sorted(groups.items(), key=lambda item: item[0]):
        for start in range(0, len(group), size):
            yield group[start : start + size]


class _Verdicts:
    """A file with a line for each picture that was looked at: what was found, or why it was rejected."""

    def __init__(self, path: Path) -> None:
        self._path, self._known, self._writing = path, dict[str, Any](), Lock()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, verdict = json.loads(line)
                except ValueError:  # a line that a kill cut off
                    continue
                self._known[key] = verdict

    def look(self, key: str, recipe: Recipe, sample: Sample) -> Look:
        """Raises Rejected."""
        verdict = self._known.get(key)
        if verdict is None or (recipe.shows_face(sample) and not verdict.keys() & {"face", "reason"}):
            try:
                found = recipe.look(sample)
                verdict = {"size": found.size, "face": found.face and _numbers(found.face)}
            except Rejected as error:
                verdict = {"reason": error.reason, "detail": error.detail}
            self._keep(key, verdict)
        if "reason" in verdict:
            raise Rejected(verdict["reason"], verdict["detail"])
        height, width = verdict["size"]
        face = verdict.get("face")
        return Look((height, width), face and Square(complex(*face[:2]), complex(*face[2:])))

    def _keep(self, key: str, verdict: dict[str, Any]) -> None:
        self._known[key] = verdict
        try:
            with self._writing, self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, verdict]) + "\n")
        except OSError as error:
            raise NestedAttentionError(
                f"{self._path} cannot be written ({error.strerror}); free space and run the same command "
                "again: it goes on from here"
            ) from error


def _numbers(square: Square) -> list[float]:
    return [square.centre.real, square.centre.imag, square.right.real, square.right.imag]
