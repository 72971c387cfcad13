"""Placeholders of a prompt: `<alice> hugging a person`, `<alice:child>`.

A subject is carried by a placeholder, which is replaced by a word before the text encoder sees it, or by a
bare word. What is merely written in angle brackets (`<lora:x:0.8>`, `<s0>`) belongs to others and is left
alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import NestedAttentionError
from .prompt import ANGLED, TAG, Span, check_word, overlap, short, word_spans

_NUMBER = re.compile(r"[-+]?\d*\.?\d+")


@dataclass(frozen=True)
class SubjectWord:
    """How a prompt refers to a subject: `<name>`, or else its word. Letter case and spacing do not matter."""

    name: str
    word: str


@dataclass(frozen=True)
class Occurrence:
    """Characters `start` to `end` of `ParsedPrompt.text` carry `subject`."""

    subject: SubjectWord
    start: int
    end: int


@dataclass(frozen=True)
class ParsedPrompt:
    """What the text encoder is to read and who is carried where.

    lookalikes: text in angle brackets that calls no subject. conflicts: one message for each occurrence that
    two subjects claim; it carries neither. A host refuses them where the prompt is meant to carry subjects:
    in a negative prompt they do not matter.
    """

    text: str
    occurrences: tuple[Occurrence, ...]
    lookalikes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


def parse_prompt(text: str, subjects: Sequence[SubjectWord]) -> ParsedPrompt:
    """Replaces placeholders by words and finds every occurrence of every subject.

    `<name>` becomes the subject's word and `<name:other>` the other word; where a prompt has none for a
    subject, each bare occurrence of its word carries it. Other text in angle brackets and two subjects on one
    occurrence are reported. Raises NestedAttentionError for a mistyped placeholder of a subject that the
    prompt calls nowhere else.
    """
    if not subjects:
        return ParsedPrompt(text, ())
    pieces: list[str] = []
    placed: list[Occurrence] = []
    passed: list[Span] = []
    lookalikes: list[str] = []
    slips: list[tuple[str, str]] = []
    at = length = 0

    def append(piece: str) -> Span:
        nonlocal length
        if piece:
            pieces.append(piece)
        length += len(piece)
        return length - len(piece), length

    def part() -> None:  # x<alice>, or <alice><bob>, must not become one word
        if pieces and pieces[-1][-1].isalnum():
            append(" ")

    for match in ANGLED.finditer(text):
        append(text[at : match.start()])
        at = match.end()
        resolved = _resolve(match, subjects, text)
        if resolved is None:
            near = None if TAG.fullmatch(match[0]) else _nearest(_normal(match[1].split(":")[0]), subjects)
            if near is not None:
                slips.append((match[0], near))
            passed.append(append(match[0]))
            lookalikes.append(match[0])
            continue
        subject, word = resolved
        part()
        placed.append(Occurrence(subject, *append(word)))
        if text[at : at + 1].isalnum():
            part()
    append(text[at:])
    result = "".join(pieces)
    _check_unclosed(ANGLED.sub("", text), subjects, text)

    named = {occurrence.subject for occurrence in placed}
    taken = passed + [(o.start, o.end) for o in placed]
    bare = [
        Occurrence(subject, *span)
        for subject in subjects
        if subject not in named
        for span in word_spans(result, subject.word)
        if not any(overlap(span, other) for other in taken)
    ]
    occurrences = sorted(placed + bare, key=lambda o: (o.start, o.end))
    called = {o.subject.name for o in placed}
    called |= {o.subject.name for o in bare if _normal(o.subject.name) == _normal(o.subject.word)}
    for written, near in slips:  # where that subject is called properly, it is somebody else's word
        if near not in called:
            raise NestedAttentionError(
                f"the prompt {short(text)!r} has {written}, which is no subject; did you mean <{near}>? "
                f"{_known(subjects)}"
            )
    conflicts = _conflicts(occurrences, result)
    free = tuple(o for o in occurrences if o not in conflicts)
    return ParsedPrompt(result, free, tuple(lookalikes), tuple(dict.fromkeys(conflicts.values())))


def _resolve(
    match: re.Match[str], subjects: Sequence[SubjectWord], text: str
) -> tuple[SubjectWord, str] | None:
    """The subject that a `<…>` calls and the word to write; None if it calls none."""
    called, *rest = match[1].split(":")
    name = _normal(called)
    found = [s for s in subjects if _normal(s.name) == name] or [
        s for s in subjects if _normal(s.word) == name
    ]
    if not found:
        return None
    if len(found) > 1:
        raise NestedAttentionError(
            f"the prompt {short(text)!r} has {match[0]}, and {len(found)} subjects use that word: write the "
            f"name of one. {_known(subjects)}"
        )
    subject = found[0]
    if not rest:
        return subject, subject.word
    word = " ".join(rest[0].split())
    if len(rest) > 1 or _NUMBER.fullmatch(word):
        raise NestedAttentionError(
            f"the prompt {short(text)!r} has {match[0]}: a weight goes around a placeholder, as in "
            f"(<{subject.name}>:1.2); inside it may stand only another word, as in <{subject.name}:child>"
        )
    check_word(word, f"the word in {match[0]}")
    return subject, word


def _check_unclosed(rest: str, subjects: Sequence[SubjectWord], text: str) -> None:
    for subject in subjects:
        # Not after a letter, _ or >, as in the face >_< person.
        if re.search(rf"(?<![\w>.])<\s*{re.escape(subject.name)}(?!\w)", rest, re.IGNORECASE):
            raise NestedAttentionError(
                f"the prompt {short(text)!r} opens the placeholder <{subject.name} and does not close it; "
                f"write <{subject.name}> or <{subject.name}:another word>"
            )


def _conflicts(occurrences: Sequence[Occurrence], text: str) -> dict[Occurrence, str]:
    """The occurrences that share characters with another subject's, each with its message."""
    messages: dict[Occurrence, str] = {}
    for i, one in enumerate(occurrences):
        for other in occurrences[i + 1 :]:
            if other.subject != one.subject and overlap((one.start, one.end), (other.start, other.end)):
                names = f"<{one.subject.name}> and <{other.subject.name}>"
                messages[one] = messages[other] = (
                    f"the word {text[other.start : other.end]!r} in the prompt {short(text)!r} would carry "
                    f"two subjects, {one.subject.name!r} and {other.subject.name!r}, and a word can carry "
                    f"one. Write {names} where they should appear, or give them different words in Apply "
                    "Subject"
                )
    return messages


def _nearest(name: str, subjects: Sequence[SubjectWord]) -> str | None:
    """The bound name that `name` is likely a mistyping of: one slip from 3 letters on, two from 6 on, or a
    bracket closed too late."""
    for subject in subjects:
        if name.startswith(_normal(subject.name) + " "):
            return subject.name
    distances = {s.name: _slips(name, _normal(s.name)) for s in subjects}
    best = min(distances, key=distances.__getitem__)
    size = len(_normal(best))
    return best if distances[best] <= (2 if size >= 6 else 1 if size >= 3 else 0) else None


def _slips(a: str, b: str) -> int:
    """Damerau-Levenshtein distance: letters added, left out, changed, or two neighbours swapped."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def _normal(name: str) -> str:
    return " ".join(name.split()).casefold()


def _known(subjects: Sequence[SubjectWord]) -> str:
    return "Subjects bound here: " + ", ".join(f"<{s.name}> (word {s.word!r})" for s in subjects)
