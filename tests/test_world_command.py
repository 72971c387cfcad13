"""`nested-attention world`: what is refused, and how, before anything is loaded or measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nested_attention.avatars.figures import anchored
from nested_attention.avatars.figures.judges import Judges
from nested_attention.cli.app import app

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


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["pet", "pat"], "no such part: pat. The parts are person, pet"),
        (["pet", "--use", "anchor"], "no such use: anchor"),
        (["--adapters", "FOLDER", "--out", "FOLDER/a.json"], "FOLDER has no person.safetensors and no pet"),
        (["--adapters", "FOLDER"], "--adapters goes with --out"),
    ],
)
def test_what_anchored_cannot_measure_is_refused_before_anything_is_loaded(
    command: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judges, "load", lambda: pytest.fail("loaded"))
    given = [each.replace("FOLDER", str(tmp_path)) for each in command]
    refused = CliRunner().invoke(app, ["world", "anchored", *given])
    assert refused.exit_code == 1 and said.replace("FOLDER", str(tmp_path)) in refused.output
    assert not list(tmp_path.iterdir())


def test_anchored_loads_once_and_says_which_adapters_the_figures_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, written = [], []
    monkeypatch.setattr(Judges, "load", lambda: loaded.append("judges"))
    monkeypatch.setattr(anchored, "adapters", lambda folder: loaded.append(folder))

    def measured(judges: Any, own: Any, counts: Any, parts: list[str], *_: Any) -> dict[str, Any]:
        return {part: {} for part in parts}

    monkeypatch.setattr(anchored, "measure", measured)
    monkeypatch.setattr(anchored, "write", lambda *given: written.append(given))
    out = tmp_path / "anchored.json"
    command = ["world", "anchored", "pet", "choice", "--adapters", str(tmp_path), "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert loaded == [tmp_path, "judges"]
    assert written == [({"pet": {}}, out, tmp_path), ({"choice": {}}, out, tmp_path)]
