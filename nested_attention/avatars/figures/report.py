"""The figures as Markdown: those of the card of the small world and of the README, from `acceptance.json`."""

from __future__ import annotations

import textwrap
from typing import Any

from ...evaluation.statistics import Rate
from .judges import SUBJECTS

_ROWS = {
    "personalised": "with the subject",
    "floor": "floor: base model, no subject",
    "described": "base model, identity described in words",
    "ceiling": "ceiling: the true drawing through the autoencoder",
}
_SHORT = {
    "personalised": "with the subject",
    "floor": "floor",
    "described": "described",
    "ceiling": "ceiling",
}


def percent(value: Rate) -> str:
    """A rate with its 95 % interval."""
    return f"{share(value['rate'])} ({share(value['low'])}–{share(value['high'])})"


def share(value: float, digits: int = 0) -> str:
    """0.512 → 51 %"""
    return f"{100 * value:.{digits}f} %"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _attributes(columns: dict[str, dict[str, Rate]]) -> str:
    """One row an attribute, one column a kind of picture."""
    names = next(iter(columns.values()))
    return table(
        ["attribute", *columns],
        [[name, *(percent(rates[name]) for rates in columns.values())] for name in names],
    )


def _subject(word: str, part: dict[str, Any]) -> list[str]:
    rows = [
        [
            label,
            percent(part[name]["identity"]["top1"]),
            percent(part[name]["identity"]["among_twins"]),
            percent(part[name]["prompt"]["all"]),
        ]
        for name, label in _ROWS.items()
    ]
    return [
        f"### One {word}",
        table(["picture", "identity, top-1 of 100", "top-1 of 20 near-twins", "prompt"], rows),
        "Each attribute that identity fixes, recognised:",
        _attributes({label: part[name]["identity"]["attributes"] for name, label in _SHORT.items()}),
        "Each attribute that the prompt fixes, recognised:",
        _attributes({label: part[name]["prompt"]["attributes"] for name, label in _SHORT.items()}),
    ]


def _pair(pair: dict[str, Any]) -> list[str]:
    rows = [
        [
            label,
            *(percent(pair[name][word]["top1"]) for word in SUBJECTS),
            percent(pair[name]["both"]),
            *(percent(pair[name][word]["among_twins"]) for word in SUBJECTS),
        ]
        for name, label in _ROWS.items()
    ]
    header = ["picture", *(f"{word}, top-1 of 100" for word in SUBJECTS), "both"]
    tables = [
        table
        for word in SUBJECTS
        for table in (
            f"Each attribute of the {word}, recognised:",
            _attributes({label: pair[name][word]["attributes"] for name, label in _SHORT.items()}),
        )
    ]
    return [
        "### A person and a pet in one picture",
        table([*header, *(f"{word}, of 20 near-twins" for word in SUBJECTS)], rows),
        *tables,
    ]


def _people(people: dict[str, Any]) -> list[str]:
    keys = ("first", "second", "both", "swapped", "own", "own_both", "among_twins")
    rows = [[_ROWS.get(name, name), *(percent(row[key]) for key in keys)] for name, row in people.items()]
    header = [
        "measure",
        "first right",
        "second right",
        "both",
        "the other instead",
        "own of two",
    ]
    shown = {"nothing": "nothing", "masks": "masks", "auto": "auto", **_SHORT}
    return [
        "### Two people in one picture",
        "On one word and one encoder, each looked for where the prompt puts it, among 100 people and the "
        "other of the pair; masks are the picture's halves. *Own of two*: the share of places that look more "
        "like the person who belongs there than like the other one; *own in both places*: the share of "
        "pictures in which both do.",
        table([*header, "own in both places", "of 20 near-twins"], rows),
        "Each attribute of both, recognised:",
        _attributes({label: people[name]["attributes"] for name, label in shown.items() if name in people}),
    ]


def _curve(document: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{points[0]['attention_scale']}",
            *(percent(p[key]) for p in points for key in ("identity", "prompt")),
        ]
        for points in zip(*(document["curve"][word] for word in SUBJECTS), strict=True)
    ]
    for name in ("floor", "ceiling"):
        parts = [document[word][name] for word in SUBJECTS]
        figures = [(part["identity"]["top1"], part["prompt"]["all"]) for part in parts]
        rows.append([name, *(percent(rate) for pair in figures for rate in pair)])
    return [
        "### Identity against prompt: λ",
        "Top-1 of 100, and the share of the prompt's attributes that are right.",
        table(["λ", *(f"{word}: {key}" for word in SUBJECTS for key in ("identity", "prompt"))], rows),
    ]


def _pose_and_style(found: dict[str, Any]) -> list[str]:
    pose = [
        [
            f"{way} the ControlNet",
            f"{score['columns']:.1f}",
            f"{score['rows']:.1f}",
            share(score["there"]),
            share(score["attributes"]),
        ]
        for way, score in found["pose"].items()
    ]
    style = [
        [
            f"{way} the LoRA",
            f"{score['distance']:.2f}",
            share(score["attributes"]),
        ]
        for way, score in found["style"].items()
    ]
    return [
        "### Pose and style",
        "A person attached to prompts that do not say where it stands: distance from the control picture in "
        "art pixels, and the share of pictures within 2 both ways.",
        table(["picture", "across", "down", "there", "identity's attributes"], pose),
        "The Fréchet distance of patches of 4×4 art pixels from drawings in ink:",
        table(["picture", "distance", "identity's attributes"], style),
    ]


def _references(document: dict[str, Any], references: dict[str, Any]) -> list[str]:
    ran = references["run"]
    rows = []
    for word in SUBJECTS:
        kinds = {"any picture (as above)": document[word]["personalised"], **references[word]}
        rows += [
            [
                word,
                name,
                percent(part["identity"]["top1"]),
                percent(part["identity"]["among_twins"]),
                share(_mean(part["identity"]["attributes"]), 1),
                percent(part["prompt"]["all"]),
            ]
            for name, part in kinds.items()
        ]
    header = ["subject", "reference", "identity, top-1 of 100", "of 20 near-twins", "attributes, on average"]
    return [
        "### What the reference decides",
        "The same subjects, prompts and seeds with other references. *Any picture* may show a crown over the "
        "hair or closed eyes, and an encoder cannot pass on what it hides; several are of that kind too. "
        f"Measured by `nested-attention world references` on {ran['date']} "
        f"({ran['machine']}; {ran['seconds']} s).",
        table([*header, "prompt"], rows),
    ]


def figures(
    document: dict[str, Any],
    references: dict[str, Any] | None = None,
) -> str:
    """All tables of an acceptance run, as Markdown; with those of `nested-attention world references`, if
    given."""
    ran = document["run"]
    attention = [
        [word, *(f"{values[key]:.2f}" for key in ("inside", "peak", "outside"))]
        for word, values in document["attention"].items()
    ]
    return "\n\n".join(
        [
            f"Measured by `make acceptance` on {ran['date']} ({ran['machine']}, {ran['workers']} parts at "
            f"once; {ran['seconds']} s; {ran['sampling']['steps']} steps, guidance "
            f"{ran['sampling']['guidance']}; λ and α at the nodes' defaults). Every image counts. Held-out "
            "subjects in combinations of prompt attributes that no training picture had. 95 % Wilson "
            "intervals in brackets.",
            *(block for word in SUBJECTS for block in _subject(word, document[word])),
            *(_references(document, references) if references else ()),
            *_pair(document["pair"]),
            *_people(document["people"]),
            *_curve(document),
            "### Attention to the subject's word",
            "P[s*] of the base model in the finest layers at timestep 500, averaged over heads.",
            table(["word", "inside the subject", "peak inside", "outside"], attention),
            *_pose_and_style(document["pose_and_style"]),
        ]
    )


def summary(document: dict[str, Any]) -> str:
    """The README's table: what a user wants to know first."""
    person, pet, pair, people = (document[name] for name in ("person", "pet", "pair", "people"))
    columns = ("personalised", "floor", "described", "ceiling")

    def row(label: str, rates: list[Rate]) -> list[str]:
        return [label, *(share(value["rate"]) for value in rates)]

    together = [people["nothing"], *(people[name] for name in columns[1:])]
    rows = [
        row("person recognised among 100", [person[name]["identity"]["top1"] for name in columns]),
        row("pet recognised among 100", [pet[name]["identity"]["top1"] for name in columns]),
        row("person and pet in one picture, both recognised", [pair[name]["both"] for name in columns]),
        row("two people in one picture, both recognised", [each["both"] for each in together]),
        row(
            "a person's hair colour",
            [person[name]["identity"]["attributes"]["hair_color"] for name in columns],
        ),
        row("a pet's fur", [pet[name]["identity"]["attributes"]["fur"] for name in columns]),
        row("what the prompt asked for, person", [person[name]["prompt"]["all"] for name in columns]),
        row("what the prompt asked for, pet", [pet[name]["prompt"]["all"] for name in columns]),
    ]
    header = ["", "with the subject", "base model, no subject", "base model, subject described in words"]
    masks, bounded, auto = (
        share(people[name]["both"]["rate"]) for name in ("masks", "masks, bounded", "auto")
    )
    subjects = [people[name] for name in people if name not in _ROWS]
    other = max(each["swapped"]["rate"] for each in subjects)
    own = min(each["own_both"]["rate"] for each in subjects)
    likeness = "in every picture" if own == 1 else f"in {share(own)} of pictures or more"
    mistaken = "neither" if other == 0 else f"in up to {share(other, 1)} of places one"
    return "\n\n".join(
        [
            table([*header, "true drawing"], rows),
            textwrap.fill(
                "Two people each have their own photo. In that row nothing keeps them apart; with a mask "
                f"each it is {masks}, with `bounded` too {bounded}, and with regions found automatically "
                f"{auto}. Under each of these settings, both look more like themselves than like the other "
                f"{likeness}, and {mistaken} is recognised as the other.",
                width=118,
            ),
        ]
    )


def _mean(rates: dict[str, Rate]) -> float:
    return sum(value["rate"] for value in rates.values()) / len(rates)
