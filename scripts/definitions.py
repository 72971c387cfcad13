"""The pack's nodes as ComfyUI's editor gets them, read in this process; for the scripts beside this file."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACK = "nested_attention_pack"


def load_definitions() -> dict[str, dict[str, Any]]:
    """Node id → its entry in the server's /object_info. Imports ComfyUI, and exits if there is none."""
    if "folder_paths" not in sys.modules:
        finder = _load("find_comfyui", ROOT / "nested_attention" / "find_comfyui.py")
        comfyui, reason = finder.find_comfyui()
        if comfyui is None:
            sys.exit(f"ComfyUI was not found: {reason}")
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        args.cpu = True
    pack = sys.modules.get(PACK) or _load(PACK, ROOT / "__init__.py", [str(ROOT)])

    async def listed() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in asyncio.run(listed())}


def slots(definition: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], bool]]:
    """Every input in the editor's order: name, type, options, and whether a graph has to give it."""
    found = []
    for section in ("required", "optional"):
        for name in definition["input_order"].get(section, []):
            kind, *options = definition["input"][section][name]
            found.append((name, str(kind), dict(options[0]) if options else {}, section == "required"))
    return found


def _load(name: str, path: Path, inside: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=inside)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
