"""A real ComfyUI server with the pack in custom_nodes: definitions, workflows, errors, parity with diffusers.

Started once for the whole session. Uses the weights that come with the repository.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nested_attention.demo.cases import make_rows
from nested_attention.demo.draw import adapt, art_pixels, draw_with_diffusers, load_workflow, node_of
from nested_attention.demo.server import PACK_NAME, ComfyServer
from nested_attention.errors import NestedAttentionError

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SERVER_NAMES = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))
AVATARS = [name for name in SERVER_NAMES if name.startswith("avatar_")]
JOINED = {"avatar_grid": 1, "avatar_img2img": 2, "avatar_inpaint": 2, "avatar_mixing": 1}
"""How many pictures a workflow saves that joins those of several samplers; others save their batch."""

COMFYUIS = ("images", "animated")
"""Keys of what ComfyUI's own previews hand the editor."""

WORLDS_OWN = 4
"""How many pictures Demo World's latent is for."""

WRITTEN_WITH = "0.3.64"
"""The version of ComfyUI whose node definitions the shipped files were written by."""

SYNC = "run python scripts/workflows sync"


def test_the_pack_loads_without_complaint(server: ComfyServer, definitions: dict[str, Any]) -> None:
    ours = [name for name in definitions if name.startswith("NestedAttention")]
    assert len(ours) >= 5
    assert all(definitions[name]["python_module"] == f"custom_nodes.{PACK_NAME}" for name in ours)
    log = server.log.read_text()
    assert f"custom_nodes/{PACK_NAME} (IMPORT FAILED)" not in log
    assert "nested_attention" in server.get("/models")


def test_the_workflows_are_templates(server: ComfyServer) -> None:
    assert set(server.get("/workflow_templates")[PACK_NAME]) >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_input_output_and_widget_exists(
    server: ComfyServer, definitions: dict[str, Any], name: str, script: Callable[[str], ModuleType]
) -> None:
    """The editor's file against the node definitions, and against the API file that sync would write."""
    formats = script("workflows/formats.py")
    editor = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    subgraphs = editor.get("definitions", {}).get("subgraphs", [])
    api = load_workflow(script("workflows/names.py").server_name(name))
    old = server.get("/system_stats")["system"]["comfyui_version"] == WRITTEN_WITH

    def same(node_class: str) -> bool:
        """Newer versions of ComfyUI gave nodes of theirs other titles and more outputs; ours are the same."""
        return old or node_class.startswith("NestedAttention")

    for node in (node for graph in (editor, *subgraphs) for node in graph["nodes"]):
        if node["type"] == "MarkdownNote" or node["type"] in {graph["id"] for graph in subgraphs}:
            continue
        definition = definitions[node["type"]]
        known = {entry.name: entry.kind for entry in formats.inputs_of(definition)}
        assert {entry["name"]: entry["type"] for entry in node["inputs"]} == known, SYNC
        saved = [(slot["type"], slot["name"]) for slot in node["outputs"]]
        outputs = list(zip(definition["output"], definition["output_name"], strict=True))
        assert saved == (outputs if same(node["type"]) else outputs[: len(saved)])
        values = formats.widget_values(definition, node["widgets_values"])
        assert set(values) == {e.name for e in formats.inputs_of(definition) if e.is_widget}, SYNC
    written = formats.to_api(editor, definitions)
    for number, node in written.items():
        if not same(node["class_type"]):
            node["_meta"]["title"] = api[number]["_meta"]["title"]
    assert api == written, SYNC
    for number, node in api.items():
        lacking = set(definitions[node["class_type"]]["input"].get("required", {})) - set(node["inputs"])
        assert not lacking, f"{node['class_type']} ({number}) lacks {lacking}"


@pytest.mark.parametrize("name", [name for name in SERVER_NAMES if name.startswith("sdxl_")])
def test_sdxl_workflows_lack_nothing_but_the_users_files(server: ComfyServer, name: str) -> None:
    graph = load_workflow(name)
    kinds = {"NestedAttentionLoadEncoder"}
    encoders = {n["inputs"]["encoder_name"] for n in graph.values() if n["class_type"] in kinds}
    with pytest.raises(NestedAttentionError) as refused:
        server.run(graph)
    message = str(refused.value)
    assert message.count("Value not in list") == 1 + bool(encoders)  # the checkpoint and the vision model
    assert "sd_xl_base_1.0.safetensors" in message
    if encoders:  # the one-node way looks for an encoder once it runs
        assert "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors" in message
        assert str(server.base / "models" / "nested_attention") in message
    for encoder in encoders:
        assert f"Load Subject Encoder: there is no subject encoder {encoder!r}" in message
    files = [("checkpoints", "sd_xl_base_1.0"), ("clip_vision", "CLIP-ViT-H-14-laion2B-s32B-b79K")]
    files += [("nested_attention", encoder.removesuffix(".safetensors")) for encoder in encoders]
    for kind, file in files:
        place = server.base / "models" / kind / f"{file}.safetensors"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"not a model")
    Image.new("RGB", (64, 64)).save(server.base / "input" / "example.png")
    try:
        with pytest.raises(NestedAttentionError, match="ComfyUI stopped at"):
            server.run(load_workflow(name))  # accepted: only the files are no models
    finally:
        for place in (server.base / "models").rglob("*.safetensors"):
            place.unlink()


@pytest.mark.parametrize("name", AVATARS)
def test_avatar_workflows_run_as_they_are(server: ComfyServer, name: str) -> None:
    """But for the number of steps: every node runs, and what comes out differs from picture to picture."""
    graph = load_workflow(name)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    files = server.run(graph)[node_of(graph, "SaveImage")]
    own = [node["inputs"] for node in graph.values() if node["class_type"] == "EmptyLatentImage"]
    assert len(files) == JOINED.get(name, own[0]["batch_size"] if own else WORLDS_OWN)
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    assert all(picture.std() > 5 for picture in pictures)  # no blank sheet
    if len(pictures) > 1:
        assert not np.array_equal(pictures[0], pictures[1])
    if name in ("avatar_person", "avatar_person_and_pet"):
        width = 48 if name == "avatar_person_and_pet" else 32  # two figures
        assert art_pixels(files[0]).shape == (32, width, 3)


def test_a_picture_from_comfyui_is_the_picture_from_diffusers(server: ComfyServer) -> None:
    """Same weights, prompt and noise: all the way from the reference to the saved picture, in both hosts."""
    (row,) = make_rows(1, seed=3)
    (expected,) = draw_with_diffusers([row])
    drawn = {}
    for name, workflow, case, strength in (
        ("base", "avatar_person", row.alone, 0.0),
        ("alone", "avatar_person", row.alone, 1.0),
        ("together", "avatar_person_and_pet", row.together, 1.0),
    ):
        graph = adapt(load_workflow(workflow), row, case, strength=strength)
        drawn[name] = art_pixels(server.run(graph)[node_of(graph, "SaveImage")][0]).astype(int)
        # Twenty steps of rounding apart: a pixel that stands between two colours may end as the other one. A
        # subject forgotten or misplaced differs by tens in hundreds of them.
        apart = np.abs(drawn[name] - getattr(expected, name).astype(int))
        assert (apart.max(axis=-1) > 12).sum() <= 2 and apart.mean() <= 1, name
    assert np.abs(drawn["alone"] - drawn["base"]).max() > 40


def test_queued_again_the_same_picture_comes_out(server: ComfyServer) -> None:
    """Two chained subjects, three times, sampled anew; and at strength 0, the graph without the nodes."""
    (row,) = make_rows(1, seed=4)
    graph = adapt(load_workflow("avatar_person_and_pet"), row, row.together)
    save = node_of(graph, "SaveImage")
    pictures = []
    for steps in (3, 2, 3, 2, 3):  # another number of steps in between, so that nothing comes from the cache
        graph[node_of(graph, "KSampler")]["inputs"]["steps"] = steps
        pictures.append(art_pixels(server.run(graph)[save][0]))
    assert np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[0], pictures[4])

    off = adapt(graph, row, row.together, strength=0.0)
    bare = json.loads(json.dumps(off))
    world = node_of(bare, "NestedAttentionDemoWorld")
    bare[node_of(bare, "KSampler")]["inputs"]["model"] = [world, 0]
    for node in bare.values():
        if node["class_type"] == "CLIPTextEncode":
            node["inputs"]["clip"] = [world, 1]
    one, other = (art_pixels(server.run(g)[save][0]) for g in (off, bare))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, pictures[0])


def test_one_of_two_subjects_bypassed(server: ComfyServer) -> None:
    """ComfyUI takes a bypassed node out and joins its wires: bit for bit that subject at strength 0."""
    (row,) = make_rows(1, seed=4)
    graph = adapt(load_workflow("avatar_person_and_pet"), row, row.together)
    graph[node_of(graph, "KSampler")]["inputs"]["steps"] = 3
    save = node_of(graph, "SaveImage")
    both = art_pixels(server.run(graph)[save][0])
    for number in [n for n, node in graph.items() if node["class_type"] == "NestedAttentionApplySubject"]:
        off, bypassed = json.loads(json.dumps(graph)), json.loads(json.dumps(graph))
        off[number]["inputs"]["strength"] = 0.0
        ends = bypassed.pop(number)["inputs"]
        for node in bypassed.values():
            for name, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == number:
                    node["inputs"][name] = ends[("model", "clip")[value[1]]]
        one, other = (art_pixels(server.run(g)[save][0]) for g in (off, bypassed))
        assert np.array_equal(one, other)
        assert not np.array_equal(one, both)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of a lamp in a room", ["Apply Subject", "'person'", "lamp"]),
        ("", ["Apply Subject", "'person'"]),
    ],
)
def test_a_prompt_without_the_word_stops_with_the_reason(
    server: ComfyServer, prompt: str, expected: list[str]
) -> None:
    (row,) = make_rows(1)
    graph = adapt(load_workflow("avatar_person"), row, dataclasses.replace(row.alone, prompt=prompt))
    with pytest.raises(NestedAttentionError) as stopped:
        server.run(graph)
    assert all(part in str(stopped.value) for part in expected), str(stopped.value)


def test_a_model_that_is_wired_to_no_sampler_stops_with_the_reason(server: ComfyServer) -> None:
    """A forgotten wire; a second pass on the same prompts may go without."""
    (row,) = make_rows(1)
    graph = adapt(load_workflow("avatar_person"), row, row.alone)
    sampler, world = node_of(graph, "KSampler"), node_of(graph, "NestedAttentionDemoWorld")
    graph[sampler]["inputs"] |= {"model": [world, 0], "steps": 1}
    for _ in range(2):  # cached or not
        with pytest.raises(NestedAttentionError, match="carries .*no sampler of this graph has"):
            server.run(graph)
    second = json.loads(json.dumps(graph[sampler]))
    applied = node_of(graph, "NestedAttentionApplySubject")
    graph["first pass"] = {**second, "inputs": {**second["inputs"], "model": [applied, 0]}}
    graph[sampler]["inputs"]["latent_image"] = ["first pass", 0]
    assert server.run(graph)


def test_the_wrong_encoder_for_a_checkpoint_or_subject_is_refused(server: ComfyServer) -> None:
    """A pet subject applied with the person encoder: a message that names the node, not a picture."""
    (row,) = make_rows(1)
    graph = adapt(load_workflow("avatar_person_and_pet"), row, row.together)
    person = next(
        n
        for n, node in graph.items()
        if node["inputs"].get("encoder_name") == "avatars/person_encoder.safetensors"
    )
    for node in graph.values():
        if node["class_type"] == "NestedAttentionApplySubject":
            node["inputs"]["encoder"] = [person, 0]
    with pytest.raises(NestedAttentionError, match="NestedAttentionApplySubject.*made with another encoder"):
        server.run(graph)


def test_a_saved_subject_draws_the_same_picture(server: ComfyServer) -> None:
    """Kept by one graph, loaded by the next, without the reference picture."""
    (row,) = make_rows(1, seed=5)
    graph = adapt(load_workflow("avatar_person"), row, row.alone)
    save, encode = node_of(graph, "SaveImage"), node_of(graph, "NestedAttentionEncodeSubject")
    keep = {"subject": [encode, 0], "filename_prefix": "subjects/once_only"}
    files = server.run({**graph, "kept": {"class_type": "NestedAttentionSaveSubject", "inputs": keep}})
    assert (server.base / "output" / "subjects" / "once_only_00001_.safetensors").is_file()
    assert files["kept"][0].parent == server.base / "temp"  # the icon, shown and not kept
    name = "subjects/once_only_00001_.safetensors [output]"
    listed = server.get("/object_info/NestedAttentionLoadSubject")["NestedAttentionLoadSubject"]
    kind, options = listed["input"]["required"]["subject_name"]
    assert name in (options["options"] if kind == "COMBO" else kind)
    load = {"class_type": "NestedAttentionLoadSubject", "inputs": {"subject_name": name}}
    again = server.run({**graph, encode: load})
    assert np.array_equal(art_pixels(again[save][0]), art_pixels(files[save][0]))
    load["inputs"]["subject_name"] = "../../escaped.safetensors [output]"
    keep["subject"] = ["load", 0]
    with pytest.raises(NestedAttentionError, match="Load Subject: .*no name of a file"):
        server.run({"load": load, "kept": {"class_type": "NestedAttentionSaveSubject", "inputs": keep}})


def test_what_a_node_says_of_its_model_follows_the_wires(server: ComfyServer) -> None:
    """Where MODEL leads is behind the node, and no part of what ComfyUI caches its outputs by."""
    graph = load_workflow("avatar_person")
    world, apply, sampler = (
        node_of(graph, kind)
        for kind in ("NestedAttentionDemoWorld", "NestedAttentionApplySubject", "KSampler")
    )
    graph[sampler]["inputs"]["steps"] = 1
    graph[apply]["inputs"]["when_missing"] = "warn"
    for model, reached in ((world, "no sampler"), (apply, "a sampler"), (world, "no sampler")):
        graph[sampler]["inputs"]["model"] = [model, 0]
        server.run(graph)
        (run,) = server.get("/history?max_items=1").values()
        last = run["outputs"][apply]["nested_attention_state"][0][-1]
        assert last.startswith(f"MODEL reaches {reached}")


def test_only_pictures_count_as_what_a_run_has_put_out(server: ComfyServer) -> None:
    """In ComfyUI's list of runs: not what nodes say of themselves, nor the document of the maps."""
    graph = load_workflow("avatar_inspect")
    graph[node_of(graph, "KSampler")]["inputs"]["steps"] = 1
    more = {
        "LoadSubject": {"subject_name": "avatars/somebody.safetensors"},
        "SaveSubject": {"subject": ["LoadSubject", 0], "filename_prefix": "somebody"},
    }
    graph |= {n: {"class_type": f"NestedAttention{n}", "inputs": inputs} for n, inputs in more.items()}
    pictures = sum(map(len, server.run(graph).values()))
    ((run, entry),) = server.get("/history?max_items=1").items()
    ours = [
        (key, one) for out in entry["outputs"].values() for key, one in out.items() if key not in COMFYUIS
    ]
    assert {key.removeprefix("nested_attention_") for key, _ in ours} == {
        "state", "subject", "origin", "maps"
    }  # fmt: skip
    assert [(key, one) for key, one in ours if [*map(type, one)] != [list]] == []
    if find_spec("comfy_execution.jobs"):  # not in the oldest ComfyUI
        job = server.get(f"/api/jobs/{run}")
        assert job["outputs_count"] == job["previewable_outputs_count"] == pictures
        assert job["preview_output"]["mediaType"] == "images"
