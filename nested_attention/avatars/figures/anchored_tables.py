"""The figures of anchored adapters as Markdown."""

from __future__ import annotations

from typing import Any

from .anchored import CHOICE, PAIR, PEOPLE
from .judges import SUBJECTS
from .report import share, table


def tables(document: dict[str, Any]) -> str:
    """The ways to use a decoupled adapter, and the choice of the gate."""
    parts = [*SUBJECTS, PAIR, PEOPLE]
    uses = document[PAIR]

    def rows(*names: str) -> list[list[str]]:
        return [
            [use, *(_cell(document[part].get(use), name) for part, name in wanted(names))] for use in uses
        ]

    def wanted(names: tuple[str, ...]) -> list[tuple[str, str]]:
        return [(part, name) for name in names for part in parts]

    choice = document[CHOICE]
    gates = [
        [gate, *(_cell(part[gate], name) for part in choice.values() for name in ("identity", "outside"))]
        for gate in next(iter(choice.values()))
    ]
    ran = document["runs"].values()
    runs = {f"{run['date']}, {run['machine']}, {run['steps']} steps" for run in ran}
    trials = uses["anchored"]["identity"]["trials"]
    tried = next(iter(choice[PAIR].values()))["identity"]["trials"]
    leaks = [[use, _cell(found, "leak")] for use, found in uses.items() if "leak" in found]
    return "\n\n".join(
        [
            f"Measured by `nested-attention world anchored` ({'; '.join(sorted(runs))}): {trials} held-out "
            "cases a column, the same noise in every row. Recognised among 100; with two subjects, both:",
            table(["", *parts], rows("identity")),
            "Change outside the subjects against the base model's picture, of 255:",
            table(["", *parts], rows("outside")),
            "What the prompt asked for:",
            table(["", *parts], rows("prompt")),
            *_expressions(document),
            "What another pet's photo changes in the person's place, of 255:",
            table(["", "leak"], leaks),
            f"The choice of the gate, on {tried} cases of training identities: recognised, and change "
            "outside:",
            table(["", *(f"{part}{more}" for part in choice for more in ("", ", outside"))], gates),
        ]
    )


def _expressions(document: dict[str, Any]) -> list[str]:
    """Nothing where no judge knew expressions."""
    uses = [use for use, found in document[SUBJECTS[0]].items() if "expression" in found]
    rows = [[use, *(_cell(document[one].get(use), "expression") for one in SUBJECTS)] for use in uses]
    return ["The expression that the prompt asked for:", table(["", *SUBJECTS], rows)] if rows else []


def _cell(found: dict[str, Any] | None, name: str) -> str:
    value = None if found is None else found.get(name)
    return "" if value is None else share(value["rate"]) if isinstance(value, dict) else f"{value:.1f}"
