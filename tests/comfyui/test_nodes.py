"""The nodes, loaded as ComfyUI loads a pack: what is shown, where files are found, how errors read."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
PACK = "custom_nodes_nested_attention"
IDS = {
    f"NestedAttention{name}"
    for name in (
        "DemoWorld",
        "DemoPose",
        "LoadEncoder",
        "Personalize",
        "AlignFace",
        "IsolateSubject",
        "EncodeSubject",
        "MixSubjects",
        "SaveSubject",
        "LoadSubject",
        "ApplySubject",
        "MarkPrompt",
        "Likeness",
        "Sheet",
        "ArrangeSheet",
        "Observe",
        "ViewMaps",
    )
}


@pytest.fixture(scope="module")
def pack(comfyui: Path) -> ModuleType:
    """The pack under the name its place would give it, which is no identifier's."""
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nodes(pack: ModuleType) -> dict[str, Any]:
    async def listed() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())}


@pytest.fixture
def folder(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder `nested_attention`, empty."""
    import folder_paths

    extensions = folder_paths.folder_names_and_paths["nested_attention"][1]
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "nested_attention", ([str(tmp_path)], extensions)
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def encoder_file(folder: Path, world: Any) -> Path:
    """The tiny world's person encoder, saved as a user would have it."""
    from nested_attention.checkpoint import save_subject_encoder

    path = folder / "mine.safetensors"
    save_subject_encoder(world.person.encoder, path)
    return path


def test_ids_are_the_promised_ones(pack: ModuleType, nodes: dict[str, Any]) -> None:
    assert set(nodes) == IDS
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")  # ComfyUI would ignore the entry point


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_every_node_explains_itself_and_all_its_slots(nodes: dict[str, Any], node_id: str) -> None:
    schema = nodes[node_id].GET_SCHEMA()
    assert schema.display_name and schema.category and len(schema.description) > 40
    for slot in [*schema.inputs, *schema.outputs]:
        assert slot.tooltip and slot.tooltip.endswith("."), f"{node_id}: {slot.id}"


def test_search_aliases_only_where_this_comfyui_has_them(nodes: dict[str, Any]) -> None:
    from comfy_api.latest import io

    has = "search_aliases" in io.Schema.__dataclass_fields__
    for node in nodes.values():
        assert bool(getattr(node.GET_SCHEMA(), "search_aliases", None)) == has


def test_model_folder_lists_models_only_and_keeps_extra_paths(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    # As extra_model_paths.yaml leaves it, read before any pack: a path and no extensions.
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "nested_attention", ([str(tmp_path)], set()))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    sys.modules[f"{PACK}.nodes.load"].register_folder()
    paths = folder_paths.get_folder_paths("nested_attention")
    assert paths == [str(tmp_path), os.path.join(folder_paths.models_dir, "nested_attention")]
    for name in ("a.safetensors", "b.bin", "notes.txt", "c.png"):
        (tmp_path / name).touch()
    assert set(folder_paths.get_filename_list("nested_attention")) >= {"a.safetensors", "b.bin"}
    assert not {"notes.txt", "c.png"} & set(folder_paths.get_filename_list("nested_attention"))


def test_load_encoder_lists_files_and_the_bundled_ones(nodes: dict[str, Any], encoder_file: Path) -> None:
    options = nodes["NestedAttentionLoadEncoder"].define_schema().inputs[0].options
    assert {
        "avatars/person_encoder.safetensors",
        "avatars/pet_encoder.safetensors",
        "avatars/person_adapter.safetensors",
        "avatars/pet_adapter.safetensors",
        "mine.safetensors",
    } == set(options)


@pytest.mark.usefixtures("either_memory")
def test_load_encoder_reads_a_file_and_overrides_what_it_is_told(
    nodes: dict[str, Any], encoder_file: Path, world: Any
) -> None:
    load = nodes["NestedAttentionLoadEncoder"]
    encoder, _ = load.execute("mine.safetensors").args
    assert encoder.fingerprint == world.person.fingerprint
    other, _ = load.execute("mine.safetensors", features="penultimate_hidden_states", norm="head").args
    assert (encoder.config.features, encoder.config.norm) == ("last_hidden_state", "inner")
    assert (other.config.features, other.config.norm) == ("penultimate_hidden_states", "head")


def test_load_encoder_notices_a_replaced_file(nodes: dict[str, Any], encoder_file: Path) -> None:
    load = nodes["NestedAttentionLoadEncoder"]
    settings = {"features": "as stored", "norm": "as stored"}
    before = load.fingerprint_inputs("mine.safetensors", **settings)
    assert before == load.fingerprint_inputs("mine.safetensors", **settings)
    assert before != load.fingerprint_inputs("mine.safetensors", **{**settings, "norm": "head"})
    os.utime(encoder_file, (1, 1))
    assert before != load.fingerprint_inputs("mine.safetensors", **settings)


@pytest.mark.parametrize("name", ["gone.safetensors", "../outside.safetensors", ""])
def test_a_missing_encoder_names_node_file_and_folder(nodes: dict[str, Any], folder: Path, name: str) -> None:
    load = nodes["NestedAttentionLoadEncoder"]
    message = load.validate_inputs(name)
    assert isinstance(message, str)
    assert "Load Subject Encoder" in message and repr(name) in message and str(folder) in message
    assert "Put the file there" in message
    with pytest.raises(ValueError, match="Load Subject Encoder"):
        load.execute(name)
    assert load.validate_inputs() is True  # the name comes over a wire


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"PK\x03\x04broken", b"\x10\0\0\0\0\0\0\0{}"],
    ids=["empty", "text", "zip", "cut"],
)
@pytest.mark.usefixtures("either_memory")
def test_a_corrupt_encoder_names_node_and_file(nodes: dict[str, Any], folder: Path, content: bytes) -> None:
    (folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"Load Subject Encoder: .*bad\.safetensors"):
        nodes["NestedAttentionLoadEncoder"].execute("bad.safetensors")


@pytest.mark.usefixtures("either_memory")
def test_a_file_of_another_kind_of_model_says_what_was_expected(nodes: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"lora_unet_x.alpha": torch.ones(1)}, folder / "lora.safetensors")
    with pytest.raises(ValueError, match="Load Subject Encoder: .*expected"):
        nodes["NestedAttentionLoadEncoder"].execute("lora.safetensors")


def test_apply_subject_defaults(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, world: Any) -> None:
    """Nothing typed: the encoder's own word, λ 1, α 2, full strength, all steps, an error if missing."""
    seen: list[Any] = []

    def spy(model: Any, clip: Any, encoder: Any, subject: Any, settings: Any, by: Any) -> tuple[Any, Any]:
        assert by.title == "Apply Subject" and by.may_warn
        seen.append(settings.trained_as(encoder.config))
        return model, clip

    apply = nodes["NestedAttentionApplySubject"]
    monkeypatch.setattr(sys.modules[f"{PACK}.nodes.apply"], "apply_subject", spy)
    defaults = {i.id: i.default for i in apply.GET_SCHEMA().inputs if hasattr(i, "default")}
    apply.execute(world.model, world.clip, world.pet, world.rex, **defaults)
    assert dataclasses.asdict(seen[0]) == {
        "word": "pet",
        "attention_scale": 1.0,
        "alpha": 2.0,
        "norm": "inner",
        "strength": 1.0,
        "start": 0.0,
        "end": 1.0,
        "when_missing": "error",
        "name": None,
        "apply_to_negative": False,
        "region": None,
        "region_mode": "mask",
        "bounded": False,
        "bound_self_attention": False,
        "blocks": "all",
        "injection": "nested",
        "weight": 1.0,
    }
    apply.execute(
        world.model, world.clip, world.pet, world.rex, **{**defaults, "alpha": 0.0, "word": " dog "}
    )
    assert (seen[1].alpha, seen[1].word) == (None, "dog")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"strength": 2.0}, "strength is 2.0"),
        ({"word": "<alice>"}, "word is '<alice>'"),
        ({"region": "a mask"}, "the region has str"),
        ({"region_mode": "automatic"}, "region_mode is 'automatic'"),
    ],
)
def test_apply_subject_is_named_by_its_errors(
    nodes: dict[str, Any], world: Any, given: dict[str, Any], expected: str
) -> None:
    apply = nodes["NestedAttentionApplySubject"]
    defaults = {i.id: i.default for i in apply.GET_SCHEMA().inputs if hasattr(i, "default")}
    with pytest.raises(ValueError, match=f"^Apply Subject: {expected}"):
        apply.execute(world.model, world.clip, world.pet, world.rex, **{**defaults, **given})


def test_one_subject_a_picture(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, world: Any) -> None:
    calls: list[tuple[str, dict[str, bool]]] = []
    for name in ("encode_subject", "encode_batch"):
        module = sys.modules[f"{PACK}.nodes.encode"]
        monkeypatch.setattr(module, name, lambda *args, name=name, **options: calls.append((name, options)))
    encode = nodes["NestedAttentionEncodeSubject"]
    (combo,) = (i for i in encode.GET_SCHEMA().inputs if i.id == "batch")
    assert combo.optional and combo.default == "one subject from all pictures"
    picture = torch.zeros(1, 16, 16, 3)
    encode.execute(world.person, None, picture)
    for option in combo.options:
        encode.execute(world.person, None, picture, batch=option)
    each, average = {"average": False}, {"average": True}
    together = [("encode_subject", each), ("encode_subject", each)]
    assert calls == [*together, ("encode_batch", {}), ("encode_subject", average)]


def test_new_inputs_are_appended_optional_and_neutral(nodes: dict[str, Any]) -> None:
    """Saved workflows keep their widgets' order, and draw the same picture."""
    inputs = nodes["NestedAttentionApplySubject"].GET_SCHEMA().inputs
    new = ["region", "region_mode", "bounded", "bound_self_attention", "blocks", "injection", "weight"]
    assert [i.id for i in inputs][-len(new) :] == new
    assert all(i.optional for i in inputs[-len(new) :])


def test_apply_and_mark_reach_the_library(nodes: dict[str, Any], encoder_file: Path, world: Any) -> None:
    """End to end through the nodes' own copy of the library, as ComfyUI has it."""
    encoder, _ = nodes["NestedAttentionLoadEncoder"].execute("mine.safetensors").args
    pack_subject = sys.modules[f"{PACK}.nested_attention.subject"].Subject
    tokens = world.alice.tokens
    subject = pack_subject(tokens, torch.zeros(len(tokens)), "person", encoder.fingerprint)
    apply = nodes["NestedAttentionApplySubject"]
    defaults = {i.id: i.default for i in apply.GET_SCHEMA().inputs if hasattr(i, "default")}
    model, clip = apply.execute(world.model, world.clip, encoder, subject, **defaults).args
    assert model is not world.model and clip is not world.clip
    text = "a photo of a person"
    plain = world.clip.encode_from_tokens_scheduled(world.clip.tokenize(text))
    (marked,) = nodes["NestedAttentionMarkPrompt"].execute(plain, clip, text).args
    assert torch.equal(marked[0][0], plain[0][0])
    assert set(marked[0][1]) > set(plain[0][1])
    with pytest.raises(ValueError, match="Mark Prompt: .*person"):
        nodes["NestedAttentionMarkPrompt"].execute(plain, clip, "a photo of a lamp")
    with pytest.raises(ValueError, match="Apply Subject"):
        apply.execute(world.model, world.clip, encoder, subject, **{**defaults, "end_percent": -1.0})


def test_demo_world_references_are_held_out_and_follow_the_seed(pack: ModuleType) -> None:
    demo = sys.modules[f"{PACK}.nodes.demo"]
    references = sys.modules[f"{PACK}.nested_attention.avatars.drawing.references"]
    identity = sys.modules[f"{PACK}.nested_attention.avatars.drawing.identity"]
    for kind in references.KINDS:
        pictures = [demo._image(kind, seed) for seed in (0, 1, 2**32 - 1)]
        assert all(p.shape == (1, 112, 112, 3) and p.min() >= 0 and p.max() <= 1 for p in pictures)
        assert torch.equal(pictures[0], demo._image(kind, 0))
        assert not torch.equal(pictures[0], pictures[1])
        assert all(identity.split_of(references.held_out(kind, seed)) == "heldout" for seed in range(20))


def test_demo_world_without_its_files_says_so(
    nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[f"{PACK}.nodes.demo"], "SMALL_WORLD", tmp_path)
    with pytest.raises(ValueError, match=rf"Demo World: .*{tmp_path}.*Install the pack again"):
        nodes["NestedAttentionDemoWorld"].execute(0, 0)


@pytest.mark.parametrize(
    ("base", "figures", "shape", "scale"),
    [
        ("small world", 1, (4, 4, 16, 16), 4.0),
        ("small world", 2, (4, 4, 16, 24), 4.0),
        ("mine.safetensors", 1, (1, 4, 128, 128), 1.0),
        ("mine.safetensors", 2, (1, 4, 104, 152), 1.0),
    ],
)
def test_demo_world_s_latent_is_as_wide_as_its_figures_take(
    nodes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    figures: int,
    shape: tuple[int, ...],
    scale: float,
) -> None:
    """192 × 128 pixels of the small world, and 1216 × 832 of SDXL; one figure where nothing is said."""
    demo = sys.modules[f"{PACK}.nodes.demo"]
    monkeypatch.setattr(demo, "load_world", lambda *_: ("model", "clip", "vae", "vision"))
    monkeypatch.setattr(demo, "load_checkpoint", lambda *_: ("model", "clip", "vae"))
    monkeypatch.setattr(demo.folder_paths, "get_full_path", lambda *_: "/there")
    node = nodes["NestedAttentionDemoWorld"]
    *_, latent, shown = node.execute(0, 0, base, figures).args
    assert latent["samples"].shape == shape and not latent["samples"].any() and shown == scale
    if figures == 1:
        assert node.execute(0, 0, base).args[-2]["samples"].shape == shape


def test_samplers_take_demo_world_s_latent_for_the_small_world(nodes: dict[str, Any]) -> None:
    """It has four channels, as Empty Latent Image's, and the small world's model has more."""
    from types import SimpleNamespace

    import comfy.sample

    latents = sys.modules[f"{PACK}.nested_attention.avatars.comfy.world"]._SmallLatent(12, 1.0)
    model = SimpleNamespace(get_model_object={"latent_format": latents}.get)
    empty = sys.modules[f"{PACK}.nodes.demo"]._latent(4, 192, 128)["samples"]
    assert comfy.sample.fix_empty_latent_channels(model, empty).shape == (4, 12, 16, 24)


def test_demo_poses_chain_in_a_picture_of_one_width(nodes: dict[str, Any]) -> None:
    pose = nodes["NestedAttentionDemoPose"]
    (alone,) = pose.execute(16, 8, "ahead").args
    (before,) = pose.execute(24, 8, "left", alone).args  # two in a picture, as saved before it could be wider
    assert alone.shape == before.shape == (1, 128, 128, 3)
    (left,) = pose.execute(12, 8, "ahead", figures=2).args
    (both,) = pose.execute(36, 9, "left", left, 2).args
    assert left.shape == both.shape == (1, 128, 192, 3)
    assert torch.equal(both[:, :, :96], left[:, :, :96]) and both[:, :, 96:].any()
    with pytest.raises(ValueError, match="Demo Pose: x is 36; .* Set figures to 2"):
        pose.execute(36, 8, "ahead")
    with pytest.raises(ValueError, match="Demo Pose: the pose picture behind is 128 × 128 .* figures 2"):
        pose.execute(36, 8, "ahead", alone, 2)


@pytest.mark.parametrize("figures", [0, 3])
def test_a_number_of_figures_that_comes_by_a_wire_is_checked(nodes: dict[str, Any], figures: int) -> None:
    for name, given in (("World", (0, 0, "small world")), ("Pose", (16, 8, "ahead", None))):
        with pytest.raises(ValueError, match=f"Demo {name}: figures is {figures}; expected 1 or 2"):
            nodes[f"NestedAttentionDemo{name}"].execute(*given, figures)
