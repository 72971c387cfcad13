"""Words → token positions, with a small tokenizer that has CLIP's habits and ComfyUI's syntax."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_attention.errors import NestedAttentionError
from nested_attention.prompt import check_word, find_word, token_positions, word_spans, words_in

START, END, PAD = 1, 2, 0
IDS: dict[str, int] = defaultdict(lambda: len(IDS) + 10)
EMBEDDINGS = {"style": 3}  # name → number of vectors
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[a-z]+|\d|[^\sa-z\d]+")


def pieces(text: str) -> list[str]:
    """Words in pieces of up to four letters, digits one by one, runs of punctuation together."""
    found = []
    for word in _PIECES.findall(text.lower()):
        found += [word[i : i + 4] + ("$" if i + 4 >= len(word) else "") for i in range(0, len(word), 4)]
    return found


def weighted(text: str) -> list[str]:
    """The segments of `(…:1.2)` without brackets and weights, escapes undone."""
    text = text.replace("\\(", "\0").replace("\\)", "\1")
    segments, depth, current = [], 0, ""
    for character in text:
        if character in "()":
            if character == ")":
                current = re.sub(r":[\d.]+$", "", current)
            segments.append(current)
            depth, current = depth + (1 if character == "(" else -1), ""
        else:
            current += character
    segments.append(current)
    assert depth == 0, text
    return [s.replace("\0", "(").replace("\1", ")") for s in segments if s]


def groups(text: str) -> list[list[int]]:
    """Ids by group; a group of fewer than eight stays in one chunk."""
    found: list[list[int]] = []
    for segment in weighted(text):
        for part in re.split(r"(?:(?<=\s)|^)(?=embedding:)", segment):
            name = re.match(r"embedding:(\w+)", part)
            if name:
                found.append([-1] * EMBEDDINGS.get(name[1], 0))
                part = part[name.end() :]
            found.append([IDS[piece] for piece in pieces(part)])
    return [group for group in found if group]


def tokenize(text: str) -> list[int]:
    chunks, chunk = [], [START]
    for group in groups(text):
        while group:
            room = 76 - len(chunk)
            if len(group) <= room:
                chunk += group
                break
            if len(group) >= 8:
                chunk += group[:room]
                group = group[room:]
            chunks.append(chunk)
            chunk = [START]
    chunks.append(chunk)
    return [i for c in chunks for i in (c + [END] + [PAD] * 77)[:77]]


def truncated(text: str) -> list[int]:
    """As Hugging Face's tokenizer with truncation."""
    ids = [i for group in groups(text) for i in group][:75]
    return ([START, *ids, END] + [PAD] * 77)[:77]


def occurrences(text: str, word: str) -> list[int]:
    """Where the pieces of the word stand in a row: right for words whose pieces no other word contains."""
    wanted = [IDS[piece] for piece in pieces(word)]
    real = [(at, i) for at, i in enumerate(tokenize(text)) if i not in (START, END, PAD)]
    ids = [i for _, i in real]
    return [real[i + len(wanted) - 1][0] for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted]


NEAR_THE_BORDER = " ".join(["leaf"] * 70)  # 70 tokens of the 75 in a chunk


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a photo of a person", 1),
        ("Person", 1),
        ("a PERSON and a person", 2),
        ("a (person:1.3) in a ((big:1.2) hat), and a ((person))", 2),
        (r"a \(person\) smiling \(sly\)", 1),
        ("a person's hat, personal persons, impersonal", 1),
        ("embedding:style a person", 1),
        ("a embedding:person_x person", 1),
        ("a (embedding:style:1.1) person", 1),
        ("'person' \"person\" person-like (person), 1 person.", 5),
        ("line\nperson\nline", 1),
        (f"{NEAR_THE_BORDER} leaf person person person", 3),
        (f"{NEAR_THE_BORDER} leaf leaf leaf leaf person", 1),
        (f"{NEAR_THE_BORDER} (leaf leaf leaf:1.1) (leaf person:1.2)", 1),
        (f"{NEAR_THE_BORDER} embedding:style (an old person here:1.2)", 1),
        (f"{NEAR_THE_BORDER} {NEAR_THE_BORDER} {NEAR_THE_BORDER} person", 1),
    ],
)
def test_the_last_token_of_each_occurrence(text: str, count: int) -> None:
    found = find_word(tokenize, text, "person")
    assert found == occurrences(text, "person")
    assert len(found) == count
    assert [find_word(tokenize, text, "person", occurrence=i) for i in range(count)] == [[at] for at in found]


def test_positions_count_77_a_chunk() -> None:
    assert find_word(tokenize, "a person", "person") == [3]  # start, a, pers, on
    assert find_word(tokenize, " ".join(["leaf"] * 75) + " person", "person") == [77 + 2]


def test_a_word_cut_by_the_border_of_a_chunk() -> None:
    text = " ".join(["leaf"] * 74) + " person"
    start = text.index("person")
    assert token_positions(tokenize, text, [(start, len(text))]) == [[75, 77 + 1]]


def test_several_words_and_many_pieces() -> None:
    text = "an extraordinarily   old\nMAN and a man"
    assert find_word(tokenize, text, "old man") == occurrences(text, "old man")
    start = text.index("extra")
    assert token_positions(tokenize, text, [(start, start + len("extraordinarily"))]) == [[2, 3, 4, 5]]


def test_probe_words_are_words_like_others() -> None:
    assert find_word(tokenize, "a cat and b dog", "a") == [1]
    assert find_word(tokenize, "a cat and b dog", "b") == [4]
    assert find_word(tokenize, "a cat and b dog", "cat") == [2]


def test_text_for_others_is_not_searched() -> None:
    assert (
        find_word(tokenize, "<lora:person:0.8> <lyco:a person:1> person", "person")
        == occurrences("<lora:person:0.8> <lyco:a person:1> person", "person")[-1:]
    )
    assert list(word_spans("embedding:person, (embedding:person:1.2) person", "person")) == [(41, 47)]


WORDS = st.sampled_from(
    ["a", "person", "personal", "persons", "leaf", "extraordinarily", "7", "hat,", "'s", "x_y"]
)
SEGMENTS = st.recursive(
    st.one_of(WORDS, st.just(" embedding:style "), st.just("\n"), st.just(r"\(")),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=12).map(" ".join),
        st.tuples(inner, st.sampled_from(["", ":1.2", ":0.5"])).map(lambda x: f"({x[0]}{x[1]})"),
    ),
    max_leaves=120,
)


@given(SEGMENTS, st.sampled_from(["person", "leaf", "extraordinarily"]))
@settings(max_examples=150, deadline=None)
def test_any_prompt(text: str, word: str) -> None:
    truth = occurrences(text, word)
    if truth:
        assert find_word(tokenize, text, word) == truth
    else:
        with pytest.raises(NestedAttentionError):
            find_word(tokenize, text, word)


def test_a_tokenizer_that_truncates() -> None:
    text = "a person " + " ".join(["leaf"] * 72) + " person"
    assert find_word(truncated, text, "person") == [3]
    with pytest.raises(ValueError, match="cuts the text off before it"):
        find_word(truncated, " ".join(["leaf"] * 74) + " person", "person")


def test_a_missing_word_names_the_words_there_are() -> None:
    with pytest.raises(ValueError, match="'person' is not in the prompt") as error:
        find_word(tokenize, "a photo of a (dog:1.2), <lora:person:1> embedding:person 4k", "person")
    assert "it has the words a, photo, of, dog" in str(error.value)
    with pytest.raises(ValueError, match="it has no words"):
        find_word(tokenize, "", "person")
    with pytest.raises(ValueError, match="occurrence 2 .* has 2"):
        find_word(tokenize, "person person", "person", occurrence=2)
    with pytest.raises(ValueError, match="occurrence -1"):
        find_word(tokenize, "person person", "person", occurrence=-1)


@pytest.mark.parametrize(
    "word", ["", "  ", "<person>", "(person:1.2)", "person:", "person,", "a\\b", "x\ny", None]
)
def test_words_that_cannot_be_found_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="the word to find is"):
        find_word(tokenize, "a person", word)
    with pytest.raises(NestedAttentionError, match="begin and end with a letter|expected a word"):
        check_word(word, "word")


def test_a_word_that_the_tokenizer_joins_with_its_neighbour() -> None:
    with pytest.raises(ValueError, match="put spaces around it"):
        find_word(tokenize, "they'd", "d")


def test_a_tokenizer_without_end_or_with_one_id_is_refused() -> None:
    with pytest.raises(ValueError, match="one-token words"):
        find_word(lambda text: [START, *[9] * len(text.split()), END], "a person", "person")


def test_words_for_messages() -> None:
    text = "A (cat:1.2), a Cat's don't-care <lora:x:1> embedding:style 8k über"
    assert words_in(text) == ("a", "cat", "s", "don", "t", "care", "8k", "über")
    assert words_in("<Alice:child> and <s0>, ＜eve＞") == ("<alice:child>", "and", "<s0>", "＜eve＞")
