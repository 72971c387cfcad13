"""Mix, Save and Load Subject, pictures with weights, and the vision model beside an encoder, as nodes."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from test_nodes import PACK, encoder_file, folder, nodes, pack  # noqa: F401  fixtures

from nested_attention.errors import NestedAttentionError
from nested_attention.storage.thumbnail import neutral_icon

ICON = neutral_icon()


@pytest.fixture
def folders(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """ComfyUI's input, output and temporary folder, empty."""
    import folder_paths

    made = {kind: tmp_path / kind for kind in ("input", "output", "temp")}
    for kind, path in made.items():
        path.mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(path))
    return made


@pytest.fixture
def alice(pack: ModuleType, world: Any) -> Any:  # noqa: F811
    return in_pack(world.alice)


def in_pack(subject: Any) -> Any:
    """As the nodes' own copy of the library has it."""
    cls = sys.modules[f"{PACK}.nested_attention.subject"].Subject
    return cls(subject.tokens, subject.token_bias, subject.word, subject.fingerprint, subject.images)


def shown(output: Any, folders: dict[str, Path]) -> torch.Tensor:
    """The picture on the node."""
    (entry,) = output.ui.as_dict()["images"]
    assert entry["type"] == "temp"
    with Image.open(folders["temp"] / entry["subfolder"] / entry["filename"]) as picture:
        assert not picture.info, "no workflow and no prompt beside somebody's face"
        return torch.tensor(list(picture.convert("RGB").getdata())).reshape(*picture.size[::-1], 3)


def told(output: Any) -> torch.Tensor:
    """The picture on Load Subject, which it asks the server for by the name of what was loaded."""
    ((name,),) = output.ui["nested_attention_subject"]
    lines, picture = sys.modules[f"{PACK}.nodes.subjects"].look_at(name)
    assert output.ui["nested_attention_state"] == [lines]
    return picture


def equal(one: Any, other: Any) -> bool:
    same = (one.word, one.fingerprint, one.images) == (other.word, other.fingerprint, other.images)
    return same and torch.equal(one.tokens, other.tokens) and torch.equal(one.token_bias, other.token_bias)


def test_mixing(nodes: dict[str, Any], world: Any) -> None:  # noqa: F811
    mix = nodes["NestedAttentionMixSubjects"]
    one, other = in_pack(world.alice), in_pack(world.bob)
    assert mix.execute(one, other, 0.0).args[0] is one
    assert mix.execute(one, other, 1.0).args[0] is other
    (half,) = mix.execute(one, other, 0.5).args
    assert torch.equal(half.tokens, torch.cat([one.tokens, other.tokens]))
    assert not half.token_bias.any()
    (quarter,) = mix.execute(one, other, 0.25).args
    assert torch.allclose(
        quarter.token_bias[-1] - quarter.token_bias[0], torch.tensor(1 / 3).log(), atol=1e-6
    )
    with pytest.raises(ValueError, match="Mix Subjects: the two subjects come from different encoders"):
        mix.execute(one, in_pack(world.rex), 0.5)
    with pytest.raises(ValueError, match="Mix Subjects: mixing weight is 1.5"):
        mix.execute(one, other, 1.5)


def test_a_mixed_subject_in_a_picture(world: Any) -> None:
    """Weight 0 is the picture without the other subject, bit for bit; a half is neither's."""
    from tiny import carries, encode, same, sample

    def picture(subject: Any) -> torch.Tensor:
        model, clip = world.apply(world.model, world.clip, subject)
        return sample(model, encode(clip, "a person"), encode(clip, "bad"))

    alice, bob = picture(world.alice), picture(world.bob)
    assert same(picture(world.alice.mix(world.bob, 0.0)), alice)
    assert same(picture(world.alice.mix(world.bob, 1.0)), bob)
    half = picture(world.alice.mix(world.bob, 0.5))
    assert carries(half, alice)
    assert carries(half, bob)


def test_saved_and_loaded_again(nodes: dict[str, Any], alice: Any, folders: dict[str, Path]) -> None:  # noqa: F811
    save, load = nodes["NestedAttentionSaveSubject"], nodes["NestedAttentionLoadSubject"]
    saved = save.execute(alice, "subjects/alice")
    assert saved.args[0] is alice
    assert torch.equal(shown(saved, folders), ICON)
    assert save.GET_SCHEMA().is_output_node
    names = load.define_schema().inputs[0].options
    assert names == ["avatars/somebody.safetensors", "subjects/alice_00001_.safetensors [output]"]
    assert load.validate_inputs(names[1]) is True
    loaded = load.execute(names[1])
    assert equal(loaded.args[0], alice)
    assert torch.equal(told(loaded), ICON)
    save.execute(alice, "subjects/alice")
    assert len(load.define_schema().inputs[0].options) == 3


def test_a_subject_that_is_removed_while_it_is_looked_at_is_said_to_be_gone(
    nodes: dict[str, Any],  # noqa: F811
    alice: Any,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules[f"{PACK}.nodes.subjects"]
    read = module.read_subject

    def read_and_removed(path: Path) -> Any:
        found = read(path)
        path.unlink()
        return found

    alice.save(folders["input"] / "friend.safetensors")
    monkeypatch.setattr(module, "read_subject", read_and_removed)
    with pytest.raises(ValueError, match="^Load Subject: there is no file .*friend"):
        module.look_at("friend.safetensors")


def test_a_read_only_installation_loads_from_the_input_folder(
    nodes: dict[str, Any],  # noqa: F811
    alice: Any,
    folders: dict[str, Path],
) -> None:
    alice.save(folders["input"] / "friend.safetensors")
    load = nodes["NestedAttentionLoadSubject"]
    assert load.define_schema().inputs[0].options[1:] == ["friend.safetensors"]
    assert equal(load.execute("friend.safetensors").args[0], alice)


def test_a_subject_comes_with_the_pack(
    nodes: dict[str, Any],  # noqa: F811
    alice: Any,
    folders: dict[str, Path],
) -> None:
    """What avatar_load_subject loads; a subject of the same name in the input folder goes before it."""
    load, name = nodes["NestedAttentionLoadSubject"], "avatars/somebody.safetensors"
    encoder = nodes["NestedAttentionLoadEncoder"].execute("avatars/person_encoder.safetensors").args[0]
    assert load.validate_inputs(name) is True
    loaded = load.execute(name)
    assert loaded.args[0].fingerprint == encoder.fingerprint, "run scripts/saved_subject.py"
    assert not torch.equal(told(loaded), ICON)
    before = load.fingerprint_inputs(name)
    (folders["input"] / "avatars").mkdir()
    alice.save(folders["input"] / name)
    assert equal(load.execute(name).args[0], alice)
    assert load.fingerprint_inputs(name) != before


def test_names_from_other_nodes_leave_caching_alone(nodes: dict[str, Any]) -> None:  # noqa: F811
    """ComfyUI asks for a fingerprint before it knows a linked value, and passes None for it."""
    assert nodes["NestedAttentionLoadSubject"].fingerprint_inputs(subject_name=None) == "linked"
    load = nodes["NestedAttentionLoadEncoder"]
    assert load.fingerprint_inputs(encoder_name=None) == "linked"
    assert load.fingerprint_inputs("avatars/pet_encoder.safetensors", clip_vision_name=None) == "linked"


def test_a_thumbnail_only_on_request(nodes: dict[str, Any], alice: Any, folders: dict[str, Path]) -> None:  # noqa: F811
    red = torch.zeros(2, 400, 200, 3)
    red[0, ..., 0] = 1
    saved = nodes["NestedAttentionSaveSubject"].execute(alice, "alice", red)
    loaded = nodes["NestedAttentionLoadSubject"].execute("alice_00001_.safetensors [output]")
    for picture in (shown(saved, folders), told(loaded)):
        assert picture.shape == (128, 64, 3)
        assert (picture == torch.tensor([255, 0, 0])).all()
    with pytest.raises(ValueError, match="Save Subject: the image has shape"):
        nodes["NestedAttentionSaveSubject"].execute(alice, "alice", torch.zeros(3, 3))


def test_a_replaced_subject_is_noticed(nodes: dict[str, Any], alice: Any, folders: dict[str, Path]) -> None:  # noqa: F811
    load, path = nodes["NestedAttentionLoadSubject"], folders["input"] / "a.safetensors"
    alice.save(path)
    before = load.fingerprint_inputs("a.safetensors")
    assert before == load.fingerprint_inputs("a.safetensors")
    os.utime(path, (1, 1))
    assert before != load.fingerprint_inputs("a.safetensors")


def test_a_replacement_of_equal_size_and_time_is_noticed(
    nodes: dict[str, Any],  # noqa: F811
    alice: Any,
    folders: dict[str, Path],
    encoder_file: Path,  # noqa: F811
) -> None:
    """By another file under the name, and by other content in the same one."""
    alice.save(folders["input"] / "a.safetensors")
    for load, name, path in (
        ("NestedAttentionLoadSubject", "a.safetensors", folders["input"] / "a.safetensors"),
        ("NestedAttentionLoadEncoder", encoder_file.name, encoder_file),
    ):
        fingerprint = nodes[load].fingerprint_inputs
        content, status = path.read_bytes(), path.stat()
        seen = [fingerprint(name)]
        other = path.with_name("other")
        other.write_bytes(content)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(other, path)
        seen.append(fingerprint(name))
        time.sleep(0.02)  # beyond the clock's grain
        path.write_bytes(content[::-1])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        seen.append(fingerprint(name))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert len({str(one) for one in seen}) == 3


@pytest.mark.parametrize("name", [3, ["a"], {"a": 1}, True, "\ud800", "a" * 10**6])
def test_names_that_are_no_names_of_files_give_our_own_error(
    nodes: dict[str, Any],  # noqa: F811
    folders: dict[str, Path],
    name: Any,
) -> None:
    for node in ("Subject", "Encoder"):
        said = nodes[f"NestedAttentionLoad{node}"].validate_inputs(name)
        assert str(said).startswith(f"Load Subject{'' if node == 'Subject' else ' Encoder'}: ")
        assert len(str(said).encode()) < 2000


@pytest.mark.parametrize("name", ["gone.safetensors", "../a.safetensors", "/a.safetensors", "x [output]", ""])
def test_a_missing_subject_names_the_node(
    nodes: dict[str, Any],  # noqa: F811
    folders: dict[str, Path],
    name: str,
) -> None:
    load = nodes["NestedAttentionLoadSubject"]
    assert str(load.validate_inputs(name)).startswith("Load Subject: ")
    assert load.validate_inputs() is True  # the name comes over a wire
    for call in (load.execute, load.fingerprint_inputs):
        with pytest.raises(ValueError, match="^Load Subject: "):
            call(name)


def test_a_damaged_subject_and_an_encoder_name_node_and_file(
    nodes: dict[str, Any],  # noqa: F811
    folders: dict[str, Path],
    world: Any,
) -> None:
    from nested_attention.checkpoint import save_subject_encoder

    load = nodes["NestedAttentionLoadSubject"]
    (folders["input"] / "a.safetensors").write_bytes(b"not a subject")
    with pytest.raises(ValueError, match=r"Load Subject: .*a\.safetensors cannot be read"):
        load.execute("a.safetensors")
    save_subject_encoder(world.person.encoder, folders["input"] / "e.safetensors")
    with pytest.raises(ValueError, match=r"Load Subject: .*e\.safetensors is not a saved subject"):
        load.execute("e.safetensors")


@pytest.mark.parametrize("prefix", ["../alice", "/tmp/alice", "a/../../alice", "", "a/", "C:alice"])
def test_nothing_is_saved_outside_the_output_folder(
    nodes: dict[str, Any],  # noqa: F811
    alice: Any,
    folders: dict[str, Path],
    prefix: str,
) -> None:
    before = sorted(folders["output"].parent.rglob("*"))
    with pytest.raises(ValueError, match="Save Subject: "):
        nodes["NestedAttentionSaveSubject"].execute(alice, prefix)
    assert sorted(folders["output"].parent.rglob("*")) == before


def test_a_loaded_subject_of_another_encoder(
    nodes: dict[str, Any],  # noqa: F811
    world: Any,
    folders: dict[str, Path],
    encoder_file: Path,  # noqa: F811
) -> None:
    in_pack(world.rex).save(folders["input"] / "rex.safetensors")
    (subject,) = nodes["NestedAttentionLoadSubject"].execute("rex.safetensors").args
    encoder = nodes["NestedAttentionLoadEncoder"].execute("mine.safetensors").args[0]
    apply = nodes["NestedAttentionApplySubject"]
    defaults = {i.id: i.default for i in apply.GET_SCHEMA().inputs if hasattr(i, "default")}
    with pytest.raises(ValueError, match="Apply Subject: this subject .* was made with another encoder"):
        apply.execute(world.model, world.clip, encoder, subject, **defaults)


def test_a_loaded_subject_is_projected_into_tensors_comfyui_can_move(
    nodes: dict[str, Any],  # noqa: F811
    alice: Any,
    folders: dict[str, Path],
    world: Any,
) -> None:
    """Nodes run in inference mode, and ComfyUI's clean-up outside of it."""
    from nested_attention.hosts.comfy.sampling.chain import SubjectChain
    from nested_attention.subject import Subject

    nodes["NestedAttentionSaveSubject"].execute(alice, "alice")
    (loaded,) = nodes["NestedAttentionLoadSubject"].execute("alice_00001_.safetensors [output]").args
    (mixed,) = nodes["NestedAttentionMixSubjects"].execute(loaded, alice, 0.4).args
    subject = Subject(mixed.tokens, mixed.token_bias, mixed.word, mixed.fingerprint, mixed.images)
    model, _ = world.apply(world.model, world.clip, subject)
    (applied,) = SubjectChain.of(model).subjects
    assert not any(p.is_inference() or p.requires_grad for p in applied.values.model.parameters())


# Several pictures


class Vision:
    """Features that follow from the picture, of the tiny encoders' width or another."""

    def __init__(self, width: int = 24) -> None:
        self.width = width

    def encode_image(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        means = image.mean(dim=(1, 2, 3))[:, None, None]
        return {"last_hidden_state": torch.linspace(-1, 1, 5 * self.width).reshape(1, 5, -1) * means}


def pictures(*brightness: float) -> torch.Tensor:
    return torch.tensor(brightness)[:, None, None, None].expand(-1, 32, 32, 3)


def test_each_picture_by_its_weight(world: Any) -> None:
    from nested_attention.hosts.comfy import encode_subject

    def encoded(*brightness: float, weights: Any = "") -> Any:
        return encode_subject(world.person, Vision(), pictures(*brightness), weights)

    assert equal(encoded(0.1, 0.5, 0.9, weights="1, 0.5, 2"), encoded(0.1, 0.5, 0.9, weights=[1, 0.5, 2]))
    assert equal(encoded(0.1, 0.5, weights="0.2 ;\n1"), encoded(0.1, 0.5, weights=[0.2, 1]))
    assert equal(encoded(0.1, 0.5, 0.9, weights="1, 0, 1"), encoded(0.1, 0.9))
    assert equal(encoded(0.1, 0.5, weights=" , "), encoded(0.1, 0.5))
    assert equal(encoded(0.1, 0.5, weights="3 3"), encoded(0.1, 0.5))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1, 2", "there are 2 weights and 3 pictures in the batch; expected one number"),
        ("1, two, 3", "the weights are '1, two, 3'; expected one number of 0 or more a picture, 3 in all"),
        ("0, 0, 0", "at least one of them above 0"),
        ("1, -1, 2", "expected one number of 0 or more"),
        ("nan, 1, 1", "expected one number of 0 or more"),
        ("1, inf, 1", "expected one number of 0 or more"),
    ],
)
def test_weights_that_do_not_fit_the_pictures(world: Any, weights: str, message: str) -> None:
    from nested_attention.hosts.comfy import encode_subject

    with pytest.raises(NestedAttentionError, match=f"^Encode Subject: .*{message}"):
        encode_subject(world.person, Vision(), pictures(0.1, 0.5, 0.9), weights)


# The vision model


def test_a_missing_vision_model_says_where_to_get_one(world: Any) -> None:
    from nested_attention.hosts.comfy import encode_subject

    with pytest.raises(
        NestedAttentionError, match="no CLIP vision model. Choose one in Load Subject Encoder"
    ):
        encode_subject(world.person, None, pictures(0.5))


@pytest.fixture
def visions(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/clip_vision with a file of the tiny encoders' width, a wider one and one of another kind."""
    import folder_paths
    from safetensors.torch import save_file

    path = tmp_path / "clip_vision"
    path.mkdir()
    extensions = folder_paths.folder_names_and_paths["clip_vision"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(path)], extensions))
    name = "vision_model.embeddings.class_embedding"
    save_file({name: torch.zeros(24)}, path / "fits.safetensors")
    save_file({name: torch.zeros(32)}, path / "wide.safetensors")
    save_file({"lora_up": torch.zeros(3)}, path / "lora.safetensors")
    return path


def test_the_vision_model_comes_out_beside_the_encoder(
    nodes: dict[str, Any],  # noqa: F811
    encoder_file: Path,  # noqa: F811
    visions: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.clip_vision

    load, read = nodes["NestedAttentionLoadEncoder"], []
    monkeypatch.setattr(comfy.clip_vision, "load", lambda path: read.append(path) or "the model")
    (option,) = (entry for entry in load.define_schema().inputs if entry.id == "clip_vision_name")
    assert option.options == ["none", "fits.safetensors", "lora.safetensors", "wide.safetensors"]
    assert (option.default, option.optional) == ("none", True)
    assert load.execute("mine.safetensors").args[1] is None
    assert load.execute("mine.safetensors", clip_vision_name="fits.safetensors").args[1] == "the model"
    with pytest.raises(
        ValueError,
        match=r"Load Subject Encoder: .*wide\.safetensors is 32 wide, .* mine\.safetensors .*width 24",
    ):
        load.execute("mine.safetensors", clip_vision_name="wide.safetensors")
    with pytest.raises(ValueError, match=r"lora\.safetensors is no CLIP vision model.*lora_up"):
        load.execute("mine.safetensors", clip_vision_name="lora.safetensors")
    with pytest.raises(ValueError, match=f"no CLIP vision model '../x' in {re.escape(str(visions))}"):
        load.execute("mine.safetensors", clip_vision_name="../x")
    assert read == [str(visions / "fits.safetensors")]  # a wrong one is not even loaded


def test_a_vision_model_comfyui_cannot_read(
    nodes: dict[str, Any],  # noqa: F811
    encoder_file: Path,  # noqa: F811
    visions: Path,
) -> None:
    with pytest.raises(ValueError, match=r"ComfyUI knows no CLIP vision model like .*fits\.safetensors"):
        nodes["NestedAttentionLoadEncoder"].execute("mine.safetensors", clip_vision_name="fits.safetensors")


def test_a_replaced_vision_model_is_noticed(
    nodes: dict[str, Any],  # noqa: F811
    encoder_file: Path,  # noqa: F811
    visions: Path,
) -> None:
    load = nodes["NestedAttentionLoadEncoder"]
    before = load.fingerprint_inputs("mine.safetensors", clip_vision_name="fits.safetensors")
    assert before != load.fingerprint_inputs("mine.safetensors")
    os.utime(visions / "fits.safetensors", (1, 1))
    assert before != load.fingerprint_inputs("mine.safetensors", clip_vision_name="fits.safetensors")


def test_a_known_file_that_is_missing_says_where_to_get_it(nodes: dict[str, Any], folder: Path) -> None:  # noqa: F811
    message = nodes["NestedAttentionLoadEncoder"].validate_inputs("nested_attention_person.safetensors")
    for part in (
        "https://huggingface.co/orpatashnik/NestedAttentionEncoder/blob/main/personalization_encoder/model",
        "CC BY-NC-SA 4.0",
        "`python -m nested_attention.cli download nested-attention-person` in ",
        str(folder),
    ):
        assert part in message


def test_files_of_every_layout_are_found_through_extra_model_paths(
    comfyui: Path,
    nodes: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a user has them elsewhere: a line in extra_model_paths.yaml, and files from several sources."""
    import folder_paths
    from synthetic_checkpoints import NAMING, TINY_SITES, encoder_tensors, write

    # By its place: another package may have a module called `utils` loaded.
    spec = importlib.util.spec_from_file_location("extra_config", comfyui / "utils" / "extra_config.py")
    assert spec is not None and spec.loader is not None
    extra_config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extra_config)
    layouts = sys.modules[f"{PACK}.nested_attention.storage.layouts"]
    sites = sys.modules[f"{PACK}.nested_attention.sites"]
    tiny_sites = tuple(sites.Site(**vars(site)) for site in TINY_SITES)
    monkeypatch.setattr(layouts, "sdxl_sites", lambda: tiny_sites)
    before = dict(folder_paths.folder_names_and_paths)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", before)
    before.pop("nested_attention", None)
    (tmp_path / "mine" / "encoders").mkdir(parents=True)
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path / 'mine'}\n  nested_attention: encoders\n")
    extra_config.load_extra_path_config(str(config))
    sys.modules[f"{PACK}.nodes.load"].register_folder()
    load = nodes["NestedAttentionLoadEncoder"]
    for number, naming in enumerate(NAMING):
        name = f"{number}{'.bin' if number % 2 else '.safetensors'}"
        write(tmp_path / "mine" / "encoders" / name, encoder_tensors(naming))
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
        assert name in load.define_schema().inputs[0].options
        assert load.execute(name).args[0].config.num_queries == 6
