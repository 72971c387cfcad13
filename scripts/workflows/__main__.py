"""Keeps workflows/*.json, which the editor opens, and workflows/api/*.json, which the server takes, in step.

    python scripts/workflows check          what sync would change; exits with 1 if anything
    python scripts/workflows sync           inputs that nodes have gained appear; API files are written anew
    python scripts/workflows draft NAME …   writes a workflow of recipes.py (--force: over the one there is)

A workflow in workflows/ is edited in ComfyUI and saved there; sync does the rest. Node definitions come
from a ComfyUI that is started for it (nested_attention/find_comfyui.py), or from a file with the JSON of
/object_info.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from formats import Definitions, Graph, to_api, update  # noqa: E402
from names import server_name, template  # noqa: E402
from parts import Context  # noqa: E402
from recipes import RECIPES, draw_up  # noqa: E402

WORKFLOWS = ROOT / "workflows"


def load_definitions(path: Path | None) -> Definitions:
    if path is not None:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    from nested_attention.demo.server import ComfyServer
    from nested_attention.find_comfyui import find_comfyui

    comfyui, where = find_comfyui()
    if comfyui is None:
        sys.exit(f"ComfyUI was not found: {where}")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        return dict(server.get("/object_info"))


def project(key: str, pattern: str = ".*?") -> str:
    found = re.search(rf'^{key} = "[>=]*({pattern})"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found is not None
    return found.group(1)


def written(graph: Graph) -> str:
    return json.dumps(graph, indent=2, ensure_ascii=False) + "\n"


def synced(path: Path, definitions: Definitions) -> dict[Path, str]:
    """What a workflow's two files should contain."""
    editor: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    editor = update(editor, definitions, project("version"))
    return {
        path: written(editor),
        path.parent / "api" / f"{server_name(path.stem)}.json": written(to_api(editor, definitions)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["check", "sync", "draft"])
    parser.add_argument("names", nargs="*", help=f"for draft: {', '.join(RECIPES)}")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--definitions", type=Path, help="a file with the JSON of /object_info")
    chosen = parser.parse_args()
    definitions = load_definitions(chosen.definitions)
    if chosen.command == "draft":
        context = Context(definitions, project("version"), project("requires-comfyui"))
        for name in chosen.names or RECIPES:
            path = WORKFLOWS / f"{template(name)}.json"
            if path.exists() and not chosen.force:
                sys.exit(f"{path} exists, and may have been edited; --force writes over it")
            path.write_text(written(draw_up(name, context)), encoding="utf-8")
    paths = sorted(WORKFLOWS.glob("*.json"))
    stale = []
    for path in paths:
        for file, content in synced(path, definitions).items():
            if not file.exists() or json.loads(file.read_text(encoding="utf-8")) != json.loads(content):
                stale.append(file)
                if chosen.command != "check":
                    file.write_text(content, encoding="utf-8")
    for file in stale:
        print(f"{'differs' if chosen.command == 'check' else 'written'}: {file.relative_to(ROOT)}")
    if stale and chosen.command == "check":
        sys.exit(1)


if __name__ == "__main__":
    main()
