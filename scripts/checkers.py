#!/usr/bin/env python3
"""`make checkers`: what checkers that others wrote say of the pack, on every ComfyUI that is found.

comfy-lint compares each file of workflows/api with the nodes of a running server, into whose folders empty
files are put under the names that the workflows for SDXL ask for. comfy-import-guard compares every name
and call of ComfyUI's own code that the pack uses with that code. Exits with 1 if one of them finds an error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from install import ROOT, environment

from nested_attention.demo.server import PACK_NAME, ComfyServer
from nested_attention.find_comfyui import ComfyUI, find_every_comfyui

WORKFLOWS = sorted((ROOT / "workflows" / "api").glob("*.json"))
FOLDERS = {
    ("CheckpointLoaderSimple", "ckpt_name"): "models/checkpoints",
    ("CLIPVisionLoader", "clip_name"): "models/clip_vision",
    ("NestedAttentionLoadEncoder", "encoder_name"): "models/nested_attention",
    ("LoadImage", "image"): "input",
}
"""Where ComfyUI lists the files that an input of a node may name."""


def lint_workflows(comfyui: ComfyUI, python: Path) -> bool:
    """Whether comfy-lint finds nothing in any workflow, warnings included."""
    with tempfile.TemporaryDirectory() as folder:
        for workflow in WORKFLOWS:
            if workflow.name.startswith("sdxl_"):
                _put_stand_ins(workflow, Path(folder))
        with ComfyServer(comfyui.folder, Path(folder), python=str(python)) as server:
            call = "import sys; from comfy_lint.cli import main; sys.exit(main())"
            return _passes([python, "-c", call, "--strict", "--server", server.url, *WORKFLOWS])


def _put_stand_ins(workflow: Path, base: Path) -> None:
    for node in json.loads(workflow.read_text(encoding="utf-8")).values():
        for name, value in node["inputs"].items():
            if folder := FOLDERS.get((node["class_type"], name)):
                (base / folder).mkdir(parents=True, exist_ok=True)
                (base / folder / value).touch()


def guard_imports(comfyui: ComfyUI, python: Path) -> bool:
    """Whether comfy-import-guard finds no name that breaks. It reads ComfyUI from a git repository."""
    with tempfile.TemporaryDirectory() as folder:
        pack, repository = Path(folder) / "custom_nodes" / PACK_NAME, Path(folder) / "ComfyUI"
        unneeded = shutil.ignore_patterns("__pycache__")
        for name in ("nodes", "nested_attention"):
            shutil.copytree(ROOT / name, pack / name, ignore=unneeded)
        shutil.copy(ROOT / "__init__.py", pack)
        shutil.copytree(comfyui.folder / "comfy", repository / "comfy", ignore=unneeded)
        git = ["git", "-c", "user.name=checkers", "-c", "user.email=checkers@localhost"]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", comfyui.version]):
            subprocess.run([*git, *command], cwd=repository, check=True)
        call = "import sys; from comfy_import_guard.cli import main; sys.exit(main())"
        options = ["--comfy-dir", folder, "--cache-dir", folder, "--target", "HEAD", "--offline"]
        # Not --strict: it warns of names that the pack asks for and does without in older versions.
        return _passes([python, "-c", call, "check", *options])


def _passes(command: Sequence[str | Path]) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    venv = parser.parse_args().venv.absolute()
    found, where = find_every_comfyui()
    if not found:
        sys.exit(f"ComfyUI was not found: {where}")
    results = []
    for comfyui in found:
        python = environment(comfyui, venv)
        for name, check in (("comfy-lint", lint_workflows), ("comfy-import-guard", guard_imports)):
            print(f"\n{name} on ComfyUI {comfyui.version} ({comfyui.folder})", flush=True)
            results.append(check(comfyui, python))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
