"""A blind comparison by people: a page of pairs, and win rates from the answers.

As in the paper's user study, people say which of two pictures follows the prompt better, which keeps the
subject better, and which they prefer on the whole. Which model drew which is in a file of its own, that the
page knows nothing of.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from ..errors import NestedAttentionError
from .figures import Document, alike, of_one_name
from .page import environment, picture_data
from .statistics import wilson

KEY_FORMAT = "nested_attention.preferences.key 1"
ANSWERS_FORMAT = "nested_attention.preferences.answers 1"

QUESTIONS = {
    "prompt": "Which picture follows the text better?",
    "identity": "Which picture shows the same subject as the reference?",
    "overall": "Which picture do you prefer?",
}

SIDES = ("left", "right", "neither")

SIDE = 512
"""Pixels of a picture's longer side on the page."""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one name, by two models."""

    name: str
    prompt: str
    references: tuple[Path, ...]
    pictures: tuple[Path, Path]  # of A and of B


def pairs_of(first: Document, second: Document, number: int, seed: int) -> list[Pair]:
    """Pictures that two evaluations have by the same name, `number` of them at random.

    Raises NestedAttentionError if they have none in common.
    """
    common = [pair for pair in of_one_name(first, second) if alike(*pair)]
    if not common:
        raise NestedAttentionError(
            "the two evaluations have no picture of one name and prompt; expected the same prompts, "
            "subjects, λ and seeds, drawn by two encoders or models"
        )
    chosen = Random(seed).sample(common, min(number, len(common)))
    return [
        Pair(
            name=picture["name"],
            prompt=picture["prompt"] or "",
            references=tuple(Path(path) for person in picture["references"] for path in person[:1]),
            pictures=(Path(picture["picture"]), Path(other["picture"])),
        )
        for picture, other in chosen
    ]


def write_preferences(pairs: Sequence[Pair], titles: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """The page, and the key that says which picture was whose.

    Half of the pairs have A on the left, by a chance that no seed repeats. Nothing on the page tells the
    models apart: pictures are written anew, without names or metadata, and questions have random names.
    """
    sides = [index % 2 == 0 for index in range(len(pairs))]
    SystemRandom().shuffle(sides)
    study = secrets.token_hex(8)
    asked, key = [], {}
    for pair, a_left in zip(pairs, sides, strict=True):
        question = secrets.token_hex(8)
        left, right = pair.pictures if a_left else pair.pictures[::-1]
        asked.append(
            {
                "id": question,
                "prompt": pair.prompt,
                "references": [picture_data(path, SIDE // 2, 90) for path in pair.references],
                "left": picture_data(left, SIDE, 90),
                "right": picture_data(right, SIDE, 90),
            }
        )
        key[question] = {"name": pair.name, "left": "A" if a_left else "B"}
    page = (
        environment()
        .get_template("preferences.html.j2")
        .render(pairs=asked, questions=QUESTIONS, study=study, format=ANSWERS_FORMAT)
    )
    document = {
        "format": KEY_FORMAT,
        "study": study,
        "A": titles[0],
        "B": titles[1],
        "page_sha256": hashlib.sha256(page.encode()).hexdigest(),
        "pairs": key,
    }
    return page, document


def count_preferences(key: dict[str, Any], answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Win rates of A over B for each question, with Wilson's interval. A "neither" is counted apart.

    Of several answers of one person to a pair, the last counts. Raises NestedAttentionError for answers to
    another page, and for those of one name that were given in two browsers: whether they are one person's,
    nobody but who asked can know.
    """
    found: dict[tuple[str, str, str], str] = {}
    browsers: dict[str, Any] = {}
    for number, document in enumerate(answers, start=1):
        _check(document, ANSWERS_FORMAT, f"answers {number}")
        if document.get("study") != key["study"]:
            raise NestedAttentionError(
                f"answers {number} are to the page {document.get('study')!r}, and the key belongs to "
                f"{key['study']!r}; count each page's answers with its own key"
            )
        person, entries = document.get("person"), document.get("answers")
        if not isinstance(person, str) or not isinstance(entries, list):
            raise NestedAttentionError(
                f"answers {number} are damaged: person is {person!r}, answers are {type(entries).__name__}; "
                "expected a name and a list, as the page writes them"
            )
        if browsers.setdefault(person, document.get("id")) != document.get("id"):
            raise NestedAttentionError(
                f"answers {number} and earlier ones have the name {person!r} and come from two browsers. If "
                'these are two people, give one of them another "person" in the file; else leave one file out'
            )
        for entry in entries:
            answer = _answer(entry, key)
            if answer is None:
                raise NestedAttentionError(
                    f"answers {number} hold {entry!r}; expected a pair of the key, one of "
                    f"{', '.join(QUESTIONS)}, and one of {', '.join(SIDES)}"
                )
            pair, question, side = answer
            found[person, pair, question] = side
    if not found:
        raise NestedAttentionError("the answers are empty; expected at least one")
    result: dict[str, Any] = {"A": key["A"], "B": key["B"], "people": len({person for person, _, _ in found})}
    for question in QUESTIONS:
        votes = [
            "neither" if side == "neither" else _winner(key["pairs"][pair]["left"], side)
            for (_, pair, asked), side in found.items()
            if asked == question
        ]
        wins, losses = votes.count("A"), votes.count("B")
        result[question] = {
            "wins_of_a": wilson(wins, wins + losses) if wins + losses else None,
            "neither": votes.count("neither"),
        }
    return result


def _answer(entry: Any, key: dict[str, Any]) -> tuple[str, str, str] | None:
    """Pair, question and side; None unless all three are known."""
    found = []
    for name, known in (("pair", key["pairs"]), ("question", QUESTIONS), ("side", SIDES)):
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, str) or value not in known:
            return None
        found.append(value)
    return found[0], found[1], found[2]


def _winner(left: str, side: str) -> str:
    if side == "left":
        return left
    return "B" if left == "A" else "A"


def read_key(path: Path) -> dict[str, Any]:
    """The key that belongs to a page."""
    return _read(path, KEY_FORMAT)


def read_answers(path: Path) -> dict[str, Any]:
    """What a person has downloaded from the page."""
    return _read(path, ANSWERS_FORMAT)


def _read(path: Path, expected: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NestedAttentionError(f"{path} cannot be read as JSON ({error}); check the path") from error
    _check(document, expected, str(path))
    return document


def _check(document: Any, expected: str, name: str) -> None:
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if found != expected:
        raise NestedAttentionError(f"{name} has the format {found!r}; expected {expected!r}")
