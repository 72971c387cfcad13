"""Looking through a source: which samples are kept, at what size, with what caption; and which are not,
why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import NestedAttentionError
from ...prompt import Tokenize
from ..shards import Row
from .pictures import Size
from .recipes import Recipe, Rejected
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
    size: Size
    positions: tuple[int, ...]
    row: Row
    held_out: bool = False


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
    for sample in tqdm(list(samples), desc="looking", unit="picture", disable=None):
        try:
            caption, positions = recipe.caption(_text(sample), tokenize)
            weight, extras = _weight_and_others(sample)
            content = digest(_bytes(sample.picture), *extras)
            size = known.size_of(digest(content, made, *weight), recipe, sample)
        except Rejected as error:
            rejects.append(Reject(sample.name, error.reason, error.detail))
            continue
        keys = {
            "picture": digest(content, size, made, frozen["vae"]),
            "caption": digest(caption, positions, texts),
            "reference": digest(content, made, settings.features, frozen["vision"]),
            "weight": digest(size, frozen["vae"], *weight),
        }
        row = Row(name=sample.name, caption=caption, subject=sample.subject, keys=keys)
        kept.append(Planned(sample, size, tuple(positions), row))
    return Plan(_parted(kept, settings), rejects)


def _text(sample: Sample) -> str | None:
    try:
        return sample.caption()
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected("no caption", f"it cannot be read ({error})") from error


def _weight_and_others(sample: Sample) -> tuple[list[bytes], list[bytes]]:
    """The picture of weights, if there is one, and what else a sample has beside its picture. No encoder
    reads the weights, so that other ones make none of them run again."""
    more = {name: _bytes(read) for name, read in sorted(sample.more.items())}
    return [more.pop("weight")] if "weight" in more else [], list(more.values())


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
    return [Planned(p.sample, p.size, p.positions, p.row, p.row.subject in held) for p in kept]


def in_shards(plan: Plan, size: int) -> Iterator[list[Planned]]:
    """What goes into one file each: of one size, held out or not."""
    groups: dict[tuple[bool, Size], list[Planned]] = {}
    for planned in plan.kept:
        groups.setdefault((planned.held_out, planned.size), []).append(planned)
    for _, group in sorted(groups.items(), key=lambda item: item[0]):
        for start in range(0, len(group), size):
            yield group[start : start + size]


class _Verdicts:
    """A file with a line for each picture that was looked at: its size, or why it was rejected."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, dict[str, Any]()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, verdict = json.loads(line)
                except ValueError:  # a line that a kill cut off
                    continue
                self._known[key] = verdict

    def size_of(self, key: str, recipe: Recipe, sample: Sample) -> Size:
        """Raises Rejected."""
        verdict = self._known.get(key)
        if verdict is None:
            try:
                verdict = {"size": recipe.size_of(sample)}
            except Rejected as error:
                verdict = {"reason": error.reason, "detail": error.detail}
            self._known[key] = verdict
            self._append([key, verdict])
        if "reason" in verdict:
            raise Rejected(verdict["reason"], verdict["detail"])
        height, width = verdict["size"]
        return height, width

    def _append(self, line: Any) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise NestedAttentionError(
                f"{self._path} cannot be written ({error.strerror}); free space and run the same command "
                "again: it "
                "goes on from here"
            ) from error
