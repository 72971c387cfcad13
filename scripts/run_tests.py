#!/usr/bin/env python3
"""`make test`: what needs no ComfyUI once, then tests/comfyui in each ComfyUI that is found.

    python scripts/run_tests.py [--venv FOLDER] [--full] [what pytest takes …]

Tests that are marked `once` run in the first ComfyUI alone; --full runs them in each. The lines at the end
say of each part what passed, failed and was left out, and why; the last one is the total. Exits with 1 when
a test failed, or when a ComfyUI ran none. What pytest reports is kept in runs/tests/, where
`scripts/compatibility.py --record` reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from install import ROOT, environment, say

from nested_attention.find_comfyui import ComfyUI, find_every_comfyui

REPORTS = ROOT / "runs" / "tests"
LIBRARY = "library"
"""The report of what needs no ComfyUI; the others are called after their ComfyUI."""

WORKERS = min(4, os.cpu_count() or 1)
"""Processes that run tests at once, with one thread each. Each takes about 1.5 GB."""

_VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
print(json.dumps({"python": platform.python_version(), "torch": of("torch"),
                  "front_end": of("comfyui-frontend-package")}))
"""


@dataclass
class Part:
    """What one run of pytest found. problem: why it counts as failed, beside tests that did."""

    title: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    problem: str = ""

    def lines(self) -> list[str]:
        out = sum(self.left_out.values())
        counts = f"{self.passed} passed, {len(self.failed)} failed, {out} left out, in {self.seconds:.0f} s"
        return [
            f"{self.title}: {counts}",
            *(f"    {count} left out: {reason}" for reason, count in sorted(self.left_out.items())),
            *(f"    failed: {name}" for name in self.failed),
            *([f"    {self.problem}"] if self.problem else []),
        ]


def run(title: str, python: Path, report: Path, arguments: Sequence[str], comfyui: ComfyUI | None) -> Part:
    """One run of pytest; what it prints is passed through."""
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-c", "pytest.ini", f"--junitxml={report}", *arguments]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    if comfyui is not None:
        surroundings["COMFYUI_PATH"] = str(comfyui.folder)
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    status = subprocess.run(command, cwd=ROOT / "tests", env=surroundings, check=False).returncode
    part = read(report, title) if report.is_file() else Part(title)
    part.seconds = time.monotonic() - start
    if status not in (0, 1, 5):  # 1: tests failed; 5: none were chosen
        part.problem = f"pytest ended with exit code {status}"
    elif status == 1 and not part.failed:
        part.problem = "pytest failed outside of the tests"
    return part


def read(report: Path, title: str) -> Part:
    """The counts of a report in JUnit's format."""
    part = Part(title)
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            part.failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            part.left_out[skipped.get("message", "")] += 1
        else:
            part.passed += 1
    return part


def parts(chosen: argparse.Namespace, found: Sequence[ComfyUI], given: Sequence[str]) -> list[Part]:
    """Runs everything."""
    venv = chosen.venv.absolute()
    shared = ["-n", str(WORKERS), "--dist", "loadfile"] if WORKERS > 1 else []
    first = environment(found[0] if found else None, venv)
    # Without a ComfyUI its tests are collected all the same, and left out with the reason.
    part = "library" if found else "all"
    done = [
        run("Without ComfyUI", first, REPORTS / f"{LIBRARY}.xml", [*shared, f"--part={part}", *given], None)
    ]
    once_on = ""
    for comfyui in found:
        python = environment(comfyui, venv)
        versions = json.loads(subprocess.check_output([str(python), "-c", _VERSIONS], text=True))
        title = (
            f"ComfyUI {comfyui.version} ({comfyui.folder}, front end {versions['front_end']}, "
            f"PyTorch {versions['torch']}, Python {versions['python']})"
        )
        facts = REPORTS / f"{comfyui.name}.json"
        facts.unlink(missing_ok=True)
        options = [*shared, "--part=comfyui"]
        if once_on and not chosen.full:
            options.append(f"--once-on={once_on}")
        part = run(title, python, REPORTS / f"{comfyui.name}.xml", [*options, *given], comfyui)
        if part.passed or part.failed:
            facts.write_text(json.dumps({"comfyui": comfyui.version, **versions}), encoding="utf-8")
        if not part.passed + len(part.failed) and (part.left_out or not given):
            part.problem = part.problem or "none of its tests ran"
        done.append(part)
        once_on = once_on or f"ComfyUI {comfyui.version}"
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    parser.add_argument("--full", action="store_true", help="tests marked `once` in every ComfyUI")
    chosen, given = parser.parse_known_args()
    found, where = find_every_comfyui()
    if not found and os.environ.get("COMFYUI_PATH"):
        sys.exit(f"ComfyUI was not found: {where}")
    REPORTS.mkdir(parents=True, exist_ok=True)
    try:
        done = parts(chosen, found, given)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{shlex.join(map(str, error.cmd))} failed with exit code {error.returncode}")
    print()
    for part in done:
        print("\n".join(part.lines()))
    if not found:
        say(f"ComfyUI was not found: {where}.")
    passed = sum(part.passed for part in done)
    failed = sum(len(part.failed) + bool(part.problem) for part in done)
    skipped = sum(sum(part.left_out.values()) for part in done)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
