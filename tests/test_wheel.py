"""The library as people install it without ComfyUI: a wheel that brings the small world and the registry."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import nested_attention, sys
from pathlib import Path
from nested_attention.avatars.models.world import load_world
from nested_attention.checkpoint import load_subject_encoder
from nested_attention.evaluation.page import environment
from nested_attention.paths import CONFIGS, FACE_DETECTOR, FACE_RECOGNISER, SMALL_WORLD
from nested_attention.storage.registry import known_weights

assert Path(nested_attention.__file__).is_relative_to(sys.argv[1]), nested_attention.__file__
assert known_weights() and FACE_DETECTOR.is_file() and FACE_RECOGNISER.is_file()
assert (CONFIGS / "train" / "small-pet.yaml").is_file()
environment().get_template("report.html.j2")
load_world()
print(load_subject_encoder(SMALL_WORLD / "pet_encoder.safetensors").config.word)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, unpacked alone, in a folder that can stand on sys.path."""
    folder = tmp_path_factory.mktemp("wheel")
    wheels, unpacked = folder / "wheels", folder / "site"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
    subprocess.run([*build, "--wheel-dir", str(wheels)], check=True, cwd=folder)
    (wheel,) = wheels.glob("nested_attention-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_an_installed_wheel_loads_the_small_world(installed: Path) -> None:
    """In an interpreter that sees no other copy of the library, only what it needs besides."""
    needed = sysconfig.get_paths()["purelib"], *(path for path in sys.path if path.endswith("-packages"))
    code = f"import sys; sys.path[:0] = [{str(installed)!r}]; sys.path += {list(needed)!r}\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(installed)],
        capture_output=True, text=True, check=False, cwd=installed,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "pet\n"), done.stderr


def test_the_wheel_holds_the_library_and_its_weights_alone(installed: Path) -> None:
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"nested_attention"}
    assert not list(installed.rglob("test_*.py"))
