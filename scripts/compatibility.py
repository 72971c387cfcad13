#!/usr/bin/env python3
"""Writes docs/compatibility.md from what the tests say they show (`@pytest.mark.composes`).

python scripts/compatibility.py           writes it
python scripts/compatibility.py --check   exits with 1 if it is stale
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "comfyui"
TABLE = ROOT / "docs" / "compatibility.md"

ORDERS = {
    "both": "before or after Apply Subject, with the same picture",
    "either": "before or after Apply Subject",
    "after": "after Apply Subject",
    "prompt": "on the prompt",
    "sampler": "in the sampler",
}

HEADER = """# What Apply Subject works with

Every line is shown by a test on a real ComfyUI with a tiny SDXL of random weights: the subject shows in the
picture, and so does what the other node does. Where it says *with the same picture*, both orders are compared
bit for bit. Most of it is shown again on the small world as it ships, with a person whom its model draws, in
[`test_small_world_patched.py`](../tests/comfyui/test_small_world_patched.py) and
[`test_small_world_composed.py`](../tests/comfyui/test_small_world_composed.py).

This file is written by `python scripts/compatibility.py` from the tests; do not edit it.

| with | where | note | shown by |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Claim:
    """One `composes(what, order=…, note=…)` on a test."""

    what: str
    order: str
    note: str
    test: str

    def row(self) -> str:
        file, name = self.test.split("::")
        shown = f"[`{name}`](../{file})"
        return f"| {self.what} | {ORDERS[self.order]} | {self.note} | {shown} |"


def claims() -> list[Claim]:
    """All of them, in alphabetical order. Raises ValueError for one that is not written as it should be."""
    found = [
        claim
        for path in sorted(TESTS.glob("test_*.py"))
        for test in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(test, ast.FunctionDef)
        for claim in _claims_of(test, path.relative_to(ROOT).as_posix())
    ]
    return sorted(found, key=lambda claim: claim.what.lower())


def _claims_of(test: ast.FunctionDef, file: str) -> Iterator[Claim]:
    calls = (node for decorator in test.decorator_list for node in ast.walk(decorator))
    for call in calls:
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("composes", "pytest.mark.composes"):
            given = {str(entry.arg): ast.literal_eval(entry.value) for entry in call.keywords}
            what = ast.literal_eval(call.args[0])
            if given.get("order") not in ORDERS or set(given) - {"order", "note"}:
                raise ValueError(
                    f"{file}::{test.name}: composes({what!r}) wants order, one of {list(ORDERS)}"
                )
            yield Claim(what, given["order"], given.get("note", ""), f"{file}::{test.name}")


def table() -> str:
    return HEADER + "\n".join(claim.row() for claim in claims()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        TABLE.write_text(table(), encoding="utf-8")
    elif not TABLE.is_file() or TABLE.read_text(encoding="utf-8") != table():
        sys.exit(f"{TABLE.relative_to(ROOT)} is stale: run python scripts/compatibility.py")


if __name__ == "__main__":
    main()
