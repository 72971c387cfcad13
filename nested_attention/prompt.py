"""Words of a prompt → positions among its tokens.

Everything here is pure: the tokenizer comes in as a function, so ComfyUI's (with weights, escapes and
embeddings) and Hugging Face's serve alike. Placeholders such as `<alice>` are the business of
`placeholders.py`.

How positions are found: the word is replaced by as many copies of a one-token probe word, and what changes
among the tokens is the word. Two different probes leave no coincidence, the equal count leaves every other
token where it was, chunk borders included, and nothing has to be known about the tokenizer's syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from .errors import NestedAttentionError

Tokenize = Callable[[str], Sequence[int]]
"""Text → flat token ids with start, end and padding, 77 a chunk."""

_PROBES = ("a", "b", "i", "cat", "dog", "red", "sun")

# Text that is addressed to someone else: names of embedding files, and the tags that LoRA loaders read.
EMBEDDING = re.compile(r"(?<!\w)embedding:[^\s()]*")
TAG = re.compile(
    r"<\s*(?:lora|lyco|lycoris|hypernet|hypernetwork|embedding|ti|wildcard)\s*:[^<>]*>", re.IGNORECASE
)
ANGLED = re.compile(r"<([^<>\n]*)>")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

Span = tuple[int, int]


def find_word(tokenize: Tokenize, text: str, word: str, occurrence: int | None = None) -> list[int]:
    """Position of the last token of each occurrence of `word` in `text`, ascending.

    tokenize: flat ids with start, end and padding, 77 a chunk, so that a position is 77·chunk + place.
    Whole words, whatever the case; names of embeddings and tags such as `<lora:…>` are not searched.
    `occurrence` (0-based) picks one, None all. Raises NestedAttentionError (a ValueError) if there is none.
    """
    check_word(word, "the word to find")
    spans = list(word_spans(text, word))
    found = [positions[-1] for span in spans if (positions := token_positions(tokenize, text, *span))]
    if not found:
        reason = (
            "it is in the text, but not among the tokens: the tokenizer cuts the text off before it"
            if spans
            else f"{describe_words(words_in(text))}. Whole words are compared, whatever their case"
        )
        raise NestedAttentionError(
            f"the word {word!r} is not in the prompt {short(text)!r}: {reason}. Write {word!r} where the "
            "subject should appear, or choose a word that the prompt contains"
        )
    if occurrence is None:
        return found
    if not 0 <= occurrence < len(found):
        raise NestedAttentionError(
            f"occurrence {occurrence} of the word {word!r} was asked for, and the prompt {short(text)!r} has "
            f"{len(found)}; occurrences are counted from 0"
        )
    return [found[occurrence]]


def token_positions(tokenize: Tokenize, text: str, start: int, end: int) -> list[int]:
    """Positions of all tokens of the word text[start:end], ascending.

    Empty if the tokens do not include the whole word, as where a tokenizer cuts at 77. Raises
    NestedAttentionError if the tokenizer joins the word with its neighbours.
    """
    count = _token_count(tokenize, text[start:end])
    original = list(tokenize(text))
    changed: set[int] = set()
    for probe in _two_probes(tokenize):
        other = list(tokenize(text[:start] + " ".join([probe] * count) + text[end:]))
        if len(other) != len(original):
            changed.update(range(len(original)))
        changed.update(i for i, (a, b) in enumerate(zip(original, other, strict=False)) if a != b)
    if len(changed) > count:
        raise NestedAttentionError(
            f"the word {text[start:end]!r} cannot be told apart from its neighbours among the tokens of the "
            f"prompt {short(text)!r}; put spaces around it"
        )
    return sorted(changed) if len(changed) == count else []


def word_spans(text: str, word: str) -> Iterator[Span]:
    """Character spans of the whole-word occurrences of `word`, outside embedding names and tags."""
    closed = [m.span() for pattern in (EMBEDDING, TAG) for m in pattern.finditer(text)]
    pattern = r"\s+".join(re.escape(part) for part in word.split())
    for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE):
        if not any(overlap(match.span(), other) for other in closed):
            yield match.span()


def words_in(text: str) -> tuple[str, ...]:
    """The different words of a prompt, in order, for messages."""
    plain = EMBEDDING.sub(" ", ANGLED.sub(" ", text))
    return tuple(dict.fromkeys(match[0].lower() for match in _WORD.finditer(plain)))


def describe_words(words: Sequence[str], limit: int = 40) -> str:
    """The sentence for messages, without its full stop: `it has the words a, photo, …`."""
    if not words:
        return "it has no words"
    listed = ", ".join(words[:limit]) + (", …" if len(words) > limit else "")
    return f"it has the words {listed}"


def check_word(word: str, what: str) -> None:
    """Refuses a word that could not be found in any prompt. Raises NestedAttentionError; `what` names it."""
    stripped = word.strip() if isinstance(word, str) else ""
    if not stripped:
        raise NestedAttentionError(f"{what} is {word!r}; expected a word of the prompt, such as 'person'")
    if not (stripped[0].isalnum() and stripped[-1].isalnum()) or set(stripped) & set("<>():\\\n"):
        raise NestedAttentionError(
            f"{what} is {word!r}; expected a word or a few that begin and end with a letter or digit, "
            "without < > ( ) : or \\. Weights belong into the prompt, as in (person:1.2)"
        )


def _token_count(tokenize: Tokenize, word: str) -> int:
    """How many tokens come in between when the empty text becomes the word."""
    empty, ids = list(tokenize("")), list(tokenize(word))
    at = next((i for i, (a, b) in enumerate(zip(empty, ids, strict=False)) if a != b), len(empty))
    return next(n for n in range(len(ids) - at + 1) if ids[at + n :] == empty[at : len(ids) - n])


def _two_probes(tokenize: Tokenize) -> list[str]:
    """Two words that take one token each, and different ones."""
    probes: dict[tuple[int, ...], str] = {}
    for word in _PROBES:
        if _token_count(tokenize, word) == 1:
            probes.setdefault(tuple(tokenize(word)), word)
        if len(probes) == 2:
            return list(probes.values())
    raise NestedAttentionError(
        f"this tokenizer has no two one-token words among {', '.join(_PROBES)}, so words cannot be found in "
        "its tokens; expected CLIP's tokenizer"
    )


def overlap(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
