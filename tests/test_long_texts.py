"""No text makes a server wait: all that reads a prompt or a file name takes time in proportion to its length.

Lengths are doubled up to a million characters, and to an eighth of that where whole prompts are read. What
is quadratic exceeds the limit long before the end, so a slow machine does not matter.
"""

from __future__ import annotations

import ast
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nested_attention.errors import NestedAttentionError
from nested_attention.placeholders import ParsedPrompt, SubjectWord, parse_prompt, why_missing
from nested_attention.prompt import ANGLED, check_text, check_word, find_word, word_spans, words_in

try:
    from re import _parser as parser
except ImportError:  # Python 3.10
    import sre_parse as parser

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1_000_000
LIMIT_S = 4.0

FIELDS = {  # what f-strings put into expressions
    "key": "version",
    "pattern": r"old\s+man",
    "letters": "[\\w\u0300-\u036f]",
    "name": r"old\s+man",
    "_letters(plain)": "[\\w\u0300-\u036f]",
    "_marks()": "\u0300-\u036f",
    "joins": "\u0300-\u036f\u1160-\u11ff",
    "ANGLED.pattern": ANGLED.pattern,
    "names": r"man|old\ man",
}


def expressions() -> Iterator[tuple[str, str]]:
    """Each regular expression of the pack, where it stands and how it reads."""
    for path in sorted([*(ROOT / "nested_attention").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) == "re"
                and node.func.attr != "escape"
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", written(node.args[0])


def written(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.BinOp):
        return written(node.left) + written(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            written(part.value) if isinstance(part, ast.FormattedValue) else str(part.value)
            for part in node.values
        )
    code = ast.unparse(node)
    assert code in FIELDS or code.startswith("re.escape("), f"say in FIELDS what {code} stands for"
    return FIELDS.get(code, "alice")


def attacks(expression: str) -> set[tuple[str, str]]:
    """(start, what to repeat): for every repetition in it what it takes, after what leads there; and the
    whole, without what would end it."""
    found: set[tuple[str, str]] = set()

    def sample(items: Any, start: str) -> str:
        """A text that the items match, after `start`."""
        text = ""
        for op, value in items:
            name = str(op)
            if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
                least, most, inner = value
                piece = sample(inner, start + text)
                if most > 1000:
                    found.add((start + text, piece))
                text += piece * max(least, 1)
            elif name == "SUBPATTERN":
                text += sample(value[-1], start + text)
            elif name == "BRANCH":
                pieces = [sample(branch, start + text) for branch in value[1]]
                text += pieces[0]
            elif name == "LITERAL":
                text += chr(value)
            elif name == "NOT_LITERAL":
                text += "z"
            elif name == "IN":
                text += member(value)
            elif name == "ANY":
                text += "z"
        return text

    whole = sample(parser.parse(expression), "")
    return found | {("", whole[:-1]), ("", whole)} if whole else found


def member(items: Any) -> str:
    """A character of a class."""
    kinds = {"CATEGORY_DIGIT": "1", "CATEGORY_WORD": "w", "CATEGORY_SPACE": " "}
    first, value = items[0]
    if str(first) == "NEGATE":
        return "z"
    if str(first) == "LITERAL":
        return chr(value)
    return chr(value[0]) if str(first) == "RANGE" else kinds.get(str(value), "z")


def doubled(make: Callable[[int], str], read: Callable[[str], Any]) -> None:
    """Reads texts of doubled lengths up to the longest."""
    size = 2000
    while size < LONGEST:
        size *= 2
        text = make(min(size, LONGEST))
        start = time.process_time()
        try:
            read(text)
        except NestedAttentionError as error:
            assert len(str(error)) < 2000  # nor does an answer repeat it all
        took = time.process_time() - start
        assert took < LIMIT_S, f"{took:.1f} s for {len(text)} characters, {text[:60]!r}…"


ALL = sorted(expressions())


def test_all_expressions_are_found() -> None:
    files = {where.split(":")[0] for where, _ in ALL}
    assert {"nested_attention/prompt.py", "nested_attention/placeholders.py"} <= files
    using = [
        path
        for path in (*(ROOT / "nested_attention").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"))
        if re.search(r"^\s*(?:import|from) (?:re|regex|fnmatch|glob)\b", path.read_text(), re.MULTILINE)
    ]
    assert {str(path.relative_to(ROOT)) for path in using} == files


@pytest.mark.parametrize("expression", sorted({written for _, written in ALL}))
def test_every_expression_is_linear(expression: str) -> None:
    compiled = re.compile(expression, re.IGNORECASE)
    for start, piece in attacks(expression):
        if not piece:
            continue
        for end in ("", "\0"):

            def make(size: int, start: str = start, piece: str = piece, end: str = end) -> str:
                return start + piece * (size // len(piece)) + end

            def read(text: str) -> None:
                compiled.fullmatch(text)
                compiled.sub("", text)

            doubled(make, read)


def test_an_expression_that_is_not_linear_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LIMIT_S", 0.2)
    with pytest.raises(AssertionError, match="characters"):
        test_every_expression_is_linear(r"[-+]?\d*\.?\d+")


SUBJECTS = (SubjectWord("alice", "person"), SubjectWord("bob", "person"), SubjectWord("old man", "old man"))
PIECES = [
    "person ",
    "PERSON, ",
    "<alice> ",
    "<alice:child> and <bob> ",
    "<alcie> <bob> ",
    "<s0> person ",
    "<lora:x:1> person ",
    "embedding:x person ",
    "<alice:1",
    "<",
    "< ",
    "<alice",
    "old ",
    "old man ",
    "old" + " " * 50,
    "1",
    "'",
    "_",
    "((person:1.2)) ",
    "nin\u0303o ",
    "\u0301",
    "每个女孩",
    "＜alice＞ ",
    ">",
    ":",
    "\n",
]


def words(text: str) -> Sequence[int]:
    """A tokenizer as fast as one can be: it splits at spaces."""
    return [
        1,
        *map(hash, text.lower().replace(",", " , ").replace("(", " ( ").replace(")", " ) ").split()),
        2,
    ]


def read_everything(text: str) -> None:
    check_text(text)
    list(word_spans(text, "old man"))
    why_missing(SUBJECTS[0], words_in(text))
    for read in (
        lambda: check_word(text, "word"),
        lambda: find_word(words, text, "person"),
        lambda: carried(parse_prompt(text, SUBJECTS[:1])),
    ):
        try:
            read()
        except NestedAttentionError as error:
            assert len(str(error)) < 2000
    carried(parse_prompt(text, SUBJECTS))


def carried(parsed: ParsedPrompt) -> None:
    assert all(len(message) < 2000 for message in parsed.conflicts)
    list(parsed.carried(words))


@pytest.mark.parametrize("piece", PIECES)
def test_every_prompt_is_read_in_proportion(piece: str) -> None:
    doubled(lambda size: piece * (size // len(piece) // 8), read_everything)
    if len(piece) == 1:
        doubled(lambda size: f"<alice:{piece * (size // 8)}x>", read_everything)


def test_names_and_placeholders_that_all_differ() -> None:
    doubled(
        lambda size: " ".join(f"<alice:w{i}> <s{i}> <al{i}ce>, <bob>" for i in range(size // 480)),
        read_everything,
    )


@pytest.mark.parametrize(
    "text", ["a person " * 3, "<alice> and <bob>, a person " * 500, "Person, person " * 2000]
)
def test_a_prompt_is_tokenised_twice(text: str) -> None:
    """The whole of it, however often words occur and however many subjects there are."""
    parsed = parse_prompt(text, SUBJECTS[:2] if "<" in text else SUBJECTS[:1])
    asked: list[str] = []

    def counting(text: str) -> Sequence[int]:
        asked.append(text)
        return words(text)

    found = list(parsed.carried(counting))
    assert len(found) == len(parsed.occurrences) > 2
    assert sum(text.count(" ") >= parsed.text.count(" ") for text in asked) == 2
    assert len(asked) < 20
