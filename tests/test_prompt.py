"""Words → token positions, with a small tokenizer that has CLIP's habits and ComfyUI's syntax."""

from __future__ import annotations

import re
import unicodedata
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
    "word",
    [
        "",
        "  ",
        "<person>",
        "(person:1.2)",
        "person:",
        "person,",
        "a\\b",
        "x\ny",
        "x" * 201,
        None,
        5,
        1.5,
        True,
        [],
    ],
)
def test_words_that_cannot_be_found_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="the word to find (is|has)"):
        find_word(tokenize, "a person", word)
    with pytest.raises(
        NestedAttentionError, match="begin and end with a letter|expected a word|200 characters at most"
    ):
        check_word(word, "word")


def test_a_word_that_the_tokenizer_joins_with_its_neighbour() -> None:
    with pytest.raises(ValueError, match="put spaces around it"):
        find_word(tokenize, "they'd", "d")


def test_a_tokenizer_without_end_or_with_one_id_is_refused() -> None:
    with pytest.raises(ValueError, match="one-token words"):
        find_word(lambda text: [START, *[9] * len(text.split()), END], "a person", "person")


NINO, NINO_APART = "ni\u00f1o", "nin\u0303o"


@pytest.mark.parametrize("word", [NINO, NINO_APART, NINO.upper()])
@pytest.mark.parametrize("written", [NINO, NINO_APART, NINO_APART.upper()])
def test_words_are_compared_composed(word: str, written: str) -> None:
    """macOS writes the second form, and nobody can see which one it is."""
    text = f"e\u0301 {NINO_APART}s, {written}. \u1112\u1161\u11ab {written}"
    spans = list(word_spans(text, word))
    assert [text[start:end] for start, end in spans] == [written, written]
    assert find_word(composing, text, word) == [4, 7]


def composing(text: str) -> list[int]:
    """One token a word or mark, composed first as tokenizers of CLIP do."""
    parts = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFC", text).lower())
    return ([START, *(IDS[part] for part in parts), END] + [PAD] * 77)[:77]


@pytest.mark.parametrize(
    "text", ["person\u0301", "perso\u0308n", "person\u20d7s", "1person", "a_person_standing", "__person__"]
)
def test_a_part_of_a_word_is_not_the_word(text: str) -> None:
    assert not list(word_spans(f"a {text} here", "person"))
    assert words_in(f"a {text} here") == ("a", unicodedata.normalize("NFC", text), "here")


def test_words_of_scripts_with_marks() -> None:
    text = "एक लड़का, लड़के"
    assert [text[a:b] for a, b in word_spans(text, "लड़का")] == ["लड़का"]
    assert words_in(text) == ("एक", unicodedata.normalize("NFC", "लड़का"), unicodedata.normalize("NFC", "लड़के"))
    assert check_word(" लड़का ", "word") == "लड़का"


@given(st.text(alphabet="aB1_'-., é\u0301नि女(<>:", max_size=30))
@settings(deadline=None)
def test_what_the_list_shows_is_what_the_search_finds(text: str) -> None:
    for word in words_in(text):
        if word[0] != "<":
            assert list(word_spans(text, word)), word


@pytest.mark.parametrize(
    ("text", "word", "hint"),
    [
        (
            "1girl, solo",
            "girl",
            "the words 1girl, solo. Whole words .* set word to '1girl', or put spaces around",
        ),
        ("a_girl_standing", "girl", "set word to 'a_girl_standing', or put spaces around 'girl'"),
        (
            "一个女孩在海滩上",
            "女孩",
            "'一个女孩在海滩上' is one word: .* or put spaces around '女孩' in the prompt",
        ),
        (NINO_APART + "s", NINO, "set word to 'niños'"),
        (
            "a woman",
            "person, man",
            "'person, man' is looked for as it stands, not .* set word to one of them",
        ),
        ("a woman", "person/man", "looked for as it stands"),
        ("a house", "person", "it has the words a, house. Write 'person'"),
    ],
)
def test_why_a_word_is_not_found(text: str, word: str, hint: str) -> None:
    with pytest.raises(NestedAttentionError, match=hint):
        find_word(composing, text, word)


def test_a_word_that_is_joined_does_not_pass_for_one_that_is_cut_off() -> None:
    """As many tokens change as two words have, in other places."""
    text = "they'd " + "leaf " * 72 + "d"
    assert len(truncated(text)) == 77
    with pytest.raises(NestedAttentionError, match="'d' cannot be told apart"):
        find_word(truncated, text, "d")


@pytest.mark.parametrize("broken", ["per\ud800son", "\udfff"])
def test_half_a_character_is_refused(broken: str) -> None:
    with pytest.raises(
        NestedAttentionError, match=r"the prompt has U\+D[8F].* half of a character; expected text"
    ):
        find_word(tokenize, f"a {broken}", "person")
    with pytest.raises(NestedAttentionError, match=r"word has U\+D[8F]"):
        check_word(broken, "word")


def test_words_for_messages() -> None:
    text = "A (cat:1.2), a Cat's don't-care <lora:x:1> embedding:style 8k über"
    assert words_in(text) == ("a", "cat", "s", "don", "t", "care", "8k", "über")
    assert words_in("<Alice:child> and <s0>, ＜eve＞") == ("<alice:child>", "and", "<s0>", "＜eve＞")
