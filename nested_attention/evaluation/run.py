"""One evaluation, from what is to be drawn to the page. Every step is kept: a run can be gone on with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import NestedAttentionError
from ..storage.files import replacing
from .drawing import Drawer, Drawing
from .figures import Document, compare, read_figures, summarise, unlike
from .page import write_page
from .samples import Sample
from .scorers import Scorer, Scores, check_keys

Item = TypeVar("Item")

Track = Callable[[Iterable[Item], int, str], Iterable[Item]]
"""(what is gone through, how many, what is being done) → the same; shows how far it is."""


def silently(items: Iterable[Item], _number: int, _what: str) -> Iterable[Item]:
    return items


@dataclass(frozen=True)
class Output:
    """The folder of an evaluation."""

    folder: Path

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def figures(self) -> Path:
        return self.folder / "figures.json"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.jsonl"

    @property
    def drawn_with(self) -> Path:
        return self.folder / "drawn_with.json"


def draw(
    drawings: Sequence[Drawing],
    drawer: Drawer,
    told: dict[str, Any],
    output: Output,
    track: Track[Any] = silently,
) -> None:
    """Draw the pictures that are not there yet.

    told: everything that decides what a picture looks like, but its name. Raises NestedAttentionError if the
    folder has pictures that were drawn otherwise, and if two would go to one file.
    """
    files: dict[str, Drawing] = {}
    for drawing in drawings:
        name = drawing.sample.name
        other = files.setdefault(name.casefold(), drawing)  # Windows and macOS have one file for both
        if other is not drawing:
            raise NestedAttentionError(
                f"a picture of {drawing.sample.subject} and one of {other.sample.subject} would have one "
                f"name, {name}; rename one of the subjects"
            )
    output.pictures.mkdir(parents=True, exist_ok=True)
    before = json.loads(output.drawn_with.read_text(encoding="utf-8")) if output.drawn_with.is_file() else {}
    changed = sorted(name for name in before if name in told and _differ(before[name], told[name]))
    if changed:
        raise NestedAttentionError(
            f"the pictures in {output.pictures} were drawn with another {', '.join(changed)}; choose another "
            f"output folder, or delete this one ({output.drawn_with.name} says what it was drawn with)"
        )
    write(output.drawn_with, json.dumps(_merged(before, told), sort_keys=True, indent=1) + "\n")
    missing = [drawing for drawing in drawings if not drawing.sample.picture.is_file()]
    if not missing:
        return
    for drawing, picture in track(zip(missing, drawer(missing), strict=True), len(missing), "Drawing"):
        with replacing(drawing.sample.picture) as temporary:
            picture.save(temporary, format="PNG")


def score(
    samples: Sequence[Sample], scorers: Sequence[Scorer], output: Output, track: Track[Any] = silently
) -> dict[str, dict[str, Scores]]:
    """Sample → scorer → measure → value. What an earlier run scored is taken from its file, unless the
    pictures or the scorer have changed since. Raises NestedAttentionError for two pictures of one name."""
    check_keys(scorers)
    kept = _read_scores(output.scores)
    pictures: dict[str, Path] = {}
    for sample in samples:
        if sample.name in pictures:
            raise NestedAttentionError(
                f"{pictures[sample.name]} and {sample.picture} have one name, {sample.name}; expected a name "
                "for each picture. Rename one of them or its subject, or take it out"
            )
        pictures[sample.name] = sample.picture
    found: dict[str, dict[str, Scores]] = {name: {} for name in pictures}
    hashes: dict[Path, str] = {}
    with output.scores.open("a", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # ends a line that was cut off when a run was killed
        for sample in track(samples, len(samples), "Scoring"):
            for scorer in scorers:
                state = _state(sample, scorer, hashes)
                known = kept.get((sample.name, scorer.key, state))
                if known is None:
                    known = scorer(sample)
                    line = {"name": sample.name, "scorer": scorer.key, "state": state, "scores": known}
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
                    file.flush()
                found[sample.name][scorer.key] = known
    return found


def conclude(
    samples: Sequence[Sample],
    scorers: Sequence[Scorer],
    scores: dict[str, dict[str, Scores]],
    output: Output,
    title: str,
    against: Path | None = None,
    told: dict[str, Any] | None = None,
    left_out: dict[str, str] | None = None,
) -> Document:
    """Write figures.json and report.html, and give what the former holds. left_out: pictures that could not
    be judged, and why."""
    document = summarise(samples, scorers, scores, title, output.folder)
    document["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    document["settings"] = told or {}
    document["left_out"] = left_out or {}
    if against is not None:
        before = read_figures(against)
        document["against"] = {
            "title": before["title"],
            "date": before["date"],
            "rows": compare(document, before),
            "unlike": unlike(document, before),
        }
    write(output.figures, json.dumps(document, indent=1) + "\n")
    write(output.page, write_page(document, samples))
    return document


def _differ(before: Any, now: Any) -> bool:
    """Of two dictionaries the entries that both have count: more prompts or subjects change no picture."""
    if isinstance(before, dict) and isinstance(now, dict):
        return any(before[name] != now[name] for name in before if name in now)
    return bool(before != now)


def _merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    return {
        **now,
        **{name: {**old, **now[name]} for name, old in before.items() if isinstance(now.get(name), dict)},
    }


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_scores(path: Path) -> dict[tuple[str, str, str], Scores]:
    """What earlier runs scored. A line that was cut off when a run was killed is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["name"], entry["scorer"], entry["state"]] = entry["scores"]
    return found


def _state(sample: Sample, scorer: Scorer, hashes: dict[Path, str]) -> str:
    """Changes when what the scorer sees does, or the scorer."""
    paths = [sample.picture, *([sample.truth] if sample.truth else [])]
    for person in sample.people:
        paths += [*person.references, *person.truths]
    for path in paths:
        if path not in hashes:
            if not path.is_file():
                raise NestedAttentionError(
                    f"there is no picture {path}, which {sample.name} needs; check the path"
                )
            hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    told = [scorer.state, sample.prompt, [hashes[path] for path in paths], [p.face for p in sample.people]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
