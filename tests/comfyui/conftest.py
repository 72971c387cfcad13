"""Tests that run inside ComfyUI's own code, on the CPU and in this process; left out where there is no
ComfyUI.

The folder is not called comfy: ComfyUI's package of that name has no __init__.py, and Python would merge the
two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dynamic import dynamic_memory, start_dynamic_memory
from editor import Editor, find_chromium, open_editor
from front_ends import FRONT_ENDS, NEWER, NEWER_FILES, NEWER_PLACE, ROOT, SIZE, FrontEnd
from PIL import Image

from nested_attention.demo.server import ComfyServer
from nested_attention.find_comfyui import find_comfyui

COMFYUI, REASON = find_comfyui()
CHROMIUM, NO_BROWSER = find_chromium()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    once_on = config.getoption("--once-on")
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.comfy)
        item.user_properties += [("composes", mark.args[0]) for mark in item.iter_markers("composes")]
        if COMFYUI is None:
            reason = f"ComfyUI was not found: {REASON}. Set COMFYUI_PATH to run these tests"
        elif once_on and item.get_closest_marker("once"):
            reason = f"shown once, on {once_on}; make test ARGS=--full repeats it"
        elif CHROMIUM is None and item.get_closest_marker("browser"):
            reason = (
                f"no browser was found: {NO_BROWSER}. Install Chromium (apt-get install chromium), or set "
                "CHROMIUM_PATH, to run these tests"
            )
        else:
            continue
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """ComfyUI importable, on the CPU."""
    if COMFYUI is None:
        pytest.skip(f"ComfyUI was not found: {REASON}")
    if str(COMFYUI) not in sys.path:
        sys.path.insert(0, str(COMFYUI))
    start_dynamic_memory()
    from comfy.cli_args import args

    args.cpu = True
    return COMFYUI


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A real ComfyUI with the pack in custom_nodes, started once for the whole session."""
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="module", params=FRONT_ENDS, ids=str)
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    return request.param


@pytest.fixture(scope="module")
def newer_server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A ComfyUI with the front end of front-end.txt."""
    arguments = ("--front-end-root", str(NEWER_FILES))
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui"), arguments=arguments) as running:
        yield running


@pytest.fixture(scope="module")
def editor(front_end: FrontEnd, request: pytest.FixtureRequest) -> Iterator[Editor]:
    program, where = find_chromium()
    assert program, where
    if not front_end.own and not (NEWER_FILES / "index.html").is_file():
        pytest.skip(
            f"the front end {front_end.version} is not in {NEWER_PLACE}; `{sys.executable} -m pip install "
            f"--no-deps --target {NEWER_PLACE} -r {NEWER.relative_to(ROOT)}` puts it there"
        )
    running: ComfyServer = request.getfixturevalue("server" if front_end.own else "newer_server")
    for folder in ("input", "output"):  # as ComfyUI brings one, and as it has made one
        Image.new("RGB", (512, 512)).save(running.base / folder / "example.png")
    with open_editor(running, program, SIZE, nodes_2=front_end.nodes_2) as opened:
        yield opened


@pytest.fixture(scope="session")
def definitions(server: ComfyServer) -> dict[str, Any]:
    """Every node's inputs, outputs and names, as the editor gets them."""
    return dict(server.get("/object_info"))


@pytest.fixture(scope="session")
def world(comfyui: Path):  # noqa: ANN201  its types need ComfyUI
    """A tiny SDXL with random weights, two subject encoders for it, and what it takes to sample with them."""
    import tiny

    return tiny.World()


@pytest.fixture(params=[False, True], ids=["plain memory", "dynamic memory"])
def either_memory(comfyui: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """For tests of loading: as ComfyUI loads with NVIDIA cards, and as it does without."""
    with dynamic_memory(request.param):
        yield


@pytest.fixture(autouse=True)
def inference_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """As ComfyUI runs its nodes."""
    import torch

    with torch.inference_mode():
        yield
