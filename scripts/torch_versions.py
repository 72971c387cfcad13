#!/usr/bin/env python3
"""`make torch`: the mechanism, both hosts' tiny models and the compiled forms on the PyTorch versions stated.

    python scripts/torch_versions.py [--venv FOLDER] [version …]

The versions are those of `[tool.nested-attention]` in pyproject.toml, the oldest and the newest, if none is
named. Each has an environment of its own, FOLDER/torch-<version>, with the first ComfyUI that is found. The
lines at the end are the table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from install import ROOT, _install_requirements, _pip, say
from run_tests import REPORTS, Part, run

from nested_attention.find_comfyui import ComfyUI, find_every_comfyui, interpreter

LIBRARY = ("test_attention.py", "test_kernels.py", "test_cost.py", "test_regions.py", "test_diffusers.py")
COMFYUI = ("comfyui/test_sampling_cost.py", "comfyui/test_parts.py", "comfyui/test_hosts_agree.py")
"""What depends on PyTorch most: the forms of the mechanism, compiled too, and a tiny SDXL in each host."""

_VERSIONS = "from importlib.metadata import version as v; print(*(v(n) for n in {names!r}), sep='\\n')"


def stated() -> list[str]:
    """The oldest and the newest, from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^torch-versions = \[(.*)\]", text, re.MULTILINE)
    assert found is not None, "pyproject.toml states no torch-versions"
    return re.findall(r'"([\d.]+)"', found.group(1))


def environment(torch: str, comfyui: ComfyUI | None, folder: Path) -> Path:
    """The Python of an environment with this version of PyTorch; made if it is not there yet."""
    place = folder / f"torch-{torch}"
    python = interpreter(place)
    if not (place / "installed").exists():
        say(f"Installing PyTorch {torch} into {place} …")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        _pip(python, f"torch=={torch}")
        constraint = place / "torch.txt"
        # Triton's interpreter of that time does not run with what newer versions of NumPy refuse.
        older = "numpy<2.3\n" if tuple(map(int, torch.split(".")[:2])) < (2, 11) else ""
        constraint.write_text(f"torch=={torch}\n{older}", encoding="utf-8")
        _pip(python, "-r", str(ROOT / "requirements-dev.txt"), "-c", str(constraint))
        if comfyui is not None:
            _install_requirements(comfyui, place)
        (place / "installed").touch()
    return python


def row(torch: str, python: Path, parts: list[Part]) -> str:
    names = ("diffusers", "transformers")
    found = subprocess.check_output([str(python), "-c", _VERSIONS.format(names=names)], text=True).split()
    counts = [f"{part.passed} passed, {len(part.failed)} failed" for part in parts]
    return "| " + " | ".join([torch, *found, *counts]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=stated())
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    chosen = parser.parse_args()
    found, _where = find_every_comfyui()
    comfyui = found[0] if found else None
    REPORTS.mkdir(parents=True, exist_ok=True)
    rows, failed = [], False
    for torch in chosen.versions:
        python = environment(torch, comfyui, chosen.venv.absolute())
        runs = [("library", LIBRARY, None), *([("ComfyUI", COMFYUI, comfyui)] if comfyui else [])]
        parts = [
            run(f"PyTorch {torch}, {name}", python, REPORTS / f"torch-{torch}-{name}.xml", files, where)
            for name, files, where in runs
        ]
        rows.append(row(torch, python, parts))
        failed |= any(part.failed or part.problem for part in parts)
        print("\n".join(line for part in parts for line in part.lines()))
    host = f"ComfyUI {comfyui.version}" if comfyui else ""
    header = ["PyTorch", "diffusers", "transformers", "library and diffusers", *([host] if host else [])]
    print("\n| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|\n" + "\n".join(rows))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
