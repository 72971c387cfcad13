"""The README's Python example runs as it stands, and its lists are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from nested_attention.storage.registry import known_weights

ROOT = Path(__file__).resolve().parent.parent


def test_every_known_file_can_be_asked_for_by_its_name() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (names,) = re.findall(r"The names are (.*?)\. ", text, re.S)
    assert set(re.findall(r"`([^`]+)`", names)) == set(known_weights())


def test_the_python_example_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    example, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)  # the other is for SDXL: test_draw.py
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (picture,) = tmp_path.glob("*.png")
    with Image.open(picture) as drawn:
        assert drawn.size == (512, 512) and len(drawn.getcolors(512 * 512) or []) > 100
