#!/usr/bin/env python3
"""Writes docs/compatibility.md: what the tests show (`@pytest.mark.composes`), and where they passed.

python scripts/compatibility.py            writes it, and the tested versions in README.md
python scripts/compatibility.py --record   takes up first what the last `make test` found on each ComfyUI
python scripts/compatibility.py --check    exits with 1 if one of them is stale
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "comfyui"
TABLE = ROOT / "docs" / "compatibility.md"
README = ROOT / "README.md"
RECORD = ROOT / "tests" / "compatibility.json"
"""ComfyUI's version → what it ran with, and the claims that were shown on it."""
REPORTS = ROOT / "runs" / "tests"
"""Where `make test` leaves, for each ComfyUI, pytest's report and what it ran with."""

Record = dict[str, dict[str, object]]

START, END = "<!-- tested: written by `scripts/compatibility.py` -->", "<!-- end of tested -->"
"""Between them README.md says on what the tests have passed."""

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
[`test_small_world_composed.py`](../tests/comfyui/test_small_world_composed.py). ✓: the test passed on that
version of ComfyUI.

This file is written by `python scripts/compatibility.py` from the tests; do not edit it.

"""

TRIED = """
## Packs tried by hand

No test shows these. The packs themselves were run once, on ComfyUI 0.3.64 on 2026-11-27, with this pack as it
was at 2a9af1f; faults that were found then may have been mended since. Where it says "now", the pack's own
classes ran again later that day, with the fault mended, on a tiny SDXL.

| pack | commit | result |
|---|---|---|
"""
PACKS = [
    ("ComfyUI_IPAdapter_plus", "9d076a3", "works; both orders give the same picture, bit for bit"),
    ("ComfyUI-AnimateDiff-Evolved", "d8d163c", "context windows work"),
    ("sd-perturbed-attention", "904319b", "PAG, SEG, NAG and SWG work, in both orders"),
    (
        "comfyui-prompt-control",
        "b24d93b",
        "works; where it encodes parts of a prompt apart (CAT, AVG), the message about a missing word lists "
        "the words of one part only",
    ),
    ("ComfyUI_smZNodes", "9562d76", "comfy parsers work, the others need Mark Prompt"),
    ("ComfyUI_ADV_CLIP_emb", "63984de", "needs Mark Prompt"),
    ("ComfyUI-GGUF", "795e451", "its model patcher works with weights that are not quantised"),
    (
        "ComfyUI-ppm",
        "200f460",
        "NegPip: marks went to other tokens, and a warning spoke of Conditioning (Concat) wrongly; now "
        "the same picture as without NegPip, bit for bit. Attention couple: now works, in both orders "
        "(ComfyUI 0.33.0)",
    ),
    (
        "ComfyUI-TiledDiffusion",
        "a155b1b",
        "a region was squeezed whole onto each tile; now it is cut to them with MultiDiffusion and "
        "Mixture of Diffusers, bit for bit, and refused with SpotDiffusion, which rolls the picture",
    ),
    (
        "ComfyUI-NAG",
        "ef8a641",
        "its sampler: the subject had no effect, and no message said so; an error names it since (not run "
        "again)",
    ),
    (
        "cgem156-ComfyUI",
        "884563c",
        "attention couple: refused as a function that splits the batch; now works, in both orders "
        "(ComfyUI 0.3.64 and 0.33.0)",
    ),
]


@dataclass(frozen=True)
class Claim:
    """One `composes(what, order=…, note=…)` on a test."""

    what: str
    order: str
    note: str
    test: str

    def row(self, record: Record) -> str:
        file, name = self.test.split("::")
        shown = ["✓" if self.what in listed(facts) else "" for facts in record.values()]
        cells = [self.what, ORDERS[self.order], *shown, self.note, f"[`{name}`](../{file})"]
        return f"| {' | '.join(cells)} |"


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


def listed(facts: Mapping[str, object]) -> list[str]:
    """The claims that were shown on one ComfyUI."""
    shown = facts["shown"]
    assert isinstance(shown, list)
    return shown


def load_record() -> Record:
    record: Record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    return record


def take_up(record: Record, reports: Path) -> Record:
    """The record with what the reports in a folder say of the claims whose tests ran.

    A claim is shown where every test that makes it passed. One whose tests did not run stays as it was, and
    one that no test makes any more is left out.
    """
    made = {claim.what for claim in claims()}
    found = dict(record)
    for facts_file in sorted(reports.glob("*.json")):
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        version = facts.pop("comfyui")
        ran = _outcomes(facts_file.with_suffix(".xml"))
        before = set(listed(record[version])) if version in record else set()
        shown = (before - set(ran)) | {what for what, passed in ran.items() if passed}
        found[version] = {**facts, "shown": sorted(shown & made, key=str.lower)}
    return dict(sorted(found.items(), key=lambda entry: _numbers(entry[0])))


def _outcomes(report: Path) -> dict[str, bool]:
    """Claim → whether all its tests passed, of those that ran."""
    found: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            for entry in case.iterfind("properties/property[@name='composes']"):
                what = entry.get("value", "")
                found[what] = found.get(what, True) and passed
    return found


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def table(record: Record) -> str:
    """docs/compatibility.md."""
    columns = ["with", "where", *record, "note", "shown by"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [claim.row(record) for claim in claims()]
    tried = [f"| {' | '.join(cells)} |" for cells in PACKS]
    return HEADER + "\n".join(lines) + "\n" + TRIED + "\n".join(tried) + "\n"


def readme(text: str, record: Record) -> str:
    """README.md with the tested versions between its two comments."""
    cores = [
        f"{version} (front end {facts['front_end']}, PyTorch {facts['torch']}, Python {facts['python']})"
        for version, facts in record.items()
    ]
    stated = f"{START}\nTested on ComfyUI " + " and\n".join(cores) + f".\n{END}"
    if START not in text or END not in text:
        raise ValueError(f"README.md has no {START} or no {END}")
    return text[: text.index(START)] + stated + text[text.index(END) + len(END) :]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    chosen = parser.parse_args()
    record = load_record()
    if chosen.record:
        record = take_up(record, REPORTS)
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wanted = {TABLE: table(record), README: readme(README.read_text(encoding="utf-8"), record)}
    for path, text in wanted.items():
        if not chosen.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run python scripts/compatibility.py")


if __name__ == "__main__":
    main()
