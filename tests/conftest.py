"""Makes `nested_attention` importable without putting the pack's root on sys.path.

ComfyUI has a top-level module called `nodes`, and so does the pack: with the pack's root on sys.path the
two would shadow each other. The library is therefore loaded by location, under its own name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load_library() -> None:
    if "nested_attention" in sys.modules:
        return
    package = ROOT / "nested_attention"
    spec = importlib.util.spec_from_file_location(
        "nested_attention", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nested_attention"] = module
    spec.loader.exec_module(module)


_load_library()

CLOSING = "closing line"


@pytest.fixture
def closing_line(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """For figures, and for what was left out by default: a line at the end of the whole run."""
    return lambda line: record_property(CLOSING, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in report.user_properties:
            if name == CLOSING:
                terminalreporter.write_line(str(line))


def load_script(path: str) -> ModuleType:
    """A file of scripts/, under a name of its own; what lies beside it can be imported by it."""
    place = ROOT / "scripts" / path
    name = f"scripts_{place.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        before = list(sys.path)
        sys.path.insert(0, str(place.parent))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = before  # scripts put the pack's root there, whose `nodes` would hide ComfyUI's
    return sys.modules[name]


@pytest.fixture(scope="session")
def script():  # noqa: ANN201
    """load_script, for tests."""
    return load_script


@pytest.fixture(scope="session")
def world_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world in diffusers' layout, as `nested-attention world export` writes it."""
    from nested_attention.avatars.models.pipeline import export_world

    folder = tmp_path_factory.mktemp("world")
    export_world(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(world_on_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 16 people of the small world, prepared; not to be written to."""
    from small_training import draw, preparing

    from nested_attention.training.prepare.run import prepare

    folder = tmp_path_factory.mktemp("people")
    prepare(preparing(world_on_disk, folder, draw(folder)), lambda line: None)
    return folder / "prepared"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    if part != "all":
        inside = [ROOT / "tests" / "comfyui" in item.path.parents for item in items]
        chosen = [wanted == (part == "comfyui") for wanted in inside]
        left = [item for item, kept in zip(items, chosen, strict=True) if not kept]
        items[:] = [item for item, kept in zip(items, chosen, strict=True) if kept]
        config.hook.pytest_deselected(items=left)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("all", "library", "comfyui"),
        default="all",
        help="only the tests that need no ComfyUI, or only those that do",
    )
    parser.addoption(
        "--once-on",
        metavar="COMFYUI",
        help="leave out the tests marked `once`, which another ComfyUI, named here, has run",
    )
    parser.addoption(
        "--editor-screenshot",
        action="store_true",
        help="the browser's tests also draw docs/editor.png anew",
    )
