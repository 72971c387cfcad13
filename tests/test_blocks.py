"""The schedule of strength over blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_attention.blocks import parse_blocks
from nested_attention.errors import NestedAttentionError
from nested_attention.sites import sdxl_sites

SITES = [site.name for site in sdxl_sites()]
NAMES = ["all", "down", "down.1", "down.1.0", "down.1.1", "down.2", "down.2.0", "down.2.1", "mid", "up"]
NAMES += [f"up.{level}{part}" for level in (0, 1) for part in ("", ".0", ".1", ".2")]
FACTORS = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def covers(name: str, site: str) -> bool:
    """Written from the grammar's description, apart from the parser."""
    kind, *rest = name.split(".")
    parts = site.split(".")
    if kind == "all":
        return True
    if not parts[0].startswith(kind + "_"):
        return False
    return [parts[1], parts[3]][: len(rest)] == rest


@given(given_factors=st.dictionaries(st.sampled_from(NAMES), FACTORS), seed=st.randoms())
def test_the_most_specific_name_decides_whatever_the_order(
    given_factors: dict[str, float], seed: object
) -> None:
    entries = [f" {name.upper()} :{factor}" for name, factor in given_factors.items()]
    seed.shuffle(entries)  # type: ignore[attr-defined]
    found = parse_blocks(",".join(entries), SITES)
    assert list(found) == SITES
    for site in SITES:
        covering = [name for name in given_factors if covers(name, site)]
        depth = {name: 0 if name == "all" else 1 + name.count(".") for name in covering}
        expected = given_factors[max(covering, key=depth.__getitem__)] if covering else 1.0
        assert found[site] == expected


@pytest.mark.parametrize("text", ["", "all", " all:1 ", "all\n", ";,", "down:1, mid:1, up:1"])
def test_neutral_texts_leave_every_strength(text: str) -> None:
    assert set(parse_blocks(text, SITES).values()) == {1.0}


def test_the_decoder_alone() -> None:
    found = parse_blocks("all:0\nup; up.1.2:0.5", SITES)
    assert {s: f for s, f in found.items() if f} == {
        s: 0.5 if s.startswith("up_blocks.1.attentions.2.") else 1.0 for s in SITES if s.startswith("up_")
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dwn:1", r"'dwn' is no block of this model; it has all, down, down.1, down.1.0, .*up.1.2, mid$"),
        ("up.7:1", "'up.7' is no block"),
        ("down.0:1", "'down.0' is no block"),
        ("up:2", r"'up:2' gives 'up' the factor '2'; expected a number from 0 to 1, as in 'up:0.5'"),
        ("up:-0.1", "expected a number from 0 to 1"),
        ("up:nan", "expected a number from 0 to 1"),
        ("up:", "expected a number from 0 to 1"),
        ("up:1:1", "expected a number from 0 to 1"),
        ("up 0.5", "'up 0.5' is no block"),
        ("up:1, UP:0", "'up' is given twice"),
        ("up", "blocks: 'up' changes nothing.*write 'all:0, up:1'"),
        ("up, mid", "write 'all:0, up:1, mid:1'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        parse_blocks(text, SITES)


@given(text=st.text(alphabet="adlmnopuw.:,;0159 \n-", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_blocks(text, SITES)
    except NestedAttentionError as error:
        assert str(error).startswith("blocks: ")
    else:
        assert all(0 <= factor <= 1 for factor in found.values())
