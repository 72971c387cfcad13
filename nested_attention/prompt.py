"""Words of a prompt → positions among its tokens.

Everything here is pure: the tokenizer comes in as a function, so ComfyUI's (with weights, escapes and
embeddings) and Hugging Face's serve alike. Placeholders such as `<alice>` are the business of
`placeholders.py`.

How positions are found: every word is replaced by as many one-token probe words as it has tokens, and what
changes among the tokens are the words. The equal count leaves every other token where it was, chunk borders
included, and nothing has to be known about the tokenizer's syntax. One replaced text shows all words at once,
so a prompt is tokenised twice, however many subjects it carries.

What a word is: a run of letters, digits and `_`, with the marks that stand on letters. The search and the
list in messages go by this one rule. Text is compared composed (NFC) and whatever its case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import islice

from .errors import NestedAttentionError

Tokenize = Callable[[str], Sequence[int]]
"""Text → flat token ids with start, end and padding, 77 a chunk."""

Span = tuple[int, int]
"""Characters from the first number to before the second."""

# Text that is addressed to someone else: names of embedding files, and the tags that LoRA loaders read.
EMBEDDING = re.compile(r"(?<!\w)embedding:[^\s()]*")
TAG = re.compile(
    r"<\s*(?:lora|lyco|lycoris|hypernet|hypernetwork|embedding|ti|wildcard)\s*:[^<>]*>", re.IGNORECASE
)
ANGLED = re.compile(r"[<＜]([^<>＜＞\n]*)[>＞]")  # also as an input method for Chinese or Japanese types it

_SAYS_SOMETHING = re.compile(r"[^\W\d]")  # numbers alone do not
_PROBES = ("a", "b", "i", "cat", "dog", "red", "sun")
_CHUNK = 75  # tokens of a chunk beside start and end
_LONGEST = 200
"""Characters of a word: far more than any has, and few enough to look at it again and again."""


def find_word(tokenize: Tokenize, text: str, word: str, occurrence: int | None = None) -> list[int]:
    """Position of the last token of each occurrence of `word` in `text`, ascending.

    tokenize: flat ids with start, end and padding, 77 a chunk, so that a position is 77·chunk + place.
    Whole words, whatever the case; names of embeddings and tags such as `<lora:…>` are not searched.
    `occurrence` (0-based) picks one, None all. Raises NestedAttentionError (a ValueError) if there is none.
    """
    check_word(word, "the word to find")
    check_text(text)
    spans = list(word_spans(text, word))
    found = [positions[-1] for positions in token_positions(tokenize, text, spans) if positions]
    if not found:
        reason = (
            "it is in the text, but not among the tokens: the tokenizer cuts the text off before it"
            if spans
            else describe_words(words_in(text), word)
        )
        raise NestedAttentionError(
            f"the word {short(word)!r} is not in the prompt {short(text)!r}: {reason}. Write "
            f"{short(word)!r} where the subject should appear, or choose a word that the prompt contains"
        )
    if occurrence is None:
        return found
    if not 0 <= occurrence < len(found):
        raise NestedAttentionError(
            f"occurrence {occurrence} of the word {short(word)!r} was asked for, and the prompt "
            f"{short(text)!r} has {len(found)}; occurrences are counted from 0"
        )
    return [found[occurrence]]


def token_positions(tokenize: Tokenize, text: str, spans: Sequence[Span]) -> list[list[int]]:
    """For each word text[start:end] the positions of all its tokens, ascending.

    spans: ascending and apart. Tokenises the text twice, and the different words. A word is empty if the
    tokens do not include the whole of it, as where a tokenizer cuts at 77. Raises NestedAttentionError if the
    tokenizer joins a word with its neighbours.
    """
    if not spans:
        return []
    # CLIP's tokenizers take no notice of case and count of spaces.
    spelled = [text[start:end] for start, end in spans]
    plain = {word: " ".join(word.lower().split()) for word in dict.fromkeys(spelled)}
    each = _tokens_of_each(tokenize, dict.fromkeys(plain.values()))
    alone = {word: each[plain[word]] for word in plain}
    probes = _two_probes(tokenize)
    standing_in = {
        word: " ".join(next(p for p, probe in probes.items() if probe != token) for token in tokens)
        for word, tokens in alone.items()
    }
    pieces, at = [], 0
    for (start, end), word in zip(spans, spelled, strict=True):
        pieces += [text[at:start], standing_in[word]]
        at = end
    original, other = list(tokenize(text)), list(tokenize("".join([*pieces, text[at:]])))

    changed = [i for i, (a, b) in enumerate(zip(original, other, strict=False)) if a != b]
    rest = iter(changed)
    found = [list(islice(rest, len(alone[word]))) for word in spelled]
    expected = [token for word in spelled for token in alone[word]]
    if len(original) == len(other) and [original[i] for i in changed] == expected:
        return found  # tokens as the words have them alone: these changes are their own

    whole = [len(at) == len(alone[word]) for at, word in zip(found, spelled, strict=True)]
    own = [[original[i] for i in at] == alone[word] for at, word in zip(found, spelled, strict=True)]
    odd = next((i for i, (a, b) in enumerate(zip(whole, own, strict=True)) if a and not b), None)
    wrong = len(original) != len(other) or len(changed) > len(expected)
    if odd is not None and not wrong:
        # Another kind of tokenizer, if the last word is found alone as well; else changes of a joined word
        # stand where the last one's would, which is cut off.
        alike = len(spans) == 1 or token_positions(tokenize, text, spans[-1:]) == found[-1:]
        wrong = not (whole[-1] and alike)
    if wrong:
        start, end = spans[-1 if odd is None else odd]
        raise NestedAttentionError(
            f"the word {text[start:end]!r} cannot be told apart from its neighbours among the tokens of the "
            f"prompt {short(text)!r}; put spaces around it"
        )
    return [at if complete else [] for at, complete in zip(found, whole, strict=True)]


def word_spans(text: str, word: str) -> Iterator[Span]:
    """Character spans of the whole-word occurrences of `word`, outside embedding names and tags."""
    composed, at = _compose(text)
    closed = sorted(match.span() for pattern in (EMBEDDING, TAG) for match in pattern.finditer(composed))
    pattern = r"\s+".join(re.escape(part) for part in unicodedata.normalize("NFC", word).split())
    letters = _letters(composed)
    matches = re.finditer(rf"(?<!{letters}){pattern}(?!{letters})", composed, re.IGNORECASE)
    for start, end in apart((match.span() for match in matches), closed):
        yield (start, end) if at is None else (at[start], at[end])


def words_in(text: str) -> tuple[str, ...]:
    """The different words of a prompt, in order, for messages. Text in angle brackets counts as one; numbers
    are left out, since most are weights."""
    composed, _ = _compose(text)
    plain = EMBEDDING.sub(" ", TAG.sub(" ", composed))
    words = (match[0].lower() for match in re.finditer(rf"{ANGLED.pattern}|{_letters(plain)}+", plain))
    return tuple(dict.fromkeys(short(word) for word in words if _SAYS_SOMETHING.search(word)))


def describe_words(words: Sequence[str], wanted: str | None = None, limit: int = 40) -> str:
    """The sentences for messages, without the last full stop: `it has the words a, photo, …`.

    wanted: a word that is not among them, to be told why where that can be seen.
    """
    if not words:
        return "it has no words"
    listed = ", ".join(words[:limit]) + (", …" if len(words) > limit else "")
    told = f"it has the words {listed}"
    if wanted is None:
        return told
    looked_for = " ".join(unicodedata.normalize("NFC", wanted).lower().split())
    around = next((word for word in words if looked_for in word and word[0] not in "<＜"), None)
    if looked_for in words:
        told += f". That {wanted!r} is another subject's, or past what the text encoder reads"
    elif around is not None:
        told += (
            f". Whole words are compared, and {around!r} is one word: set word to {around!r}, or put spaces "
            f"around {wanted!r} in the prompt"
        )
    elif re.search(r"[,;|/]", wanted):
        told += (
            f". {wanted!r} is looked for as it stands, not as a choice of several: set word to one of them"
        )
    return told


def check_word(word: object, what: str) -> str:
    """The word with single spaces. Raises NestedAttentionError for one that could not be found in any prompt;
    `what` names it."""
    if not isinstance(word, str) or not word.strip():
        raise NestedAttentionError(
            f"{what} is {short(repr(word))}; expected a word of the prompt, such as 'person'"
        )
    check_text(word, what)
    stripped = word.strip()
    if not (stripped[0].isalnum() and is_letter(stripped[-1])) or set(stripped) & set("<>＜＞():：\\\n"):
        raise NestedAttentionError(
            f"{what} is {short(word)!r}; expected a word or a few that begin and end with a letter or digit, "
            "without < > ( ) : or \\. Weights belong into the prompt, as in (person:1.2)"
        )
    if len(stripped) > _LONGEST:
        raise NestedAttentionError(
            f"{what} has {len(stripped)} characters, {short(stripped)!r}; expected a word or a few, "
            f"{_LONGEST} characters at most"
        )
    return " ".join(stripped.split())


def is_blank(word: object) -> bool:
    """Whether a word was left out: none, or nothing but spaces."""
    return word is None or (isinstance(word, str) and not word.strip())


def check_text(text: str, what: str = "the prompt") -> None:
    """Refuses what no tokenizer can read: half a character (a lone surrogate), as broken JSON leaves it.
    Raises NestedAttentionError; `what` names the text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NestedAttentionError(
            f"{what} has U+{ord(text[error.start]):04X} as its character {error.start + 1}, in "
            f"{short(text[max(0, error.start - 20) :])!r}, which is half of a character; expected text. Type "
            "that character again, or leave it out"
        ) from error


def apart(spans: Iterable[Span], closed: Sequence[Span]) -> Iterator[Span]:
    """Those of `spans`, ascending and apart, that share no character with any of `closed`, ascending."""
    i = 0
    for start, end in spans:
        while i < len(closed) and closed[i][1] <= start:
            i += 1
        if i == len(closed) or closed[i][0] >= end:
            yield start, end


def is_letter(character: str) -> bool:
    """Whether a character joins with a letter before it, so that a word goes on."""
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _tokens_alone(tokenize: Tokenize, word: str) -> list[int]:
    """The ids that come in between when the empty text becomes the word."""
    empty, ids = list(tokenize("")), list(tokenize(word))
    at = next((i for i, (a, b) in enumerate(zip(empty, ids, strict=False)) if a != b), len(empty))
    count = next(n for n in range(len(ids) - at + 1) if ids[at + n :] == empty[at : len(ids) - n])
    return ids[at : at + count]


def _tokens_of_each(tokenize: Tokenize, words: Iterable[str]) -> dict[str, list[int]]:
    """Word → its ids. Short words are tokenised together, as many as surely fit into one chunk, with commas
    in between: a prompt can have thousands of different ones."""
    batches: list[list[str]] = []
    room = 0
    for word in words:
        size = len(word.encode()) + 1  # no token is shorter than a byte
        if size > room:
            batches.append([])
            room = _CHUNK
        batches[-1].append(word)
        room -= size
    comma = _tokens_alone(tokenize, ",")
    found: dict[str, list[int]] = {}
    for batch in batches:
        parts: list[list[int]] = [[]]
        for token in _tokens_alone(tokenize, " , ".join(batch)):
            if [token] == comma:
                parts.append([])
            else:
                parts[-1].append(token)
        if len(parts) != len(batch):  # a comma within a word, or joined with one
            parts = [_tokens_alone(tokenize, word) for word in batch]
        found |= zip(batch, parts, strict=True)
    return found


def _two_probes(tokenize: Tokenize) -> dict[str, int]:
    """Two words that take one token each, and different ones; with these tokens."""
    probes: dict[int, str] = {}
    for word in _PROBES:
        tokens = _tokens_alone(tokenize, word)
        if len(tokens) == 1:
            probes.setdefault(tokens[0], word)
        if len(probes) == 2:
            return {word: token for token, word in probes.items()}
    raise NestedAttentionError(
        f"this tokenizer has no two one-token words among {', '.join(_PROBES)}, so words cannot be found in "
        "its tokens; expected CLIP's tokenizer"
    )


@lru_cache(maxsize=4)  # each subject of a chain asks for the same prompt
def _compose(text: str) -> tuple[str, Sequence[int] | None]:
    """The text in NFC and, for each of its characters and for its end, where that begins in `text`; None if
    the text is in NFC already.

    Some systems write é as one character, others as e and a mark; tokenizers of CLIP read them alike.
    """
    if unicodedata.is_normalized("NFC", text):
        return text, None
    pieces: list[str] = []
    at: list[int] = []
    # A character is composed with what follows it and never stands first: marks, parts of Korean syllables.
    joins = rf"{_marks()}\u1160-\u11ff"
    for match in re.finditer(rf"[^{joins}]?[{joins}]+|[\0-\x7f]+(?![{joins}])|[^{joins}]", text):
        start, end = match.span()
        piece = unicodedata.normalize("NFC", match[0])
        pieces.append(piece)
        at += range(start, end) if len(piece) == end - start else [start] * len(piece)
    return "".join(pieces), (*at, len(text))


def _letters(text: str) -> str:
    """A pattern for whatever continues a word in this text."""
    return r"\w" if text.isascii() else rf"[\w{_marks()}]"


@cache
def _marks() -> str:
    """All marks that stand on letters (Unicode's category M), as the inside of a character class."""
    marks = [c for c in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)) if _is_mark(c)]
    first = [c for c in marks if not _is_mark(c - 1)]
    last = [c for c in marks if not _is_mark(c + 1)]
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(first, last, strict=True))


def _is_mark(code: int) -> bool:
    return unicodedata.category(chr(code))[0] == "M"
