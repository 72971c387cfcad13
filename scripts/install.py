#!/usr/bin/env python3
"""Installs what `make demo`, `make test` and `make train` need, into virtual environments of their own.

    python scripts/install.py [--venv FOLDER] [--every]

Prints the Python of the environment it made: for the first ComfyUI that is found, for each of them with
--every, or for the library alone where there is none. Everything else it has to say goes to the error
output.

Each ComfyUI has an environment of its own, FOLDER/<its name>, because an older one does not start beside a
newer one's packages. It sees the packages of the ComfyUI's own virtual environment, else those of
FOLDER/library, which sees those of the Python that runs this script; so an installed torch is used as it
is, and only what is missing is installed. Done once: what was installed is remembered until the
requirements or the place change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.find_comfyui import ComfyUI, find_every_comfyui, interpreter  # noqa: E402

OURS = ("requirements.txt", "requirements-dev.txt", "tests/comfyui/front-end.txt")

# What a virtual environment that builds on an interpreter has to add to its path: nothing where that one is a
# system's (the option --system-site-packages does it), else every folder of packages it sees itself.
_PACKAGES = """
import json, os, sys
places = [place for place in sys.path if os.path.basename(place) in ("site-packages", "dist-packages")]
print(json.dumps(places if sys.prefix != sys.base_prefix else None))
"""
_LACKS_TORCHAUDIO = """
import importlib.metadata as metadata
try:
    metadata.version("torchaudio")
except metadata.PackageNotFoundError:
    # As its package is called on the index: torch.__version__ may say more, such as +cu130.
    print(metadata.version("torch").split("+")[0])
"""
_TORCH = 'from importlib.metadata import version; print("torch==" + version("torch").split("+")[0])'


def environment(comfyui: ComfyUI | None, folder: Path) -> Path:
    """The Python of the environment for a ComfyUI, or for the library alone; made if it is not there yet.

    Raises subprocess.CalledProcessError where venv or pip fail; they have said why.
    """
    if comfyui is None:
        place, base = folder / "library", Path(sys.executable)
    else:
        place, base = folder / comfyui.name, comfyui.python or environment(None, folder)
    files = [ROOT / name for name in OURS] + ([comfyui.folder / "requirements.txt"] if comfyui else [])
    wanted = {
        "base": str(base),
        "comfyui": str(comfyui.folder) if comfyui else None,
        "requirements": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
    }
    record, python = place / "installed.json", interpreter(place)
    installed = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if installed == wanted and python.exists():
        return python

    say(f"Installing into {place}, with what {base} has …")
    if installed.get("base") != wanted["base"] or not python.exists():
        _create(place, base)
    record.unlink(missing_ok=True)
    _pip(python, "-r", str(ROOT / "requirements-dev.txt"))
    if comfyui is not None:
        _install_requirements(comfyui, place)
    record.write_text(json.dumps(wanted), encoding="utf-8")
    return python


def _create(place: Path, base: Path) -> None:
    packages = json.loads(_output(base, "-c", _PACKAGES))
    shared = ["--system-site-packages"] if packages is None else []
    _run([str(base), "-m", "venv", "--clear", *shared, str(place)])
    if packages:
        own = Path(
            _output(interpreter(place), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        )
        lines = (f"import site; site.addsitedir({path!r})\n" for path in packages)
        (own / "base.pth").write_text("".join(lines), encoding="utf-8")


def _install_requirements(comfyui: ComfyUI, place: Path) -> None:
    """What ComfyUI lists and the environment lacks, without touching torch.

    torchaudio asks for the torch of its own release, and has fewer releases: the newest that is not newer
    than torch is installed without what it asks for.
    """
    python = interpreter(place)
    lines = (comfyui.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    audio = [line for line in lines if re.match(r"torchaudio\b", line, re.IGNORECASE)]
    requirements, constraints = place / "comfyui.txt", place / "constraints.txt"
    requirements.write_text("\n".join(line for line in lines if line not in audio), encoding="utf-8")
    constraints.write_text(_output(python, "-c", _TORCH), encoding="utf-8")
    _pip(python, "-r", str(requirements), "-c", str(constraints))
    # Newer than the one that ComfyUI asks for, so not among the packages but beside them.
    front_end = ("--no-deps", "--upgrade", "--target", str(place / "front-end"))
    _pip(python, *front_end, "-r", str(ROOT / "tests" / "comfyui" / "front-end.txt"))
    if audio and (torch := _output(python, "-c", _LACKS_TORCHAUDIO)):
        _pip(python, "--no-deps", f"torchaudio<={torch}")


def _pip(python: Path, *arguments: str) -> None:
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, stdout=sys.stderr, check=True)


def _output(python: Path, *arguments: str) -> str:
    done = subprocess.run([str(python), *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    parser.add_argument("--every", action="store_true", help="an environment for each ComfyUI")
    chosen = parser.parse_args()
    found, where = find_every_comfyui()
    if not found:
        say(f"ComfyUI was not found: {where}.")
    wanted = found if chosen.every else found[:1]
    try:
        for comfyui in wanted or [None]:
            print(environment(comfyui, chosen.venv.absolute()))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} failed with exit code {error.returncode}; what it said stands above.")


if __name__ == "__main__":
    main()
