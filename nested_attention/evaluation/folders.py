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
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import NestedAttentionError
from .samples import PICTURES, Person, Sample

TRUTH = "ori"
_REFERENCE = re.compile(r"ref_(\d+)(?:_.+)?")
_PROMPTS = ("prompt", "caption_en")
"""What meta.json calls the prompt: in MultiID-Bench's own layout, and in its source files."""


def read_folder(folder: Path) -> list[Sample]:
    """The pictures to be scored in a folder and those below, each with its people, prompt and truth.

    Raises NestedAttentionError, naming the folder, for one without references, and where nothing is to be
    scored.
    """
    if not folder.is_dir():
        raise NestedAttentionError(f"there is no folder {folder}; check the path of --images")
    samples: list[Sample] = []
    for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        pictures = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURES)
        if pictures:
            samples += _of_one_folder(place, pictures, folder)
    if not samples:
        raise NestedAttentionError(
            f"{folder} holds no pictures to score ({', '.join(PICTURES)}); expected a folder for each "
            "subject with ref_1.jpg and the pictures of them, as docs/evaluation.md shows"
        )
    return samples


def _of_one_folder(place: Path, pictures: list[Path], root: Path) -> list[Sample]:
    name = place.relative_to(root).as_posix()
    name = root.resolve().name if name == "." else name
    numbered: dict[int, list[Path]] = {}
    truth, scored = None, []
    for path in pictures:
        reference = _REFERENCE.fullmatch(path.stem)
        if reference:
            numbered.setdefault(int(reference.group(1)), []).append(path)
        elif path.stem == TRUTH:
            truth = path
        else:
            scored.append(path)
    if scored and not numbered:
        raise NestedAttentionError(
            f"{place} holds {scored[0].name} and no reference; expected ref_1.jpg beside it (ref_2.jpg for a "
            "second person, ref_1_b.jpg for another picture of the first)"
        )
    people = tuple(
        Person(name if len(numbered) == 1 else f"{name} {number}", tuple(paths))
        for number, paths in sorted(numbered.items())
    )
    prompt = _prompt(place)
    return [
        Sample(
            name=_file_name(name, path.stem),
            picture=path,
            people=people,
            prompt=_beside(path) or prompt,
            truth=truth,
        )
        for path in scored
    ]


def _file_name(folder: str, stem: str) -> str:
    return f"{folder}/{stem}".replace("/", "__")


def _beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() or None if text.is_file() else None


def _prompt(place: Path) -> str | None:
    path = place / "meta.json"
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        found = next((meta[key] for key in _PROMPTS if key in meta), None)
    except (ValueError, TypeError) as error:
        raise NestedAttentionError(
            f'{path} is not valid JSON ({error}); expected {{"prompt": "…"}}'
        ) from error
    if found is not None and not isinstance(found, str):
        raise NestedAttentionError(f"{path} has the prompt {found!r}; expected text")
    return found
