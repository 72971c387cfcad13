"""The figures as a page: `weights/avatars/README.md`, the card of the small world, from `acceptance.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .acceptance import RESULTS
from .alternatives import RESULTS as ALTERNATIVES
from .statistics import Rate

TARGETS = {
    "identity": "≥ 80 %",
    "prompt": "≥ 95 % of the base model's own rate, itself ≥ 85 %",
    "pair": "≥ 60 %",
}

_ROWS = {
    "personalised": "with the subject",
    "floor": "floor: base model, no subject",
    "described": "base model, identity described in words",
    "ceiling": "ceiling: the true drawing through the autoencoder",
}


def percent(value: Rate) -> str:
    """A rate with its 95 % interval."""
    return f"{value['rate']:.0%} ({value['low']:.0%}–{value['high']:.0%})".replace("%", " %")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _subject(word: str, part: dict[str, Any]) -> str:
    rows = [
        [
            label,
            percent(part[name]["identity"]["top1"]),
            percent(part[name]["identity"]["among_twins"]),
            percent(part[name]["prompt"]["all"]),
        ]
        for name, label in _ROWS.items()
    ]
    attributes = [
        [name, *(f"{part[row]['identity']['attributes'][name]:.0%}".replace("%", " %") for row in _ROWS)]
        for name in part["personalised"]["identity"]["attributes"]
    ]
    asked = [
        [name, *(f"{part[row]['prompt']['attributes'][name]:.0%}".replace("%", " %") for row in _ROWS)]
        for name in part["personalised"]["prompt"]["attributes"]
    ]
    short = ["with the subject", "floor", "described", "ceiling"]
    return "\n\n".join(
        [
            f"### One {word}",
            _table(["picture", "identity, top-1 of 100", "top-1 of 20 near-twins", "prompt"], rows),
            "Each attribute that identity fixes, recognised:",
            _table(["attribute", *short], attributes),
            "Each attribute that the prompt fixes, recognised:",
            _table(["attribute", *short], asked),
        ]
    )


def figures(document: dict[str, Any], alternatives: dict[str, Any] | None = None) -> str:
    """All tables of an acceptance run, as Markdown; with those of `nested-attention compare`, if given."""
    ran = document["run"]
    pair = document["pair"]
    names = [name for name in _ROWS if name in pair]
    pairs = [
        [_ROWS[name], *(percent(pair[name][key]) for key in ("person", "pet", "both"))] for name in names
    ]
    people = document.get("people", {})
    two = [
        [_ROWS.get(name, name), *(percent(row[key]) for key in ("first", "second", "both", "swapped", "own"))]
        for name, row in people.items()
    ]
    points = document["curve"]["person"]
    curve = [[f"{p['attention_scale']}", percent(p["identity"]), percent(p["prompt"])] for p in points]
    attention = [
        [word, *(f"{values[key]:.2f}" for key in ("inside", "peak", "outside"))]
        for word, values in document["attention"].items()
    ]
    return "\n\n".join(
        [
            f"Measured by `make acceptance` on {ran['date']} ({ran['machine']}; {ran['seconds']} s; "
            f"{ran['sampling']['steps']} steps, guidance {ran['sampling']['guidance']}; λ and α at the "
            "nodes' defaults). Every image counts. Held-out subjects in combinations of prompt attributes "
            "that no training picture had. 95 % Wilson intervals in brackets.",
            *(_subject(word, document[word]) for word in ("person", "pet")),
            "### A person and a pet in one picture",
            _table(["picture", "person, top-1 of 100", "pet, top-1 of 100", "both"], pairs),
            *(_people(two) if two else ()),
            "### Identity against prompt: λ",
            f"{points[0]['identity']['trials']} people; retrieval among as many.",
            _table(["λ", "identity", "prompt"], curve),
            "### Attention to the subject's word",
            "P[s*] of the base model in the finest layers at timestep 500, averaged over heads.",
            _table(["word", "inside the subject", "peak inside", "outside"], attention),
            *(_alternatives(alternatives) if alternatives else ()),
        ]
    )


def _alternatives(document: dict[str, Any]) -> list[str]:
    ran = document["run"]
    rows = [
        [
            label,
            percent(document[name]["identity"]["top1"]),
            percent(document[name]["identity"]["among_twins"]),
            f"{_mean(document[name]['identity']['attributes']):.1%}".replace("%", " %"),
            percent(document[name]["prompt"]["all"]),
        ]
        for name, label in (("nested", "nested: a value for every query"), ("global", "Global V: one value"))
    ]
    nested, pooled = (document[name]["losses"] for name in ("nested", "global"))
    lower = sum(a < b for a, b in zip(nested, pooled, strict=True))
    half = len(nested) // 2
    means = [sum(values[half:]) / len(values[half:]) for values in (nested, pooled)]
    return [
        "### Nested values against one value a subject",
        f"Measured by `nested-attention compare` on {ran['date']} ({ran['machine']}; {ran['seconds']} s): "
        f"two encoders for `{ran['word']}` from the same random weights, on the same pictures and noise, "
        f"{ran['steps']} steps each.",
        _table(
            [
                "values",
                "identity, top-1 of 100",
                "top-1 of 20 near-twins",
                "attributes right, on average",
                "prompt",
            ],
            rows,
        ),
        f"The training loss, on the same pictures and noise: {means[0]:.4f} with nested values and "
        f"{means[1]:.4f} with one, over the second half; nested values have the lower one in {lower} of "
        f"{len(nested)} stretches of 50 steps.",
    ]


def _mean(rates: dict[str, float]) -> float:
    return sum(rates.values()) / len(rates)


def _people(rows: list[list[str]]) -> list[str]:
    return [
        "### Two people in one picture",
        "On one word and one encoder, each looked for where the prompt puts it, among 100 people and the "
        "other of the pair; masks are the picture's halves.",
        _table(["measure", "first right", "second right", "both", "the other instead", "own of two"], rows),
    ]


def read(path: Path = RESULTS) -> dict[str, Any]:
    """The committed figures."""
    return json.loads(path.read_text())


def read_alternatives(path: Path = ALTERNATIVES) -> dict[str, Any] | None:
    """The committed comparison, if there is one."""
    return json.loads(path.read_text()) if path.exists() else None


BEGIN, END = "<!-- figures: written by `nested-attention report` -->\n", "\n<!-- end of figures -->"


def insert(page: str, document: dict[str, Any], alternatives: dict[str, Any] | None = None) -> str:
    """A page with its figures replaced. Raises ValueError if it has no place for them."""
    if BEGIN not in page or END not in page:
        raise ValueError(
            f"the page has no lines {BEGIN.strip()!r} and {END.strip()!r} to put figures between"
        )
    before, rest = page.split(BEGIN, 1)
    return before + BEGIN + "\n" + figures(document, alternatives) + "\n" + END + rest.split(END, 1)[1]
