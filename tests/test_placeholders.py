"""Placeholders and bare words → what the text encoder reads and who is carried where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_attention.errors import NestedAttentionError
from nested_attention.placeholders import ParsedPrompt, SubjectWord, parse_prompt, why_missing
from nested_attention.prompt import words_in

ALICE = SubjectWord("alice", "person")
BOB = SubjectWord("bob", "person")
REX = SubjectWord("Rex", "dog")
MAN = SubjectWord("old man", "old man")


def carried(parsed: ParsedPrompt) -> list[tuple[str, int, str]]:
    return [(o.subject.name, o.start, parsed.text[o.start : o.end]) for o in parsed.occurrences]


@pytest.mark.parametrize(
    ("text", "subjects", "encoded", "words"),
    [
        ("a photo of a person", [ALICE], "a photo of a person", [("alice", 13, "person")]),
        ("Person, PERSON", [ALICE], "Person, PERSON", [("alice", 0, "Person"), ("alice", 8, "PERSON")]),
        ("<alice> hugging a person", [ALICE], "person hugging a person", [("alice", 0, "person")]),
        ("<alice:child> and a person", [ALICE], "child and a person", [("alice", 0, "child")]),
        ("< ALICE : old  lady >", [ALICE], "old lady", [("alice", 0, "old lady")]),
        ("(<alice:child>:1.2)", [ALICE], "(child:1.2)", [("alice", 1, "child")]),
        ("<person>", [ALICE], "person", [("alice", 0, "person")]),
        ("<old man> and an old\nman", [MAN], "old man and an old\nman", [("old man", 0, "old man")]),
        ("an old\nman", [MAN], "an old\nman", [("old man", 3, "old\nman")]),
        (
            "<alice> and <bob>, <rex>",
            [ALICE, BOB, REX],
            "person and person, dog",
            [("alice", 0, "person"), ("bob", 11, "person"), ("Rex", 19, "dog")],
        ),
        (
            "<alice> and a person",
            [ALICE, BOB],
            "person and a person",
            [("alice", 0, "person"), ("bob", 13, "person")],
        ),
        ("a dog, <alice>", [ALICE, REX], "a dog, person", [("Rex", 2, "dog"), ("alice", 7, "person")]),
        ("<alice><rex>x", [ALICE, REX], "person dog x", [("alice", 0, "person"), ("Rex", 7, "dog")]),
        ("x<alice>", [ALICE], "x person", [("alice", 2, "person")]),
        ("embedding:person persons", [ALICE], "embedding:person persons", []),
        ("", [ALICE], "", []),
        ("＜alice＞ hugging a person", [ALICE], "person hugging a person", [("alice", 0, "person")]),
        ("(＜Alice：child＞:1.2)", [ALICE], "(child:1.2)", [("alice", 1, "child")]),
        ("e\u0301<alice>", [ALICE], "e\u0301 person", [("alice", 3, "person")]),
        ("<ni\u00f1o>", [SubjectWord("nin\u0303o", "person")], "person", [("nin\u0303o", 0, "person")]),
        ("<alice> person", [], "<alice> person", []),
    ],
)
def test_who_is_carried_where(
    text: str, subjects: list[SubjectWord], encoded: str, words: list[tuple[str, int, str]]
) -> None:
    parsed = parse_prompt(text, subjects)
    assert parsed.text == encoded
    assert carried(parsed) == words
    assert not parsed.lookalikes
    assert not parsed.conflicts


@pytest.mark.parametrize(
    "tag",
    ["<lora:person:0.8>", "<lora:alice:1>", "<LoRA: alice :1>", "<s0>", "<s0><s1>", "<3 b>", "<>", "<b:2>"],
)
def test_text_for_others_passes_and_is_reported(tag: str) -> None:
    parsed = parse_prompt(f"{tag} a person", [ALICE])
    assert parsed.text == f"{tag} a person"
    assert carried(parsed) == [("alice", len(tag) + 3, "person")]
    assert "".join(parsed.lookalikes) == tag


@pytest.mark.parametrize(
    "typed", ["<alcie>", "<alic>", "<alices>", "<alice hugging a dog>", "<alcie:child>", "<ALCIE>"]
)
def test_a_mistyped_name_is_refused(typed: str) -> None:
    with pytest.raises(NestedAttentionError, match="did you mean <alice>") as error:
        parse_prompt(f"a {typed}", [ALICE, REX])
    assert typed in str(error.value)
    assert "<alice> (word 'person'), <Rex> (word 'dog')" in str(error.value)
    with pytest.raises(NestedAttentionError, match="did you mean <Rex>"):
        parse_prompt("<re>", [ALICE, REX])


def test_what_only_looks_like_a_mistyped_name_passes_beside_the_right_one() -> None:
    for text in ("<alice> and <alcie>", "a <fog> around a <dog> and a dog", "a <dot> on a dog"):
        dog = SubjectWord("dog", "dog")
        parsed = parse_prompt(text, [ALICE, dog])
        assert parsed.lookalikes in {("<alcie>",), ("<fog>",), ("<dot>",)} and parsed.occurrences
    with pytest.raises(NestedAttentionError, match="did you mean <alice>"):
        parse_prompt("<alcie> hugging a person", [ALICE])  # the person is meant to be somebody else


def test_a_face_is_no_open_placeholder() -> None:
    parsed = parse_prompt(">_< person", [SubjectWord("person", "person")])
    assert parsed.text == ">_< person" and len(parsed.occurrences) == 1


def test_short_names_have_no_near_misses() -> None:
    s1 = SubjectWord("s1", "person")
    assert parse_prompt("<s0> <s1>", [s1]).text == "<s0> person"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<alice hugging a dog", "does not close it"),
        ("<alice and <rex>", "does not close it"),
        ("<alice:1.2>", r"\(<alice>:1.2\)"),
        ("<alice:-.5>", r"\(<alice>:1.2\)"),
        ("<alice:1.>", r"\(<alice>:1.2\)"),
        ("<alice:" + "1" * 50_000 + "x>", "the word in <alice:11.* has 50001 characters"),
        ("＜alice hugging a dog", "does not close it"),
        ("<alice> \ud800", r"half of a character"),
        ("<alice:child:1.2>", r"\(<alice>:1.2\)"),
        ("<alice:>", "the word in <alice:>"),
        ("<alice:(child)>", "the word in"),
    ],
)
def test_a_malformed_placeholder_is_refused(text: str, message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        parse_prompt(text, [ALICE, REX])


def test_a_word_of_two_subjects_as_placeholder_is_refused() -> None:
    with pytest.raises(NestedAttentionError, match="2 subjects use that word"):
        parse_prompt("<person>", [ALICE, BOB])


def test_an_occurrence_that_two_subjects_claim_carries_neither() -> None:
    parsed = parse_prompt("a person and a dog", [ALICE, BOB, REX])
    assert carried(parsed) == [("Rex", 15, "dog")]
    (conflict,) = parsed.conflicts
    assert "'person'" in conflict and "<alice> and <bob>" in conflict  # noqa: PT018

    overlapping = parse_prompt("an old man", [MAN, SubjectWord("carl", "man")])
    assert not overlapping.occurrences
    assert "'old man' and 'carl'" in overlapping.conflicts[0]


def test_a_prompt_that_only_some_subjects_may_carry() -> None:
    """A negative one: what is said of the others is replaced, and claims no word of theirs."""
    parsed = parse_prompt("a person", [ALICE, BOB], [ALICE])
    assert (carried(parsed), parsed.conflicts) == ([("alice", 2, "person")], ())
    parsed = parse_prompt("<bob>, a person", [ALICE, BOB], [ALICE])
    assert (parsed.text, carried(parsed)) == ("person, a person", [("alice", 10, "person")])
    assert parse_prompt("a person", [ALICE, BOB, SubjectWord("c", "person")], [ALICE, BOB]).conflicts
    for some in (None, [], [ALICE]):
        with pytest.raises(NestedAttentionError, match="did you mean <bob>"):
            parse_prompt("<bop> and a person", [ALICE, BOB], some)


@given(st.text(alphabet="<>:( )alicebox1.\n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse_prompt(text, [ALICE])
    except NestedAttentionError:
        return
    for occurrence in parsed.occurrences:
        word = parsed.text[occurrence.start : occurrence.end]
        around = parsed.text[: occurrence.start][-1:] + parsed.text[occurrence.end :][:1]
        assert word[0].isalnum()
        assert word[-1].isalnum()
        assert not any(character.isalnum() for character in around)


def test_three_subjects_on_one_place_carry_neither() -> None:
    man = SubjectWord("carl", "man")
    parsed = parse_prompt("an old man in an old house, a man", [SubjectWord("dan", "old"), MAN, man])
    assert carried(parsed) == [("dan", 17, "old"), ("carl", 30, "man")]
    assert len(parsed.conflicts) == 2


@pytest.mark.parametrize(
    ("called", "prompt", "told"),
    [
        (
            SubjectWord("person", "person"),
            "<alice> at the beach",
            "it has the words <alice>, at, the, beach. Write 'person' where the subject should appear; "
            "<alice> calls nobody unless the subject's name is 'alice'",
        ),
        (
            ALICE,
            "a dog",
            "it has the words a, dog. Write 'person' or <alice> where the subject should appear",
        ),
        (
            SubjectWord("bob", "person"),
            parse_prompt("<alice> by the sea", [ALICE]).text,
            "it has the words person, by, the, sea. That 'person' is another subject's, or past what the "
            "text encoder reads. Write 'person' or <bob> where the subject should appear",
        ),
        (ALICE, "<lora:x:1>", "it has no words. Write 'person' or <alice> where the subject should appear"),
    ],
)
def test_why_a_subject_is_missing(called: SubjectWord, prompt: str, told: str) -> None:
    assert why_missing(called, words_in(prompt)) == told
    other = ", or set word of Apply Subject to one of these words" if prompt == "a dog" else ""
    assert why_missing(called, words_in(prompt), "Apply Subject") == told + other
