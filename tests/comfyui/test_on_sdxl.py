"""Every workflow of the small world, switched as its note says, is one that ComfyUI accepts for SDXL.

Of the files that SDXL needs only the names are there, so a graph that is accepted stops at the checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from nested_attention.demo.draw import load_workflow
from nested_attention.demo.server import ComfyServer
from nested_attention.errors import NestedAttentionError

ROOT = Path(__file__).resolve().parent.parent.parent
AVATARS = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("avatar_*.json"))
FILES = {"checkpoints": "some_sdxl", "clip_vision": "some_vision", "nested_attention": "some_encoder"}
PERSON, PET = 4, 5  # outputs of Demo World; 0 to 2 are those of Load Checkpoint
VISION = 3

Graph = dict[str, Any]


@pytest.fixture(scope="module")
def with_names(server: ComfyServer) -> Iterator[ComfyServer]:
    places = [server.base / "models" / kind / f"{name}.safetensors" for kind, name in FILES.items()]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"not a model")
    Image.new("RGB", (64, 64)).save(server.base / "input" / "photograph.png")
    yield server
    for place in places:
        place.unlink()


def on_sdxl(graph: Graph) -> Graph:
    """A checkpoint in the switch of Demo World, another encoder with its vision model, Load Image in place of
    each reference. Nothing else is touched."""
    graph = copy.deepcopy(graph)
    worlds = [number for number, node in graph.items() if node["class_type"] == "NestedAttentionDemoWorld"]
    for world in worlds:
        graph[world]["inputs"]["base"] = f"{FILES['checkpoints']}.safetensors"
        graph[f"{world} vision"] = loader("CLIPVisionLoader", clip_name="clip_vision")
        for picture in (PERSON, PET):
            inputs = {"image": "photograph.png"}
            graph[f"{world} {picture}"] = {"class_type": "LoadImage", "inputs": inputs}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in worlds and value[1] in (VISION, PERSON, PET):
                world, output = value
                node["inputs"][name] = [f"{world} {'vision' if output == VISION else output}", 0]
        if node["class_type"] == "NestedAttentionLoadEncoder":
            node["inputs"]["encoder_name"] = f"{FILES['nested_attention']}.safetensors"
    return graph


def loader(kind: str, **file: str) -> Graph:
    ((name, folder),) = file.items()
    return {"class_type": kind, "inputs": {name: f"{FILES[folder]}.safetensors"}}


@pytest.mark.parametrize("name", AVATARS)
def test_changing_the_loaders_is_all_that_sdxl_takes(with_names: ComfyServer, name: str) -> None:
    graph = on_sdxl(load_workflow(name))
    with pytest.raises(NestedAttentionError, match="ComfyUI stopped at") as stopped:
        with_names.run(graph)
    assert any(f"stopped at {kind} " in str(stopped.value) for kind in LOADERS), stopped.value


LOADERS = ("NestedAttentionDemoWorld", "CLIPVisionLoader", "NestedAttentionLoadEncoder")


def test_a_graph_that_does_not_fit_is_refused(with_names: ComfyServer) -> None:
    """The check itself: a wire of another type is not accepted, though ComfyUI would show the reference."""
    graph = on_sdxl(load_workflow("avatar_person"))
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["latent_image"] = sampler["inputs"]["model"]
    with pytest.raises(NestedAttentionError, match="refuses a part of the workflow: KSampler"):
        with_names.run(graph)


@pytest.mark.parametrize("name", AVATARS)
def test_the_note_says_what_to_change(name: str, script: Callable[[str], ModuleType]) -> None:
    path = ROOT / "workflows" / f"{script('workflows/names.py').template(name)}.json"
    editor = json.loads(path.read_text(encoding="utf-8"))
    (note,) = (node for node in editor["nodes"] if node["type"] == "MarkdownNote")
    text = note["widgets_values"][0]
    graph = load_workflow(name)
    worlds = [number for number, node in graph.items() if node["class_type"] == "NestedAttentionDemoWorld"]
    links = [v for node in graph.values() for v in node["inputs"].values() if isinstance(v, list)]
    used = {output for number, output in links if number in worlds}
    wanted = ["**On SDXL**", "choose your checkpoint in `base` of Demo World"]
    wanted += ["Load Image"] if used & {PERSON, PET} else []
    for what in wanted:
        assert what in text, f"the note of {name} does not mention {what}"
