"""Pictures that any other workflow has made, read from folders as MultiID-Bench lays them out.

pictures/
  anna/                a folder for each subject, or group of people
    ref_1.jpg          the first person, as the model was shown them
    ref_2.jpg          the second person, where several are in the picture
    ref_1_b.jpg        another picture of the first person
    ori.jpg            the truth: a true picture of them all, if there is one
    out.jpg            the picture to be scored; every other picture is one, too
    meta.json          {"prompt": "…"}, or …
    out.txt            … the prompt of one picture

Recognisers of faces leave pets out: meta.json says "face": false where all are pets, and "pets": [2] where
the second is one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import NestedAttentionError
from .samples import PICTURES, Person, Sample

TRUTH = "ori"
_REFERENCE = re.compile(r"ref_(\d+)(?:_.+)?")
_PROMPTS = ("prompt", "caption_en")
"""What meta.json calls the prompt: in MultiID-Bench's own layout, and in its source files."""


def read_folder(folder: Path) -> list[Sample]:
    """The pictures to be scored in a folder and those below, each with its people, prompt and truth.

    Raises NestedAttentionError, naming the folder, for one without references, where nothing is to be scored,
    and for two people of one name.
    """
    if not folder.is_dir():
        raise NestedAttentionError(f"there is no folder {folder}; check the path of --images")
    samples: list[Sample] = []
    for place in [folder, *sorted(path for path in folder.rglob("*") if _is_folder(path, folder))]:
        pictures = sorted(path for path in place.iterdir() if _is_picture(path))
        if pictures:
            samples += _of_one_folder(place, pictures, folder)
    if not samples:
        raise NestedAttentionError(
            f"{folder} holds no pictures to score ({', '.join(PICTURES)}); expected a folder for each "
            "subject with ref_1.jpg and the pictures of them, as docs/evaluation.md shows"
        )
    _check_people(samples)
    return samples


def _check_people(samples: list[Sample]) -> None:
    """Raises NestedAttentionError for two people of one name: the second of `couple`, and of `couple 2`."""
    known: dict[str, Person] = {}
    for person in (person for sample in samples for person in sample.people):
        other = known.setdefault(person.name, person)
        if other != person:
            raise NestedAttentionError(
                f"{other.references[0]} and {person.references[0]} show two people who would both be called "
                f"{person.name!r}; rename one of the folders"
            )


def _is_folder(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)  # .ipynb_checkpoints
    return path.is_dir() and not hidden


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")  # macOS leaves `._out.jpg`


def _of_one_folder(place: Path, pictures: list[Path], root: Path) -> list[Sample]:
    name = place.relative_to(root).as_posix()
    name = root.resolve().name if name == "." else name
    numbered: dict[int, list[Path]] = {}
    truth: Path | None = None
    scored: list[Path] = []
    for path in pictures:
        stem = path.stem.casefold()  # cameras and Windows write capitals
        reference = _REFERENCE.fullmatch(stem)
        if reference:
            numbered.setdefault(int(reference.group(1)), []).append(path)
        elif stem == TRUTH:
            if truth is not None:
                raise NestedAttentionError(
                    f"{place} holds {truth.name} and {path.name}; expected one true picture. Take one away"
                )
            truth = path
        else:
            scored.append(path)
    if scored and not numbered:
        raise NestedAttentionError(
            f"{place} holds {scored[0].name} and no reference; expected ref_1.jpg beside it (ref_2.jpg for a "
            "second person, ref_1_b.jpg for another picture of the first)"
        )
    said = _Said.read(place / "meta.json")
    people = tuple(
        Person(
            name if len(numbered) == 1 else f"{name} {number}",
            tuple(paths),
            face=said.face and number not in said.pets,
        )
        for number, paths in sorted(numbered.items())
    )
    return [
        Sample(
            name=_file_name(name, path.stem),
            picture=path,
            people=people,
            prompt=_beside(path) or said.prompt,
            truth=truth,
        )
        for path in scored
    ]


def _file_name(folder: str, stem: str) -> str:
    return f"{folder}/{stem}".replace("/", "__")


def _beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return _text(text).strip() or None if text.is_file() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NestedAttentionError(f"{path} cannot be read ({error}); expected text in UTF-8") from error


@dataclass(frozen=True)
class _Said:
    """What meta.json says. face: False where recognisers of faces leave everybody out; pets: numbers of the
    references whom they leave out."""

    prompt: str | None = None
    face: bool = True
    pets: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path) -> _Said:
        """Raises NestedAttentionError for a file that is not as docs/evaluation.md shows it."""
        if not path.is_file():
            return cls()
        try:
            meta = json.loads(_text(path))
        except ValueError as error:
            raise NestedAttentionError(
                f'{path} is not valid JSON ({error}); expected {{"prompt": "…"}}'
            ) from error
        if not isinstance(meta, dict):
            raise NestedAttentionError(f'{path} holds {type(meta).__name__}; expected {{"prompt": "…"}}')
        prompt = next((meta[key] for key in _PROMPTS if key in meta), None)
        if prompt is not None and not isinstance(prompt, str):
            raise NestedAttentionError(f"{path} has the prompt {prompt!r}; expected text")
        face, pets = meta.get("face", True), meta.get("pets", [])
        numbers = isinstance(pets, list) and all(type(number) is int for number in pets)
        if not isinstance(face, bool) or not numbers:
            raise NestedAttentionError(
                f'{path} has "face": {face!r} and "pets": {pets!r}; expected false where all are pets, and a '
                "list of the numbers of references where some are"
            )
        return cls(prompt, face, tuple(pets))
