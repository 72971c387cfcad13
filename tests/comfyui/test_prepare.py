"""Align Face and Isolate Subject as ComfyUI runs them: previews, batches, messages, and into Encode
Subject."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from skimage import data
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = "custom_nodes_nested_attention_prepare"


@pytest.fixture(scope="module")
def nodes(comfyui: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)

    async def listed() -> list[Any]:
        return await (await module.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id.removeprefix("NestedAttention"): node for node in asyncio.run(listed())}


@pytest.fixture(autouse=True)
def temporary(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where previews go."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def defaults(node: Any) -> dict[str, Any]:
    return {
        one.id: one.default for one in node.GET_SCHEMA().inputs if getattr(one, "default", None) is not None
    }


def run(node: Any, **given: Any) -> Any:
    """As ComfyUI runs it: on a clone that has its hidden inputs."""
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).EXECUTE_NORMALIZED(**{**defaults(node), **given})


def astronaut() -> Tensor:
    return torch.from_numpy(data.astronaut()).float()[None] / 255


def cat() -> Tensor:
    return torch.from_numpy(data.chelsea()).float()[None] / 255


def test_align_face_gives_a_crop_a_drawing_a_count_and_a_preview(
    nodes: dict[str, Any], temporary: Path
) -> None:
    result = run(nodes["AlignFace"], image=astronaut(), size=256)
    face, found, count, x, y, side = result.args
    assert face.shape == (1, 256, 256, 3)
    assert found.shape == (1, 512, 512, 3)
    assert count == 1
    assert x >= 0 and x + side <= 512 and y >= 0 and y + side <= 512
    again = run(nodes["AlignFace"], image=astronaut()[:, y : y + side, x : x + side], size=256).args[0]
    assert float((again - face).abs().mean()) < 0.05  # the whole face, to be drawn again and laid back
    assert float(face.min()) >= 0 and float(face.max()) <= 1
    assert not torch.equal(found, astronaut())
    shown = result.ui.as_dict()["images"]
    from PIL import Image

    with Image.open(temporary / shown[0]["filename"]) as preview:
        assert (len(shown), preview.size) == (1, (256, 256))


def test_all_faces_and_any_channels(nodes: dict[str, Any]) -> None:
    two = torch.cat([astronaut(), astronaut().flip(2)], dim=2)
    face, _, count, *_ = run(nodes["AlignFace"], image=two, which="all", size=64).args
    assert (face.shape[0], count) == (2, 2)
    plain = run(nodes["AlignFace"], image=astronaut(), size=64).args[0]
    opaque = torch.cat([astronaut(), torch.ones(1, 512, 512, 1)], dim=-1)
    assert torch.equal(run(nodes["AlignFace"], image=opaque, size=64).args[0], plain)
    grey = run(nodes["AlignFace"], image=astronaut().mean(-1, keepdim=True), size=64).args[0]
    assert grey.shape == plain.shape


def test_messages_name_the_node_and_the_picture(nodes: dict[str, Any]) -> None:
    align, isolate = nodes["AlignFace"], nodes["IsolateSubject"]
    with pytest.raises(ValueError, match="^Align Face: picture 1 of 1 .*no face was found.*Isolate Subject"):
        run(align, image=cat())
    with pytest.raises(ValueError, match="^Align Face: picture 1 of 1: face 5 was asked for, and 1 found"):
        run(align, image=astronaut(), which="by index", index=5)
    with pytest.raises(ValueError, match="^Align Face: the picture is 1 × 1 pixels"):
        run(align, image=torch.zeros(1, 1, 1, 3))
    with pytest.raises(ValueError, match="^Align Face: picture 1 of 1 has NaN"):
        run(align, image=astronaut() * float("nan"))
    with pytest.raises(ValueError, match="^Isolate Subject: picture 1 of 1: the mask is empty"):
        run(isolate, image=cat(), mask=torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="^Isolate Subject: the mask has shape"):
        run(isolate, image=cat(), mask=torch.zeros(1, 2, 64, 64))
    with pytest.raises(ValueError, match="^Isolate Subject: the picture is 1 × 1"):
        run(isolate, image=torch.zeros(1, 1, 1, 3), mask=torch.ones(1, 1, 1))


def test_insightface_is_never_installed_and_its_licence_is_named(
    nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(ValueError, match="^Align Face: the detector insightface is chosen.*non-commercial"):
        run(nodes["AlignFace"], image=astronaut(), detector="insightface")
    options = {one.id: one for one in nodes["AlignFace"].GET_SCHEMA().inputs}
    assert "non-commercial" in options["detector"].tooltip
    built_in = run(nodes["AlignFace"], image=astronaut(), size=64, detector="built-in").args[0]
    assert torch.equal(built_in, run(nodes["AlignFace"], image=astronaut(), size=64).args[0])


def test_min_score_reaches_the_detector(nodes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no face was found"):
        run(nodes["AlignFace"], image=astronaut(), min_score=0.99)


@pytest.mark.parametrize(
    ("min_score", "advice"),
    [
        (0.0, r"Set min_score to 0.5, say \(a face needs 0.7 now\), crop the picture"),
        (0.4, r"Set min_score to 0.3, say \(a face needs 0.4 now\), crop"),
        (0.3, r"upside down\. Crop the picture closer"),
    ],
)
def test_a_lower_score_is_named_where_there_is_one(
    nodes: dict[str, Any], min_score: float, advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        run(nodes["AlignFace"], image=torch.full((1, 64, 64, 3), 0.5), min_score=min_score)


def test_isolate_subject_by_default_gives_a_pet_on_white(nodes: dict[str, Any], temporary: Path) -> None:
    mask = torch.zeros(1, 300, 451)
    mask[:, 40:240, 60:300] = 1
    result = run(nodes["IsolateSubject"], image=cat(), mask=mask)
    subject, cropped = result.args
    assert subject.shape == (1, 512, 512, 3)
    assert cropped.shape == (1, 512, 512)
    assert bool((subject[cropped == 0] == 1).all())
    assert float(cropped.mean()) == pytest.approx(200 * 240 / 288**2, rel=0.01)
    shown = result.ui.as_dict()["images"]
    assert (temporary / shown[0]["filename"]).is_file()


def test_isolate_subject_without_a_mask_estimates_one_and_says_if_it_is_not_sure(
    nodes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    horse = torch.from_numpy(data.horse()).float()[None]
    given = run(nodes["IsolateSubject"], image=horse[..., None], mask=1 - horse, size=128).args[1]
    estimated = run(nodes["IsolateSubject"], image=horse[..., None], invert=True, size=128).args[1]
    assert float((estimated - given).abs().mean()) < 0.05
    assert not [record for record in caplog.records if record.name == "nested_attention"]
    run(nodes["IsolateSubject"], image=cat())
    (said,) = [r.getMessage() for r in caplog.records if r.name == "nested_attention"]
    assert said.startswith("Isolate Subject: picture 1 of 1: the background could not be told")


@pytest.mark.parametrize("name", ["AlignFace", "IsolateSubject"])
def test_the_help_page_explains_every_slot_and_shows_a_small_picture(
    nodes: dict[str, Any], name: str
) -> None:
    page = (ROOT / "web" / "docs" / f"NestedAttention{name}.md").read_text(encoding="utf-8")
    schema = nodes[name].GET_SCHEMA()
    assert page.startswith(f"# {schema.display_name}\n")
    for slot in [*schema.inputs, *schema.outputs]:
        assert f"\n| {slot.display_name or slot.id} | " in page, slot.id
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", page)
    assert (ROOT / "web" / "docs" / picture).stat().st_size < 40_000


def test_both_lead_into_encode_subject(nodes: dict[str, Any], world: Any, tmp_path: Path) -> None:
    import json

    import comfy.clip_vision
    import tiny

    from nested_attention.hosts.comfy import encode_subject

    config = {
        "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 16,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(tmp_path / "config.json"))
    vision.model.float()
    tiny.randomise(vision.model, seed=20)
    two = torch.cat([astronaut(), astronaut().flip(2)])
    faces = run(nodes["AlignFace"], image=two, size=64).args[0]
    pets = run(nodes["IsolateSubject"], image=cat(), mask=torch.ones(1, 300, 451), size=64).args[0]
    assert encode_subject(world.person, vision, faces).images == 2
    assert encode_subject(world.pet, vision, pets).images == 1
    assert bool(torch.isfinite(encode_subject(world.person, vision, faces).tokens).all())
