"""Placeholders of a prompt: `<alice> hugging a person`, `<alice:child>`.

A subject is carried by a placeholder, which is replaced by a word before the text encoder sees it, or by a
bare word. What is merely written in angle brackets (`<lora:x:0.8>`, `<s0>`) belongs to others and is left
alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from .errors import NestedAttentionError
from .prompt import (
    ANGLED,
    TAG,
    Span,
    Tokenize,
    apart,
    check_text,
    check_word,
    describe_words,
    is_letter,
    short,
    token_positions,
    word_spans,
)

_COLON = re.compile("[:：]")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class SubjectWord:
    """How a prompt refers to a subject: `<name>`, or else its word. Letter case and spacing do not matter."""

    name: str
    word: str

    @property
    def wanted(self) -> str:
        """What a prompt has to say, for messages."""
        return repr(self.word) if self.name == self.word else f"{self.word!r} or <{self.name}>"

    def shares_name(self, other: SubjectWord) -> bool:
        """Whether no prompt could tell the two apart."""
        return name_key(self.name) == name_key(other.name)


class Occurrence(NamedTuple):
    """Characters `start` to `end` of `ParsedPrompt.text` carry `subject`."""

    subject: SubjectWord
    start: int
    end: int


@dataclass(frozen=True)
class ParsedPrompt:
    """What the text encoder is to read and who is carried where.

    occurrences: ascending and apart. lookalikes: the different texts in angle brackets that call no subject.
    conflicts: one message for each two subjects that claim an occurrence; it carries neither. A host refuses
    them in a positive prompt. In a negative one they matter at most between subjects that are applied to it.
    """

    text: str
    occurrences: tuple[Occurrence, ...]
    lookalikes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    def carried(self, tokenize: Tokenize) -> Iterator[tuple[SubjectWord, list[int]]]:
        """Each subject carried and the positions of its word's tokens, the last of which carries it.

        tokenize: as for `prompt.token_positions`, whose errors it raises. A word that the tokens do not
        include carries nobody and is left out.
        """
        spans = [(occurrence.start, occurrence.end) for occurrence in self.occurrences]
        found = zip(self.occurrences, token_positions(tokenize, self.text, spans), strict=True)
        return ((occurrence.subject, positions) for occurrence, positions in found if positions)


def parse_prompt(
    text: str, subjects: Sequence[SubjectWord], carried: Collection[SubjectWord] | None = None
) -> ParsedPrompt:
    """Replaces placeholders by words and finds every occurrence of every subject.

    `<name>` becomes the subject's word and `<name:other>` the other word; where a prompt has none for a
    subject, each bare occurrence of its word carries it. carried: the subjects that this prompt may carry,
    all if left out; of the others, placeholders are replaced alone. Other text in angle brackets and two
    subjects on one occurrence are reported. Raises NestedAttentionError for a mistyped placeholder of a
    subject that the prompt calls nowhere else.
    """
    if not subjects:
        return ParsedPrompt(text, ())
    check_text(text)
    pieces: list[str] = []
    placed: list[Occurrence] = []
    passed: list[Span] = []
    lookalikes: dict[str, str | None] = {}  # and the bound name that each is likely a slip of
    at = length = 0

    def append(piece: str) -> Span:
        nonlocal length
        if piece:
            pieces.append(piece)
        length += len(piece)
        return length - len(piece), length

    def part() -> None:  # x<alice>, or <alice><bob>, must not become one word
        if pieces and is_letter(pieces[-1][-1]):
            append(" ")

    bound = _Bound(subjects)
    for match in ANGLED.finditer(text):
        append(text[at : match.start()])
        at = match.end()
        resolved = bound.resolve(match, text)
        if resolved is None:
            passed.append(append(match[0]))
            if match[0] not in lookalikes:
                lookalikes[match[0]] = None if TAG.fullmatch(match[0]) else bound.nearest(match)
            continue
        subject, word = resolved
        part()
        placed.append(Occurrence(subject, *append(word)))
        if is_letter(text[at : at + 1] or " "):
            part()
    append(text[at:])
    result = "".join(pieces)
    _check_unclosed(ANGLED.sub("", text), subjects, text)

    named = {occurrence.subject for occurrence in placed}
    taken = sorted([*passed, *((o.start, o.end) for o in placed)])
    bare = [
        Occurrence(subject, *span)
        for subject in subjects
        if subject not in named
        for span in apart(word_spans(result, subject.word), taken)
    ]
    meant = subjects if carried is None else carried
    occurrences = sorted((o for o in placed + bare if o.subject in meant), key=attrgetter("start", "end"))
    called = {subject.name for subject in named}
    called |= {s.name for s in {o.subject for o in bare} if name_key(s.name) == name_key(s.word)}
    for written, near in lookalikes.items():  # where that subject is called properly, it is another's word
        if near is not None and near not in called:
            raise NestedAttentionError(
                f"the prompt {short(text)!r} has {short(written)}, which is no subject; did you mean "
                f"<{near}>? {_known(subjects)}"
            )
    free, conflicts = _conflicts(occurrences, result)
    return ParsedPrompt(result, free, tuple(lookalikes), conflicts)


def why_missing(called: SubjectWord, words: Sequence[str], node: str | None = None) -> str:
    """Why no prompt carries a subject, for messages, without the last full stop: what the prompts say
    (`prompt.words_in`), and what to write. node: the one that has the subject's word, if a node has."""
    said = describe_words(words, called.word)
    told = f"{said}. Write {called.wanted} where the subject should appear"
    for word in words:
        if ANGLED.fullmatch(word):
            name = " ".join(_COLON.split(word[1:-1])[0].split())
            return f"{told}; {word} calls nobody unless the subject's name is {name!r}"
    unrelated = bool(words) and said == describe_words(words)  # nothing else is said of the word
    return told if node is None or not unrelated else f"{told}, or set word of {node} to one of these words"


class _Bound:
    """The subjects that a prompt can call, by what stands in angle brackets."""

    def __init__(self, subjects: Sequence[SubjectWord]) -> None:
        self._subjects = subjects
        self._names = [name_key(subject.name) for subject in subjects]
        self._found: dict[str, list[SubjectWord]] = {}
        for subject in subjects:
            self._found.setdefault(name_key(subject.word), []).append(subject)
        self._found |= {name: [subject] for name, subject in zip(self._names, subjects, strict=True)}

    def resolve(self, match: re.Match[str], text: str) -> tuple[SubjectWord, str] | None:
        """The subject that a `<…>` calls and the word to write; None if it calls none."""
        called, *rest = _COLON.split(match[1])
        found = self._found.get(name_key(called), [])
        if not found:
            return None
        written = short(match[0])
        if len(found) > 1:
            raise NestedAttentionError(
                f"the prompt {short(text)!r} has {written}, and {len(found)} subjects use that word: write "
                f"the name of one. {_known(self._subjects)}"
            )
        (subject,) = found
        if not rest:
            return subject, subject.word
        if len(rest) > 1 or _NUMBER.fullmatch(rest[0].strip()):
            raise NestedAttentionError(
                f"the prompt {short(text)!r} has {written}: a weight goes around a placeholder, as in "
                f"(<{subject.name}>:1.2); inside it may stand only another word, as in <{subject.name}:child>"
            )
        return subject, check_word(rest[0], f"the word in {written}")

    def nearest(self, match: re.Match[str]) -> str | None:
        """The bound name that a `<…>` is likely a mistyping of: one slip from 3 letters on, two from 6 on, or
        a bracket closed too late."""
        typed = name_key(_COLON.split(match[1])[0])
        for name, subject in zip(self._names, self._subjects, strict=True):
            if typed.startswith(name + " "):
                return subject.name
        distances = [_slips(typed, name) for name in self._names]
        best = min(range(len(distances)), key=distances.__getitem__)
        size = len(self._names[best])
        near = distances[best] <= (2 if size >= 6 else 1 if size >= 3 else 0)
        return self._subjects[best].name if near else None


def _check_unclosed(rest: str, subjects: Sequence[SubjectWord], text: str) -> None:
    for subject in subjects:
        name = r"\s+".join(map(re.escape, subject.name.split()))
        # Not after a letter, _ or >, as in the face >_< person.
        if re.search(rf"(?<![\w>.])[<＜]\s*{name}(?!\w)", rest, re.IGNORECASE):
            raise NestedAttentionError(
                f"the prompt {short(text)!r} opens the placeholder <{subject.name} and does not close it; "
                f"write <{subject.name}> or <{subject.name}:another word>"
            )


def _conflicts(
    occurrences: Sequence[Occurrence], text: str
) -> tuple[tuple[Occurrence, ...], tuple[str, ...]]:
    """The occurrences that share no character with another one, and a message for each two subjects that
    claim one place. occurrences: ascending."""
    claimed: set[Occurrence] = set()
    messages: dict[tuple[SubjectWord, SubjectWord], str] = {}
    one: Occurrence | None = None  # of those before, the one that reaches furthest
    for other in occurrences:
        if one is not None and other.start < one.end:
            claimed |= {one, other}
            pair = one.subject, other.subject
            if pair not in messages:
                names = f"<{one.subject.name}> and <{other.subject.name}>"
                messages[pair] = (
                    f"the word {text[other.start : other.end]!r} in the prompt {short(text)!r} would carry "
                    f"two subjects, {one.subject.name!r} and {other.subject.name!r}, and a word can carry "
                    f"one. Write {names} where they should appear, or give them different words"
                )
        if one is None or other.end > one.end:
            one = other
    free = [o for o in occurrences if o not in claimed] if claimed else occurrences
    return tuple(free), tuple(messages.values())


def _slips(a: str, b: str) -> int:
    """Damerau-Levenshtein distance: letters added, left out, changed, or two neighbours swapped."""
    if abs(len(a) - len(b)) > 2:  # far enough for all who ask, and texts may be long
        return abs(len(a) - len(b))
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


def name_key(name: str) -> str:
    """What tells a subject from others: its name, whatever its letter case, spacing and composition."""
    return unicodedata.normalize("NFC", " ".join(name.split()).casefold())


def _known(subjects: Sequence[SubjectWord]) -> str:
    return "Subjects bound here: " + ", ".join(f"<{s.name}> (word {s.word!r})" for s in subjects)
