"""The scripts that nobody's tests run, because they take minutes, a network or a GPU: that they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

STARTS = """
import importlib, sys, traceback
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except Exception:
        print(name, traceback.format_exc())
"""


def test_every_script_starts() -> None:
    """What they import is there under that name."""
    pytest.importorskip("skimage")  # the photographs of two of them
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    assert "training_throughput" in names
    command = [sys.executable, "-B", "-c", STARTS, str(SCRIPTS), *names]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ran.stdout, ran.returncode) == ("", 0), ran.stdout + ran.stderr
