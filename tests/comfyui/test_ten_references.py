"""Memory after ten references: nothing of a subject is left alive, and the process is back where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measures through /proc")


@needs_proc
@pytest.mark.slow
def test_ten_references_at_full_width_leave_nothing_behind(
    comfyui: Path, closing_line: Callable[[str], None]
) -> None:
    script = Path(__file__).with_name("ten_references.py")
    # glibc keeps freed blocks of up to 32 MB to itself; given back at once, what is left is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, str(script), str(comfyui)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["watched"] > 10 * 40
    assert found["alive"] == []
    assert found["peak"] > found["before"] + 150e6  # an encoder and a subject were there
    assert abs(found["after"] - found["before"]) < 0.02 * found["before"]
    assert found["different"] == 10
    assert found["finite"]
    change = 100 * (found["after"] / found["before"] - 1)
    closing_line(
        f"Memory after ten references: {change:+.2f} %, {found['watched']} objects watched, none left."
    )
