"""`nested-attention world`: what is refused, and how, before anything is loaded or measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None  # as where it is not installed
from nested_attention.cli.app import app
app(["world", *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    ("package", "command"),
    [("psutil", ["probe", "encoder.safetensors"]), ("peft", ["acceptance", "--development", "--part", "x"])],
)
def test_a_command_that_needs_packages_of_training_says_how_to_install_them(
    package: str, command: list[str]
) -> None:
    folder = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{package} is not installed" in done.stderr and "[training]" in done.stderr
