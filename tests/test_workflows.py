"""The workflows as files: each complete in itself, the same graph in the editor's format and in API format.

What needs ComfyUI's node definitions (every input, output and widget exists; the avatar ones run) is in
comfyui/test_server.py.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nested_attention.avatars.drawing.identity import KINDS
from nested_attention.avatars.drawing.picture import STYLES
from nested_attention.avatars.drawing.pose import EXPRESSIONS
from nested_attention.avatars.drawing.scenes import SCENES
from nested_attention.avatars.drawing.wardrobe import ACCESSORIES, CLOTHES

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
MOST_NODES = 20


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def editor(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def names(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("workflows/names.py")


@pytest.fixture
def api(name: str, names: ModuleType) -> dict[str, Any]:
    path = ROOT / "workflows" / "api" / f"{names.server_name(name)}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_promised_workflows_exist_in_both_formats(names: ModuleType) -> None:
    """The files for the server keep the names that links point to; those of the editor sort as one learns."""
    assert {
        "avatar_start",
        "avatar_start_two",
        "avatar_person",
        "avatar_person_and_pet",
        "avatar_several_pictures",
        "avatar_variation",
        "avatar_img2img",
        "avatar_inpaint",
        "avatar_subgraph",
        "avatar_mixing",
        "avatar_saved_subject",
        "avatar_load_subject",
        "avatar_pose",
        "avatar_style_lora",
        "avatar_inspect",
        "avatar_two_people",
        "avatar_pet_isolated",
        "avatar_anchored",
        "sdxl_start",
        "sdxl_person",
        "sdxl_align_face",
        "sdxl_small_face",
        "sdxl_hires_fix",
        "sdxl_anchored_person",
        "sdxl_anchored_pet",
        "sdxl_anchored_person_and_pet",
    } <= set(map(names.server_name, NAMES))
    api = {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}
    assert api == set(map(names.server_name, NAMES))
    assert set(names.TEMPLATES.values()) <= set(NAMES), "a name without a workflow"
    assert NAMES[0] == "01 Person – start here"
    for name in map(names.server_name, NAMES):
        assert names.server_name(names.template(name)) == name


def test_a_workflow_can_be_taken_in_at_a_glance(editor: dict[str, Any]) -> None:
    drawn = [node for node in all_nodes(editor) if node["type"] != "MarkdownNote"]
    assert len(drawn) <= MOST_NODES


def test_every_workflow_has_a_thumbnail(
    name: str, names: ModuleType, script: Callable[[str], ModuleType]
) -> None:
    assert names.server_name(name) in script("thumbnails.py").workflows()
    path = ROOT / "workflows" / f"{name}.jpg"
    assert path.is_file(), f"ComfyUI's list of templates shows none: run python scripts/thumbnails.py {name}"
    with Image.open(path) as picture:
        assert picture.size[0] == 512 and 256 <= picture.size[1] <= 512


def test_a_thumbnail_without_a_model_is_the_graph_as_it_is_now(script: Callable[[str], ModuleType]) -> None:
    thumbnails = script("thumbnails.py")
    names = script("workflows/names.py")
    for name in (name for name in NAMES if names.server_name(name).startswith("sdxl_")):
        graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        expected = np.asarray(thumbnails.graph(graph), dtype=float)
        with Image.open(ROOT / "workflows" / f"{name}.jpg") as picture:
            shown = np.asarray(picture.convert("RGB"), dtype=float)
        assert np.abs(shown - expected).mean() < 1, f"stale: run python scripts/thumbnails.py {name}"
        graph["nodes"].pop()
        assert np.abs(np.asarray(thumbnails.graph({**graph, "links": []})) - expected).mean() > 1


def test_what_help_pages_show_of_a_workflow_is_still_in_it(script: Callable[[str], ModuleType]) -> None:
    before = list(sys.path)
    pictures = script("node_pictures.py")
    assert sys.path == before
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob("*.md"))
    for picture, shown in pictures.EDITOR.items():
        assert f"]({picture}.png)" in pages, f"no help page shows {picture}.png"
        if shown.workflow in pictures.DRAFTS:
            continue
        name = script("workflows/names.py").template(shown.workflow)
        graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        assert set(shown.titles) <= {group["title"] for group in graph["groups"]}, picture


@pytest.mark.parametrize(
    ("count", "size"), [(1, (512, 512)), (2, (512, 256)), (4, (512, 512)), (6, (512, 512))]
)
def test_pictures_on_a_thumbnail(
    script: Callable[[str], ModuleType], tmp_path: Path, count: int, size: tuple[int, int]
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (40 * number + 10, 0, 0)).save(path)
    sheet = script("thumbnails.py").sheet(paths)
    assert sheet.size == size
    corners = {sheet.getpixel((x, y))[0] for x in (0, size[0] - 1) for y in (0, size[1] - 1)}
    assert corners == {40 * number + 10 for number in range(min(count, 4))}


@pytest.mark.parametrize(("count", "height", "shown"), [(1, 341, 341), (2, 256, 171), (4, 342, 342)])
def test_wide_pictures_on_a_thumbnail_keep_their_shape(
    script: Callable[[str], ModuleType], tmp_path: Path, count: int, height: int, shown: int
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.new("RGB", (192, 128), (10, 0, 0)).save(path)
    sheet = np.asarray(script("thumbnails.py").sheet(paths))
    assert sheet.shape == (height, 512, 3)
    assert (sheet[:, :, 0] == 10).all(1).sum() == shown


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
    for node in all_nodes(editor):
        if node["type"] == "MarkdownNote" or node["type"] in subgraphs(editor):
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


def test_the_titles_of_groups_fit_their_frames(editor: dict[str, Any]) -> None:
    for group in editor["groups"]:
        needed = (
            0.56 * group["font_size"] * len(group["title"])
        )  # the editor's font is about half as wide as high
        assert needed <= group["bounding"][2] - 10, f"{group['title']!r} reaches over its group's frame"


def test_editor_and_api_format_have_the_same_nodes_and_links(
    editor: dict[str, Any], api: dict[str, Any], script: Callable[[str], ModuleType]
) -> None:
    """The values of widgets, whose order only ComfyUI knows, are compared in comfyui/test_server.py."""
    formats = script("workflows/formats.py")
    bare = formats.to_api(editor, {node["type"]: NO_WIDGETS for node in all_nodes(editor)})
    assert {number: node["class_type"] for number, node in bare.items()} == {
        number: node["class_type"] for number, node in api.items()
    }
    for number, node in bare.items():
        linked = {key: value for key, value in api[number]["inputs"].items() if isinstance(value, list)}
        assert node["inputs"] == linked
    drawn = {node["id"]: node for node in all_nodes(editor)}
    exposed = {link["id"] for graph in subgraphs(editor).values() for link in graph["links"]} | {None}
    for number, node in api.items():
        entries = drawn[int(number.split(":")[-1])]["inputs"]
        widgets = {entry["name"] for entry in entries if "widget" in entry and entry["link"] in exposed}
        assert widgets == {key for key, value in node["inputs"].items() if not isinstance(value, list)}


NO_WIDGETS = {"input_order": {}, "display_name": ""}


def subgraphs(editor: dict[str, Any]) -> dict[str, Any]:
    return {graph["id"]: graph for graph in editor.get("definitions", {}).get("subgraphs", [])}


def all_nodes(editor: dict[str, Any]) -> list[dict[str, Any]]:
    """The workflow's nodes and those inside its subgraphs."""
    return [
        *editor["nodes"],
        *(node for graph in subgraphs(editor).values() for node in graph["nodes"]),
    ]


def test_what_stands_inside_a_subgraph_is_joined_to_its_ends() -> None:
    editor = json.loads((ROOT / "workflows" / "15 As a subgraph.json").read_text(encoding="utf-8"))
    (inside,) = subgraphs(editor).values()
    (outside,) = (node for node in editor["nodes"] if node["type"] == inside["id"])
    assert [entry["name"] for entry in outside["inputs"]] == [entry["name"] for entry in inside["inputs"]]
    assert [slot["name"] for slot in outside["outputs"]] == [slot["name"] for slot in inside["outputs"]]
    links = {link["id"]: link for link in inside["links"]}
    for end, kind, key in (("inputs", -10, "origin"), ("outputs", -20, "target")):
        for index, slot in enumerate(inside[end]):
            joined = {
                n for n, link in links.items() if (link[f"{key}_id"], link[f"{key}_slot"]) == (kind, index)
            }
            assert joined == set(slot["linkIds"]) != set()
    exposed = [entry["name"] for entry in outside["inputs"] if "widget" in entry]
    assert exposed == ["encoder_name", "attention_scale"]
    nodes = {node["id"]: node for node in inside["nodes"]}
    for number, link in links.items():
        if link["origin_id"] != -10:
            assert number in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] != -20:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == number


def test_inputs_that_a_node_gains_are_added_with_their_defaults(script: Callable[[str], ModuleType]) -> None:
    """What `python scripts/workflows sync` does after a node has grown; a lost input is refused."""
    update = script("workflows/formats.py").update
    node = {
        "type": "NestedAttentionX",
        "pos": [0, 40],
        "size": [200, 20],
        "inputs": [{"name": "a", "type": "INT", "widget": {"name": "a"}, "link": None}],
        "outputs": [],
        "properties": {"ver": "0.0.1"},
        "widgets_values": [3],
    }
    grown = {
        "input": {
            "required": {"a": ["INT", {"default": 0}]},
            "optional": {"b": ["FLOAT", {"default": 0.5}], "c": ["MASK", {}], "d": [["x", "y"]]},
        },
        "input_order": {"required": ["a"], "optional": ["b", "c", "d"]},
        "output": ["IMAGE"],
        "output_name": ["IMAGE"],
    }
    before = json.dumps(node)
    (after,) = update({"nodes": [node]}, {"NestedAttentionX": grown}, "0.2.0")["nodes"]
    assert json.dumps(node) == before
    assert [entry["name"] for entry in after["inputs"]] == ["a", "b", "c", "d"]
    assert after["widgets_values"] == [3, 0.5, "x"]
    assert [slot["name"] for slot in after["outputs"]] == ["IMAGE"]
    assert after["properties"]["ver"] == "0.2.0"
    assert after["size"][1] > 20
    with pytest.raises(ValueError, match="no input a any more"):
        update({"nodes": [node]}, {"NestedAttentionX": {**grown, "input_order": {}}}, "0.2.0")


def test_a_node_that_grows_moves_what_lies_below_and_its_group_grows(
    script: Callable[[str], ModuleType],
) -> None:
    def box(x: float, y: float) -> dict[str, Any]:
        return {"pos": [x, y], "size": [100, 60]}

    node, under, beside, far, elsewhere = (
        box(x, y) for x, y in ((20, 80), (20, 210), (150, 80), (20, 2000), (900, 300))
    )
    groups = [{"bounding": list(b)} for b in ((0, 0, 260, 290), (0, 310, 260, 100), (800, 0, 300, 200))]
    graph = {"nodes": [node, under, beside, far, elsewhere], "groups": groups}
    grow = script("workflows/room.py").grow
    grow(graph, node, 60)
    assert under["pos"][1] == 210
    grow(graph, node, 100)  # 30 px of title and 20 of distance are needed, and 40 are there
    assert node["size"] == [100, 100] and under["pos"][1] == 80 + 100 + 20 + 30
    assert [group["bounding"] for group in groups] == [
        [0, 0, 260, 310],
        [0, 330, 260, 100],
        [800, 0, 300, 220],
    ]
    assert beside["pos"] == [150, 80] and far["pos"][1] == 2020 and elsewhere["pos"] == [900, 320]

    grow(graph, node, 100, 150)  # 130 px with its title, and room for 20 more
    assert node["size"] == [100, 100] and under["pos"][1] == 80 + 120 + 20 + 30
    moved = copy.deepcopy(graph)
    grow(graph, node, 100, 150)
    assert graph == moved


AVATARS = sorted((ROOT / "workflows" / "api").glob("avatar_*.json"))
LEFT, MIDDLE, RIGHT = " on the left", " in the middle", " on the right"


def text_of(api: dict[str, Any], link: list[Any]) -> str:
    """The prompt of a conditioning, through what changes it."""
    inputs = api[link[0]]["inputs"]
    return str(inputs["text"]) if "text" in inputs else text_of(api, inputs["positive"])


def width_of(api: dict[str, Any], link: list[Any]) -> int:
    """Pixels across the picture of a latent, through samplers and masks."""
    inputs = api[link[0]]["inputs"]
    if "figures" in inputs:
        return 192 if inputs["figures"] == 2 else 128
    return (
        int(inputs["width"])
        if "width" in inputs
        else width_of(api, inputs.get("samples", inputs.get("latent_image")))
    )


def pictures_of(api: dict[str, Any]) -> list[tuple[str, int]]:
    """Prompt and width of every picture that a workflow of the small world draws."""
    found = []
    for node in api.values():
        inputs = node["inputs"]
        if node["class_type"] == "KSampler":
            found.append((text_of(api, inputs["positive"]), width_of(api, inputs["latent_image"])))
        if node["class_type"] == "NestedAttentionSheet":
            found += [(text, inputs["width"]) for text in inputs["prompts"].split("\n")]
    return found


@pytest.mark.parametrize("path", AVATARS, ids=lambda path: path.stem)
def test_pictures_of_two_figures_are_wide(path: Path) -> None:
    """The small world draws one figure in 128 × 128 pixels and two in 192 × 128. Masks are as large, or cover
    the half of one of two."""
    api = json.loads(path.read_text(encoding="utf-8"))
    pictures = pictures_of(api)
    assert pictures
    for text, width in pictures:
        assert width == (192 if LEFT in text and RIGHT in text else 128), text
    widths = {width for _, width in pictures}
    assert len(widths) == 1
    masks = [node["inputs"]["width"] for node in api.values() if node["class_type"] == "SolidMask"]
    assert set(masks) <= {192, 96} and (not masks or widths == {192})
    worlds = [node for node in api.values() if node["class_type"] == "NestedAttentionDemoWorld"]
    assert max(world["inputs"]["figures"] for world in worlds) == (2 if widths == {192} else 1)


def test_some_workflows_draw_two_figures() -> None:
    """And more of them one: the test of their widths meets both."""
    widths = [pictures_of(json.loads(path.read_text(encoding="utf-8")))[0][1] for path in AVATARS]
    assert widths.count(192) == 7 and widths.count(128) == len(AVATARS) - 7


@pytest.mark.parametrize("path", AVATARS, ids=lambda path: path.stem)
def test_prompts_of_the_small_world_are_in_words_it_knows(path: Path) -> None:
    known = [LEFT, MIDDLE, RIGHT, *(f" {phrase}" for phrase, _ in SCENES.values())]
    known += [f" wearing {phrase}" for phrase, _ in CLOTHES.values() if phrase]
    known += [f" with {phrase}" for phrase in ACCESSORIES.values() if phrase]
    known += [f" {word}" for word in EXPRESSIONS]
    nouns = "|".join(noun for kind in KINDS.values() for noun in kind.NOUNS)
    subject = rf"a (?:{nouns}|<\w+>|<\w+:(?:{nouns})>)"
    for text, _ in pictures_of(json.loads(path.read_text(encoding="utf-8"))):
        rest = text
        for phrase in known:
            rest = rest.replace(phrase, "")
        assert re.fullmatch(rf"a (?:{'|'.join(STYLES)}) of {subject}(?: and {subject})?", rest), (text, rest)
