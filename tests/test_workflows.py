"""The workflows as files: each complete in itself, the same graph in the editor's format and in API format.

What needs ComfyUI's node definitions (every input, output and widget exists; the avatar ones run) is in
comfyui/test_server.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def editor(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def api(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_promised_workflows_exist_in_both_formats() -> None:
    assert {"avatar_person", "avatar_person_and_pet", "sdxl_person"} <= set(NAMES)
    assert sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json")) == NAMES


def test_links_join_slots_of_their_type_and_both_ends_know_them(editor: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in editor["nodes"]}
    assert len(nodes) == len(editor["nodes"])
    assert editor["last_node_id"] >= max(nodes)
    assert editor["last_link_id"] >= max(link[0] for link in editor["links"])
    assert len({link[0] for link in editor["links"]}) == len(editor["links"])
    for number, source, output, target, entry, kind in editor["links"]:
        slot = nodes[source]["outputs"][output]
        assert slot["type"] == kind
        assert number in slot["links"]
        assert nodes[target]["inputs"][entry]["link"] == number
        assert nodes[target]["inputs"][entry]["type"] == kind
    known = {link[0] for link in editor["links"]}
    for node in editor["nodes"]:
        assert {entry["link"] for entry in node["inputs"]} - {None} <= known
        assert {number for slot in node["outputs"] for number in slot["links"] or ()} <= known


def test_order_is_an_order_of_execution(editor: dict[str, Any]) -> None:
    order = {node["id"]: node["order"] for node in editor["nodes"]}
    assert sorted(order.values()) == list(range(len(order)))
    assert all(order[source] < order[target] for _, source, _, target, *_ in editor["links"])


def test_nodes_name_their_pack_so_that_missing_ones_can_be_installed(editor: dict[str, Any]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pack = re.search(r'^name = "(.+)"$', project, re.M).group(1)  # type: ignore[union-attr]
    version = re.search(r'^version = "(.+)"$', project, re.M).group(1)  # type: ignore[union-attr]
    for node in editor["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        if node["type"].startswith("NestedAttention"):
            assert (properties["cnr_id"], properties["ver"]) == (pack, version)
        else:
            assert properties["cnr_id"] == "comfy-core"


def test_every_node_lies_in_a_group_or_beside_them_and_none_overlap(editor: dict[str, Any]) -> None:
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0] for node in editor["nodes"])
    assert editor["groups"]
    title = 30  # drawn above a node's position
    boxes = {
        n["id"]: (n["pos"][0], n["pos"][1] - title, n["size"][0], n["size"][1] + title)
        for n in editor["nodes"]
    }
    for one, (x, y, w, h) in boxes.items():
        for other, (x2, y2, w2, h2) in boxes.items():
            apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
            assert one == other or apart, f"nodes {one} and {other} overlap"
    for node in editor["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        (x, y), (w, h) = node["pos"], node["size"]
        assert any(
            gx <= x and gy <= y and x + w <= gx + gw and y + h <= gy + gh
            for gx, gy, gw, gh in (group["bounding"] for group in editor["groups"])
        ), f"{node['type']} ({node['id']}) lies in no group"


def test_editor_and_api_format_have_the_same_nodes_and_links(
    editor: dict[str, Any], api: dict[str, Any]
) -> None:
    drawn = {str(node["id"]): node for node in editor["nodes"] if node["type"] != "MarkdownNote"}
    assert {number: node["type"] for number, node in drawn.items()} == {
        number: node["class_type"] for number, node in api.items()
    }
    links = {link[0]: [str(link[1]), link[2]] for link in editor["links"]}
    for number, node in drawn.items():
        joined = {
            entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry["link"] is not None
        }
        inputs = api[number]["inputs"]
        assert joined == {key: value for key, value in inputs.items() if isinstance(value, list)}
        widgets = {entry["name"] for entry in node["inputs"] if "widget" in entry}
        assert widgets == {key for key, value in inputs.items() if not isinstance(value, list)}
