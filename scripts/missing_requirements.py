#!/usr/bin/env python3
"""Prints the lines of a requirements file whose packages are not installed, in whatever version.

missing_requirements.py FILE [--except NAME …]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


def missing(lines: Iterable[str], leave_out: Iterable[str] = ()) -> Iterator[str]:
    """Requirements that no installed distribution has the name of; comments and options are passed over."""
    skipped = {name.lower() for name in leave_out}
    for line in lines:
        requirement = line.split("#")[0].strip()
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
        if match is None or match.group().lower() in skipped:
            continue
        try:
            importlib.metadata.distribution(match.group())
        except importlib.metadata.PackageNotFoundError:
            yield requirement


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--except", dest="leave_out", nargs="*", default=[], metavar="NAME")
    chosen = parser.parse_args()
    for name in missing(chosen.file.read_text(encoding="utf-8").splitlines(), chosen.leave_out):
        print(name)
