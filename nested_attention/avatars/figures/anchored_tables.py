"""The figures of anchored adapters as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .anchored import CHOICE, EVERYWHERE, PAIR, PEOPLE
from .judges import SUBJECTS
from .report import share, table


def tables(document: dict[str, Any]) -> str:
    """The ways to use a decoupled adapter, and the choice of the gate."""
    parts = [*SUBJECTS, PAIR, PEOPLE]
    uses = document[PAIR]

    def rows(name: str, columns: Sequence[str] = parts) -> list[list[str]]:
        cells = {use: [_cell(document[part].get(use), name) for part in columns] for use in uses}
        return [[use, *each] for use, each in cells.items() if any(each)]

    choice = document[CHOICE]
    gates = [
        [gate, *(_cell(part[gate], name) for part in choice.values() for name in ("identity", "outside"))]
        for gate in next(iter(choice.values()))
    ]
    ran = [run for rows in document["runs"].values() for run in rows.values()]
    runs = {
        f"{run['date']}, {run['machine']}, {run['steps']} steps, guidance {run['guidance']:g}" for run in ran
    }
    trials = uses["anchored"]["identity"]["trials"]
    tried = next(iter(choice[PAIR].values()))["identity"]["trials"]
    leaks = [[use, _cell(found, "leak")] for use, found in uses.items() if "leak" in found]
    against = [row for row in rows("against_everywhere", (*SUBJECTS, PAIR)) if row[0] != EVERYWHERE]
    return "\n\n".join(
        [
            f"Measured by `nested-attention world anchored` ({'; '.join(sorted(runs))}): {trials} held-out "
            f"cases a column, the same noise in every row. Recognised among {trials}; with two subjects, "
            "both:",
            table(["", *parts], rows("identity")),
            f"The same against *{EVERYWHERE}*, in points, with 95 % intervals over the cases:",
            table(["", *SUBJECTS, PAIR], against),
            "Change outside the subjects against the base model's picture, of 255:",
            table(["", *parts], rows("outside")),
            "What the prompt asked for:",
            table(["", *parts], rows("prompt")),
            "The expression that the prompt asked for:",
            table(["", *SUBJECTS], rows("expression", SUBJECTS)),
            "What another pet's photo changes in the person's place, of 255:",
            table(["", "leak"], leaks),
            f"The choice of the gate, on {tried} cases of training identities: each recognised among "
            f"{tried}, and change outside:",
            table(["", *(f"{part}{more}" for part in choice for more in ("", ", outside"))], gates),
        ]
    )


def _cell(found: dict[str, Any] | None, name: str) -> str:
    value = None if found is None else found.get(name)
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.1f}"
    if "rate" in value:
        return share(value["rate"])
    if value["low"] is None:
        return f"{100 * value['mean']:+.0f}"
    mean, low, high = (100 * value[key] for key in ("mean", "low", "high"))
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"
