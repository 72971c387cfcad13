"""Help pages: each names what the node shows in its language, and says what the English one says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"
LANGUAGES = ("zh", "ja", "ko", "fr", "de", "es")
NODES = sorted(path.stem for path in HELP.glob("*.md"))
SLOTS = {"input", "output"}
"""What stands over the first column of the English tables of inputs and of outputs."""

PANEL = 420
"""Pixels of width of the editor's help panel, in which pictures are shrunk to fit."""

WIDEST = 2.2
"""Times the panel's width up to which what is written on a picture is legible there."""

LOOKED_AT = {"sheet.png", "view_maps.png"}
"""Pictures of pictures, whose few words are not what one looks at."""

PARTICLES = {"은": "는", "이": "가", "을": "를", "과": "와", "으로": "로"}
"""Korean particles after a consonant → after a vowel."""

_EITHER = "|".join([*PARTICLES, *PARTICLES.values()])
MARKED = re.compile(rf"([가-힣])(?:\*{{1,2}}|[\"”])({_EITHER})(?![가-힣(*\"”])")
"""The last syllable of a bold, italic or quoted name, and the particle behind it."""


@pytest.fixture
def help_pages(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("help_pages.py")


def read(number: str, language: str) -> str:
    path = HELP / f"{number}.md" if language == "en" else HELP / number / f"{language}.md"
    return path.read_text(encoding="utf-8")


def tables(page: str) -> list[list[list[str]]]:
    """Every table as rows of cells, the line under its head left out."""
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.M)
    return [
        [[cell.strip() for cell in row.strip("|").split("|")] for row in table.strip().split("\n")]
        for table in (re.sub(r"^\|[-:| ]+\|\n", "", one, flags=re.M) for one in found)
    ]


def plain(cell: str) -> list[str]:
    """The names in a cell, of which several are joined by commas."""
    return [one.strip(" *`") for one in cell.split(",")]


def prose(page: str) -> str:
    """A page without its tables of inputs and outputs, in whatever way they are told."""
    page = re.sub(r"<!-- (inputs|outputs): .*?<!-- end of \1 -->", "", page, flags=re.S)
    return re.sub(r"^\| (?:input|output) \|.*\n(?:\|.*\n)+", "", page, flags=re.M)


def spans(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", page))


def sections(page: str) -> list[str]:
    """What stands above the first `##`, and under each."""
    return re.split(r"^## ", page, flags=re.M)


def numbers(text: str) -> set[str]:
    """Those written in digits, outside code."""
    return {one.replace(",", ".") for one in re.findall(r"\d+(?:[.,]\d+)?", re.sub(r"`[^`\n]+`", "", text))}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
@pytest.mark.parametrize("number", NODES)
def test_tables_name_what_the_node_shows_and_nothing_else(
    number: str, language: str, help_pages: ModuleType
) -> None:
    """No input or output of a node lacks its line, those that are folded away included."""
    node = help_pages.texts(language)[number]
    page = read(number, language)
    shown = {part: [slot["name"] for slot in node[part].values()] for part in ("inputs", "outputs")}
    if language == "en":
        heads = [table for table in tables(page) if table[0][0] in SLOTS]
        named = [name for table in heads for row in table[1:] for name in plain(row[0])]
        named += re.findall(
            r"(?:^|\. )\*\*(\w+)\*\*: ", prose(page), re.M
        )  # the only one, told in a sentence
        assert sorted(named) == sorted([*shown["inputs"], *shown["outputs"]])
        return
    for part, names in shown.items():
        (table,) = tables(help_pages.table(language, part, node))
        assert [plain(row[0])[0] for row in table[1:]] == names
        assert help_pages.table(language, part, node) in page, "run python scripts/help_pages.py"


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_follows_from_the_nodes_texts_is_up_to_date(language: str, help_pages: ModuleType) -> None:
    assert {path for path, one, _ in help_pages.pages() if one == language} == set(
        HELP.glob(f"*/{language}.md")
    )
    for path, _, node in (one for one in help_pages.pages() if one[1] == language):
        page = path.read_text(encoding="utf-8")
        assert help_pages.renewed(page, language, node) == page, "run python scripts/help_pages.py"
    assert {path.stem for path in HELP.glob("*/*.md")} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("number", NODES)
def test_a_translated_page_calls_no_input_by_another_name(
    number: str, language: str, help_pages: ModuleType
) -> None:
    """Neither in prose nor over a table: what is pointed at is what one sees on the node."""
    english, here = help_pages.texts("en"), help_pages.texts(language)
    page = re.sub(r"`[^`\n]*/[^`\n]*`", "", prose(read(number, language)))  # without paths of files
    options = {
        option
        for node in english.values()
        for slot in node["inputs"].values()
        for option in slot.get("options", {})
    }
    for owner, node in english.items():
        for name in node["inputs"]:
            renamed = here[owner]["inputs"][name]["name"] != name
            if renamed and "_" in name:  # no word of a text
                assert not re.search(rf"\b{name}\b", page), f"{name} is called otherwise here"
            if renamed and owner == number and name not in options:
                marked = re.search(rf"(\*\*|\*|`){re.escape(name)}\1(?!\w)", page)
                assert not marked or name in spans(prose(read(number, "en"))), (
                    f"{name} is called otherwise here"
                )
    heads = [table[0] for table in tables(prose(read(number, "en")))]
    translated = [table[0] for table in tables(page)]
    assert len(translated) == len(heads)
    for told, meant in zip(translated, heads, strict=True):
        if meant[0] in english[number]["inputs"]:
            assert told[0] == f"**{here[number]['inputs'][meant[0]]['name']}**"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("number", NODES)
def test_a_translated_page_says_what_the_english_one_says(
    number: str, language: str, help_pages: ModuleType
) -> None:
    """As far as a machine can tell: sections, pictures, rows of tables, code, links."""
    english, here = read(number, "en"), read(number, language)
    inputs = {name for node in help_pages.texts("en").values() for name in node["inputs"]}
    assert re.findall(r"^!\[.{10,}\]\((.+)\)", here, re.M) == re.findall(r"^!\[.+\]\((.+)\)", english, re.M)
    assert here.count("](http") == prose(english).count("](http")
    english, here = prose(english), prose(here)
    for mark in ("\n## ", "\n- ", "\n1. ", "\n2. ", "\n3. ", "\n4. "):
        assert here.count(mark) == english.count(mark), f"another number of {mark.strip()!r}"
    assert [len(table) for table in tables(here)] == [len(table) for table in tables(english)]
    lost = spans(english) - spans(here) - inputs
    assert not lost, f"{lost} is in the English page only"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("number", NODES)
def test_a_translated_section_has_the_numbers_of_the_english_one(number: str, language: str) -> None:
    """A statement that is added to the English page, or changed in it, often brings a number with it."""
    english, here = sections(prose(read(number, "en"))), sections(read(number, language))
    for told, says in zip(english, here, strict=True):
        lost = numbers(told) - numbers(says)
        assert not lost, f"{lost} is in the English page only, under {told.partition(chr(10))[0]!r}"


@pytest.mark.parametrize(
    "path",
    [*sorted(HELP.glob("*/ko.md")), ROOT / "locales" / "ko" / "nodeDefs.json"],
    ids=lambda path: path.parent.name,
)
def test_a_korean_particle_fits_the_last_sound_of_the_name_before_it(path: Path) -> None:
    for found in MARKED.finditer(path.read_text(encoding="utf-8").replace('\\"', '"')):
        syllable, particle = found.groups()
        final = (ord(syllable) - ord("가")) % 28  # 0: none, 8: ㄹ, after which 로 stands as after a vowel
        vowel = final == 0 or (final == 8 and particle in ("으로", "로"))
        assert (particle in PARTICLES.values()) == vowel, f"not {found[0]!r}"


@pytest.mark.parametrize(
    "path",
    sorted(path for path in HELP.iterdir() if path.suffix in (".png", ".jpg") and path.name not in LOOKED_AT),
    ids=lambda path: path.name,
)
def test_a_picture_is_legible_in_the_panel(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.width <= WIDEST * PANEL, f"{picture.width} pixels wide, shown at {PANEL}"


def test_every_page_shows_only_pictures_that_are_there() -> None:
    shown: Any = {
        name for path in HELP.glob("**/*.md") for name in re.findall(r"\]\((\w+\.\w+)\)", path.read_text())
    }
    assert shown == {path.name for path in HELP.iterdir() if path.suffix in (".png", ".jpg")}
