"""The house's floors: imports run one way, downwards, and no module waits for another that waits for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = (
    ("", "errors", "find_comfyui", "paths", "typed"),
    ("attention", "qformer"),
    ("anchored",),
    ("kernels", "inspection.observed"),
    ("blocks", "prompt", "regions", "sites"),
    ("encoder", "placeholders"),
    ("settings", "card"),
    ("storage",),
    ("subject",),
    ("checkpoint", "subject_batch", "storage.store", "pictures", "inspection"),
    ("hosts.comfy.graph", "hosts.comfy.kept", "hosts.comfy.notices"),
    ("hosts.comfy.identity",),
    ("hosts.comfy.prompts", "hosts.comfy.encoding"),
    ("hosts.comfy.sampling",),
    ("hosts.comfy", "hosts.diffusers", "hosts"),
    ("avatars.drawing", "training"),
    ("evaluation",),
    ("avatars.models", "avatars.comfy"),
    ("avatars.train",),
    ("avatars.figures", "avatars"),
    ("demo",),
    ("bench",),
    ("cli",),
    ("nodes",),
)
"""Rooms and modules from the lowest; what stands on one line does not import from one another."""

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("nested_attention", "nodes")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The longest room that a module stands in."""
    name = module.removeprefix("nested_attention").strip(".")
    while name not in ROOMS:
        assert "." in name, f"{module} stands in no room of FLOORS; say where it belongs"
        name = name.rpartition(".")[0]
    return name


def imported(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """What a module imports of the pack, within functions and for type checkers too, and the lines."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            name = f"{base}.{alias.name}"
            yield (name if name in SOURCES else base), node.lineno


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module: str) -> None:
    room = room_of(module)
    for other, line in imported(module, SOURCES[module]):
        there = room_of(other)
        assert there == room or ROOMS[there] < ROOMS[room], f"{module}:{line} imports {other}, from above it"


def test_no_module_waits_for_one_that_waits_for_it() -> None:
    graph = {m: {o for o, _ in imported(m, path)} - {m} for m, path in SOURCES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_every_file_can_be_read_in_one_sitting() -> None:
    long = {
        m: n for m, path in SOURCES.items() if (n := len(path.read_text(encoding="utf-8").split("\n"))) > 400
    }
    assert not long, f"over 400 lines, part them by what they are for: {long}"
