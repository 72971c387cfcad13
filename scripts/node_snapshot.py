#!/usr/bin/env python3
"""Keeps tests/node_snapshot.json: the nodes, inputs and defaults that saved workflows rely on.

python scripts/node_snapshot.py    adds what is new; refuses if anything saved workflows rely on has changed
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from definitions import ROOT, load_definitions, slots  # noqa: E402

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SNAPSHOT = ROOT / "tests" / "node_snapshot.json"

Snapshot = Mapping[str, Any]


def snapshot(definitions: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Node id → what a saved workflow holds of it."""
    return {
        number: {
            "inputs": [_input(*slot) for slot in slots(definition)],
            "outputs": [
                {"name": name, "type": kind}
                for name, kind in zip(definition["output_name"], definition["output"], strict=True)
            ],
        }
        for number, definition in sorted(definitions.items())
    }


def _input(name: str, kind: str, options: Mapping[str, Any], required: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "type": kind, "required": required}
    if "default" in options:
        entry["default"] = options["default"]
        if "options" in options:  # without a default they are files, which differ from machine to machine
            entry["options"] = list(options["options"])
    for bound in ("min", "max"):
        if bound in options:
            entry[bound] = options[bound]
    return entry


def broken(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """What a workflow saved with `before` would trip over, one sentence each."""
    for node, old in before.items():
        if node not in now:
            yield f"{node} is gone"
            continue
        new = now[node]
        yield from _broken_inputs(node, old["inputs"], new["inputs"])
        for index, output in enumerate(old["outputs"]):
            there = new["outputs"][index] if index < len(new["outputs"]) else None
            if there != output:
                yield f"{node}: output {index} was {output}, is {there}"


def _broken_inputs(node: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> Iterator[str]:
    known = {entry["name"]: entry for entry in new}
    for entry in old:
        name = entry["name"]
        if name not in known:
            yield f"{node}: input {name!r} is gone"
            continue
        there = known[name]
        for key in ("type", "required", "default"):
            if entry.get(key) != there.get(key) and not (key == "required" and _relaxed(entry, there)):
                yield f"{node}: {key} of input {name!r} was {entry.get(key)!r}, is {there.get(key)!r}"
        lost = [option for option in entry.get("options", ()) if option not in there.get("options", ())]
        if lost:
            yield f"{node}: input {name!r} no longer offers {lost}"
        if there.get("min", -1e30) > entry.get("min", -1e30) or there.get("max", 1e30) < entry.get(
            "max", 1e30
        ):
            yield f"{node}: input {name!r} allowed {_range(entry)}, allows {_range(there)}"
    moved = {entry["name"] for entry in old if _relaxed(entry, known.get(entry["name"], {}))}
    new = [entry for entry in new if entry["name"] not in moved]
    names = [entry["name"] for entry in old if entry["name"] not in moved]
    if [entry["name"] for entry in new if entry["name"] in names] != names:
        yield f"{node}: the inputs changed places, and saved widgets go by their place"
    seen = [entry["name"] in names for entry in new]
    if not all(seen[: len(names)]) and all(name in known for name in names):
        yield f"{node}: an input was put before older ones, and saved widgets go by their place; put it last"
    for entry in new:
        if entry["name"] not in names and entry["required"]:
            yield f"{node}: the new input {entry['name']!r} is required, and saved workflows lack it"


def _relaxed(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether an input that had to be connected no longer has to be: it stands behind those that do, and the
    editor joins its links by name. Widgets go by their place, and are none of these."""
    return bool(old["required"] and not new.get("required", True) and old["type"] not in WIDGETS)


def _range(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('min', '-∞')} to {entry.get('max', '∞')}"


def added(before: Snapshot, now: Snapshot) -> list[str]:
    """What is new and not in the snapshot yet."""
    found = [node for node in now if node not in before]
    for node, old in before.items():
        for part in ("inputs", "outputs"):
            known = old[part]
            found += [f"{node}: {entry}" for entry in now.get(node, {}).get(part, []) if entry not in known]
    return found


def main() -> None:
    now = snapshot(load_definitions())
    before = json.loads(SNAPSHOT.read_text(encoding="utf-8")) if SNAPSHOT.is_file() else {}
    problems = list(broken(before, now))
    if problems:
        sys.exit(
            "Not written: saved workflows would break.\n  "
            + "\n  ".join(problems)
            + "\nKeep what there was, and give the new behaviour an optional input of its own, put last."
        )
    for line in added(before, now):
        print(f"new: {line}")
    SNAPSHOT.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    main()
