"""Encoder files: what is recognised, that it means what its authors' code means, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from synthetic_checkpoints import (
    NAMING,
    TINY_LAYOUT,
    TINY_SITES,
    Sizes,
    encoder_tensors,
    resampler,
    write,
)
from test_encoder import CastingOperations
from test_sites import diffusers_unet
from torch import Tensor

from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.sites import UNetLayout, sdxl_sites
from nested_attention.subject import Subject

CONFIG = SubjectEncoderConfig(
    vision_dim=12,
    token_dim=24,
    num_queries=6,
    width=16,
    depth=2,
    heads=2,
    head_dim=64,
    sites=TINY_SITES,
    word="pet",
    alpha=None,
    norm="head",
    features="penultimate_hidden_states",
)


@pytest.fixture
def encoder() -> SubjectEncoder:
    torch.manual_seed(0)
    return SubjectEncoder(CONFIG).eval()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(1))


def same(a: SubjectEncoder, b: SubjectEncoder) -> bool:
    state = b.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in a.state_dict().items())


# Our own layout


def test_save_and_load(encoder: SubjectEncoder, features: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "named.like.nothing"
    save_subject_encoder(encoder, path)
    loaded = load_subject_encoder(path)
    assert loaded.config == CONFIG
    assert same(loaded, encoder)
    assert torch.equal(loaded(features), encoder(features))
    assert loaded.fingerprint == encoder.fingerprint
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert os.listdir(tmp_path) == [path.name]
    save_subject_encoder(loaded, path)  # onto the file its weights come from
    assert same(load_subject_encoder(path), encoder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_when_saving_and_loading(
    encoder: SubjectEncoder, features: Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_subject_encoder(encoder, tmp_path / "full")
    save_subject_encoder(encoder, tmp_path / "half", dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / "half").values()} == {dtype}
    cast = load_subject_encoder(tmp_path / "full", dtype=dtype)
    assert {p.dtype for p in cast.parameters()} == {dtype}
    assert same(cast, load_subject_encoder(tmp_path / "half"))
    assert cast.fingerprint == encoder.fingerprint  # of the file, whatever it is cast to
    again = load_subject_encoder(tmp_path / "half", dtype=torch.float32)
    assert again.fingerprint == load_subject_encoder(tmp_path / "half").fingerprint
    torch.testing.assert_close(again(features), encoder(features), rtol=0.05, atol=0.05)


def test_a_subject_survives_the_round_trip_of_its_encoder(
    encoder: SubjectEncoder, features: Tensor, tmp_path: Path
) -> None:
    subject = Subject.from_images(encoder, features)
    save_subject_encoder(encoder, tmp_path / "e", dtype=torch.float16)
    subject.check_encoder(load_subject_encoder(tmp_path / "e", dtype=torch.float32, word="child", alpha=3.0))
    with pytest.raises(NestedAttentionError, match="made with another encoder"):
        subject.check_encoder(load_subject_encoder(tmp_path / "e", features="last_hidden_state"))


def test_overrides(encoder: SubjectEncoder, tmp_path: Path) -> None:
    save_subject_encoder(encoder, tmp_path / "e")
    loaded = load_subject_encoder(tmp_path / "e", word="cat", alpha=1.5, norm="inner")
    assert (loaded.config.word, loaded.config.alpha, loaded.config.norm) == ("cat", 1.5, "inner")
    with pytest.raises(NestedAttentionError, match=r"unknown overrides \['wrod'\].*word"):
        load_subject_encoder(tmp_path / "e", wrod="cat")
    with pytest.raises(NestedAttentionError, match="norm is 'l2'"):
        load_subject_encoder(tmp_path / "e", norm="l2")
    with pytest.raises(NestedAttentionError, match=r"latents has shape \(1, 6, 16\); expected \(1, 7, 16\)"):
        load_subject_encoder(tmp_path / "e", num_queries=7)
    with pytest.raises(NestedAttentionError, match="has unexpected"):
        load_subject_encoder(tmp_path / "e", sites=TINY_SITES[:-1])


def test_operations_are_honoured(encoder: SubjectEncoder, features: Tensor, tmp_path: Path) -> None:
    save_subject_encoder(encoder, tmp_path / "e", dtype=torch.float16)
    loaded = load_subject_encoder(tmp_path / "e", operations=CastingOperations)
    assert isinstance(loaded.qformer.proj_in, CastingOperations.Linear)
    assert loaded(features).dtype == torch.float32
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}


# Layouts of others


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("naming", NAMING)
def test_layouts_are_recognised_under_any_names(tmp_path: Path, naming: str, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", encoder_tensors(naming))
    encoder = load_subject_encoder(path, sites=TINY_SITES)
    config = encoder.config
    assert (config.vision_dim, config.token_dim, config.num_queries) == (12, 24, 6)
    assert (config.width, config.depth, config.heads, config.head_dim, config.ff_mult) == (16, 2, 2, 64, 4)
    assert (config.word, config.alpha, config.norm) == ("person", 2.0, "inner")
    reference = load_subject_encoder(write(tmp_path / "reference", encoder_tensors()), sites=TINY_SITES)
    assert same(encoder, reference)
    assert encoder.fingerprint == reference.fingerprint
    # What was recognised is saved and loaded in our own layout.
    save_subject_encoder(encoder, tmp_path / "ours")
    ours = load_subject_encoder(tmp_path / "ours")
    assert ours.config == config
    assert same(ours, encoder)


def test_the_qformer_is_ip_adapters_resampler(tmp_path: Path) -> None:
    """Against diffusers, which converts and runs the same files with code of its own."""
    from diffusers import UNet2DConditionModel

    sizes = Sizes(depth=4)  # the only one it takes
    tensors = encoder_tensors(sizes=sizes)
    encoder = load_subject_encoder(write(tmp_path / "x", tensors), sites=TINY_SITES)
    theirs = {name.removeprefix("image_proj."): t for name, t in tensors.items() if name.startswith("image_")}
    unet = diffusers_unet(TINY_LAYOUT)
    assert isinstance(unet, UNet2DConditionModel)
    model = unet._convert_ip_adapter_image_proj_to_diffusers(theirs, low_cpu_mem_usage=False)
    features = torch.randn(2, 9, 12)
    torch.testing.assert_close(encoder(features), model(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layout", [TINY_LAYOUT, UNetLayout(model_channels=8, context_dim=24, num_head_channels=4)]
)
def test_projections_reach_the_layers_ip_adapter_means(tmp_path: Path, layout: UNetLayout) -> None:
    """Against diffusers, which walks the UNet and numbers its layers; with 70 layers, as SDXL has, too."""
    tensors = encoder_tensors(sites=layout.sites)
    encoder = load_subject_encoder(write(tmp_path / "x", tensors), sites=layout.sites)
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    processors = diffusers_unet(layout)._convert_ip_adapter_attn_to_diffusers(
        [parts], low_cpu_mem_usage=False
    )
    tokens = torch.randn(7, 24)
    projected = encoder.project(tokens)
    seen = 0
    for name, processor in processors.items():
        if name.endswith("attn2.processor"):
            key, value = projected[name.removesuffix(".processor")]
            torch.testing.assert_close(key[0], processor.to_k_ip[0](tokens))
            torch.testing.assert_close(value[0], processor.to_v_ip[0](tokens))
            seen += 1
    assert seen == len(projected) == len(layout.sites)


def test_sixteen_queries_are_ip_adapter_plus(tmp_path: Path) -> None:
    for queries, expected in [(16, "penultimate_hidden_states"), (256, "last_hidden_state")]:
        path = write(tmp_path / "x", encoder_tensors(sizes=Sizes(queries=queries)))
        assert load_subject_encoder(path, sites=TINY_SITES).config.features == expected
    overridden = load_subject_encoder(path, sites=TINY_SITES, features="penultimate_hidden_states")
    assert overridden.config.features == "penultimate_hidden_states"


def test_heads_are_64_wide_unless_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x", encoder_tensors(sizes=Sizes(inner=96)))
    with pytest.raises(NestedAttentionError, match="96 wide, which is not 1 heads of 64; .*heads="):
        load_subject_encoder(path, sites=TINY_SITES)
    for overrides in [{"heads": 3}, {"head_dim": 32}, {"heads": 3, "head_dim": 32}]:
        config = load_subject_encoder(path, sites=TINY_SITES, **overrides).config
        assert (config.heads, config.head_dim) == (3, 32)
    with pytest.raises(NestedAttentionError, match="96 wide"):
        load_subject_encoder(path, sites=TINY_SITES, heads=3, head_dim=16)
    for wrong in (0, "3", 2.5):
        with pytest.raises(NestedAttentionError, match="heads is .*; expected an integer"):
            load_subject_encoder(path, sites=TINY_SITES, heads=wrong)


def test_frozen_models_of_a_training_dump_are_left_out(tmp_path: Path) -> None:
    """IP-Adapter's training saves the UNet along, with a second copy of the projections inside it."""
    tensors = encoder_tensors("training dump")
    dump = {name: t.clone() for name, t in encoder_tensors("by path").items() if name.startswith("unet.")}
    for site in TINY_SITES:
        dump[f"unet.{site.name}.to_k.weight"] = torch.zeros(site.inner_dim, 24)
        dump[f"unet.{site.name}.to_v.weight"] = torch.zeros(site.inner_dim, 24)
    dump["unet.conv_in.weight"] = torch.zeros(4, 4)
    dump["image_encoder.vision_model.encoder.layers.0.self_attn.k_proj.weight"] = torch.zeros(4, 4)
    loaded = load_subject_encoder(write(tmp_path / "x", {**tensors, **dump}), sites=TINY_SITES)
    assert same(loaded, load_subject_encoder(write(tmp_path / "y", tensors), sites=TINY_SITES))


def test_other_content_of_a_pytorch_file_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "x.bin", encoder_tensors())
    content = torch.load(tmp_path / "x.bin", weights_only=True)
    torch.save({"global_step": 7, "state": {"note": "x", **content}}, tmp_path / "y.bin")
    old = tmp_path / "old.bin"
    torch.save(content, old, _use_new_zipfile_serialization=False)
    reference = load_subject_encoder(tmp_path / "x.bin", sites=TINY_SITES)
    assert same(load_subject_encoder(tmp_path / "y.bin", sites=TINY_SITES), reference)
    assert same(load_subject_encoder(old, sites=TINY_SITES), reference)


def test_mixed_dtypes_become_the_widest(tmp_path: Path) -> None:
    tensors = {n: t if "norm" in n else t.half() for n, t in encoder_tensors().items()}
    loaded = load_subject_encoder(write(tmp_path / "x", tensors), sites=TINY_SITES)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    loaded(torch.randn(1, 3, 12))


# Refusals

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(*parts: str) -> Change:
    return lambda tensors: {n: t for n, t in tensors.items() if not any(part in n for part in parts)}


def reshaped(name: str, *shape: int) -> Change:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("latents"), "no Q-Former: expected learned queries, a tensor `latents`.*found image_proj"),
        (without(""), "no tensors at all"),
        (reshaped("image_proj.latents", 6, 16), "no Q-Former"),
        (reshaped("other.latents", 1, 6, 16), "several Q-Formers"),
        (
            reshaped("image_proj.latents", 1, 6, 17),
            "feed-forward width is 64; expected a multiple of its width 17",
        ),
        (reshaped("image_proj.latents", 2, 6, 16), r"has shape \(2, 6, 16\); expected \(1, 6, 16\)"),
        (reshaped("image_proj.proj_in.weight", 16), r"proj_in.weight: found shape \(16,\), expected 2"),
        (without("proj_out.weight"), "proj_out.weight: found no such tensor"),
        (without("norm_out.bias"), "lacks 1 tensors.*norm_out.bias"),
        (without("layers.0."), "layers.0.0.to_q.weight: found no such tensor"),
        (without("layers.1.0.to_kv"), "lacks 1 tensors.*layers.1.attention.to_kv"),
        (reshaped("image_proj.layers.7.0.norm1.weight", 16), "lacks .*layers.2"),
        (
            reshaped("image_proj.layers.1.0.to_kv.weight", 128, 16),
            r"to_kv.weight has shape \(128, 16\); expected \(256",
        ),
        (without("to_k_ip", "to_v_ip"), "expected one list of key and value projections.*found none"),
        (without("to_v_ip"), "17 key projections and 0 value projections"),
        (
            without("ip_adapter.5.to_v"),
            "17 key projections and 16 value .*Without a partner: ip_adapter.5.to_k_ip",
        ),
        (
            without("ip_adapter.33."),
            "encoder for a UNet with 16 .*; expected one for a UNet with 17",
        ),
        (
            lambda t: {**t, **{f"copy.{n}": v.clone() for n, v in t.items() if n.startswith("ip_")}},
            r"found copy.ip_adapter.#.to_\*_ip, ip_adapter.#.to_\*_ip",
        ),
        (
            reshaped("ip_adapter.1.to_k_ip.bias", 32),
            "1 tensors belong to no known layout: ip_adapter.1.to_k_ip.bias",
        ),
        (reshaped("image_proj.pos_emb.weight", 9, 16), "no known layout: image_proj.pos_emb.weight"),
        (reshaped("ip_adapter.0.to_q_lora.down.weight", 4, 4), "it is an IP-Adapter FaceID"),
        (
            reshaped("ip_adapter.9.to_k_ip.weight", 32, 24),
            r"ip_adapter.9.to_k_ip.weight has shape \(32, 24\); expected",
        ),
        (
            lambda t: {n: torch.full_like(v, torch.nan) if "to_out" in n else v for n, v in t.items()},
            "layers.0.0.to_out.weight contains NaN",
        ),
        (lambda t: {n: v.to(torch.int8) for n, v in t.items()}, "stored as torch.int8"),
        (
            lambda t: {n: v.to(torch.float8_e4m3fn) for n, v in t.items()},
            "float8_e4m3fn.*give load_subject_encoder a dtype=",
        ),
    ],
)
def test_refusals_say_what_was_found_and_expected(tmp_path: Path, change: Change, message: str) -> None:
    path = write(tmp_path / "x", change(encoder_tensors()))
    with pytest.raises(NestedAttentionError, match=message) as error:
        load_subject_encoder(path, sites=TINY_SITES)
    assert str(path) in str(error.value)


def test_unexpected_tensors_can_be_ignored_knowingly(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {**encoder_tensors(), "note": torch.zeros(3)})
    load_subject_encoder(path, sites=TINY_SITES, ignore_unexpected=True)


def test_fp8_with_a_dtype_is_used(tmp_path: Path) -> None:
    tensors = {n: t.to(torch.float8_e4m3fn) for n, t in encoder_tensors().items()}
    loaded = load_subject_encoder(write(tmp_path / "x", tensors), sites=TINY_SITES, dtype=torch.float32)
    assert torch.equal(loaded.qformer.latents, tensors["image_proj.latents"].float())


SD15_SITES = UNetLayout(
    model_channels=8,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=(2, 2, 2, 2),
    transformer_depth=(1, 1, 1, 1, 1, 1, 0, 0),
    transformer_depth_output=(1,) * 9 + (0,) * 3,
    transformer_depth_middle=1,
    context_dim=24,
    num_head_channels=8,
).sites


def test_encoders_for_other_base_models_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "sd15", encoder_tensors(sites=SD15_SITES))
    with pytest.raises(NestedAttentionError, match="for a UNet with 16 .*; expected one for SDXL .70 cross-"):
        load_subject_encoder(path)
    path = write(tmp_path / "narrow", encoder_tensors(sites=sdxl_sites()))
    with pytest.raises(NestedAttentionError, match="24 wide; expected those of .* SDXL .*width 2048"):
        load_subject_encoder(path)
    sites = UNetLayout(model_channels=16, num_head_channels=16).sites
    path = write(tmp_path / "thin", encoder_tensors(sizes=Sizes(token_dim=2048), sites=sites))
    with pytest.raises(
        NestedAttentionError, match=r"ip_adapter.1.to_k_ip.weight has shape \(32, 2048\); expected \(640"
    ):
        load_subject_encoder(path)
    # down, mid, up instead of down, up, mid
    order = sorted(TINY_SITES, key=lambda site: ["down", "mid", "up"].index(site.name.split("_")[0]))
    path = write(tmp_path / "order", encoder_tensors(sites=order))
    with pytest.raises(NestedAttentionError, match="diffusers' order: down, up, mid"):
        load_subject_encoder(path, sites=TINY_SITES)


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    generator = torch.Generator()
    for name, tensors in {
        "plain IP-Adapter": {
            "image_proj.proj.weight": torch.zeros(8, 4),
            "ip_adapter.1.to_k_ip.weight": torch.zeros(4, 4),
        },
        "LoRA": {"lora_unet_x.lora_down.weight": torch.zeros(4, 4)},
        "bare resampler": resampler(Sizes(), generator),
    }.items():
        with pytest.raises(NestedAttentionError, match="is not a usable subject encoder: "):
            load_subject_encoder(write(tmp_path / name.replace(" ", "-"), tensors))
    subject = Subject(torch.zeros(3, 4), torch.zeros(3), "person", "f")
    subject.save(tmp_path / "s")
    with pytest.raises(NestedAttentionError, match="it is a saved subject"):
        load_subject_encoder(tmp_path / "s")


def test_missing_and_damaged_files_are_refused(encoder: SubjectEncoder, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    with pytest.raises(NestedAttentionError, match=r"there is no file .*e.safetensors"):
        load_subject_encoder(path)
    save_subject_encoder(encoder, path)
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(NestedAttentionError, match="is empty|cannot be read as safetensors"):
            load_subject_encoder(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 128]))  # the sign of one weight
    with pytest.raises(NestedAttentionError, match="not those that were saved"):
        load_subject_encoder(path)
    binary = write(tmp_path / "e.bin", encoder_tensors()).read_bytes()
    for cut in (5, 100, len(binary) // 2, len(binary) - 1):
        (tmp_path / "e.bin").write_bytes(binary[:cut])
        with pytest.raises(NestedAttentionError, match="cannot be read as a PyTorch file"):
            load_subject_encoder(tmp_path / "e.bin", sites=TINY_SITES)


def test_our_layout_with_other_metadata_is_refused(encoder: SubjectEncoder, tmp_path: Path) -> None:
    path = tmp_path / "e"
    save_subject_encoder(encoder, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    deep = metadata["config"].replace('"depth": 2', '"depth": 200000')
    wide = metadata["config"].replace('"width": 16', '"width": 20')
    for change, message in [
        ({"format_version": "9"}, "format version 9; this library reads version 1. Update"),
        ({"config": "{}"}, "encoder configuration"),
        ({"config": deep}, "200000 Q-Former layers.*only"),
        ({"config": wide}, "has shape .*16.*; expected .*20"),
    ]:
        save_file(tensors, path, {**metadata, **change})
        with pytest.raises(NestedAttentionError, match=message):
            load_subject_encoder(path)
    save_file(tensors, path, {k: v for k, v in metadata.items() if k != "config"})
    with pytest.raises(NestedAttentionError, match="no configuration"):
        load_subject_encoder(path)
    save_file(tensors, path)  # as tools do that drop metadata
    with pytest.raises(NestedAttentionError, match="its metadata is gone"):
        load_subject_encoder(path)


class Bomb:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "executed"
    content = {**encoder_tensors(), "x": Bomb(target)}
    torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(NestedAttentionError, match="cannot be read as a PyTorch file"):
        load_subject_encoder(tmp_path / "x.bin", sites=TINY_SITES)
    assert not target.exists()


def test_a_tar_of_old_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch before 2.6 runs code from one, whatever `weights_only` says."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was given to torch.load"))
    with tarfile.open(tmp_path / "x.bin", "w") as archive:
        archive.addfile(tarfile.TarInfo("\x80sys_info"), io.BytesIO())
    with pytest.raises(NestedAttentionError, match="x.bin cannot be read|x.bin is a tar archive"):
        load_subject_encoder(tmp_path / "x.bin")
    content = bytearray((tmp_path / "x.bin").read_bytes())
    content[:1] = b"\x80"  # how PyTorch's own begin
    header = content[:148] + b" " * 8 + content[156:512]
    content[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "y.bin").write_bytes(content)
    with pytest.raises(NestedAttentionError, match="y.bin is a tar archive; save the weights as safetensors"):
        load_subject_encoder(tmp_path / "y.bin")


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_mutated_file_is_refused_or_loads(tmp_path: Path, data: st.DataObject) -> None:
    """Damage to the header of any layout: our error, or an encoder that works; never another exception."""
    base = tmp_path / "base"
    if data.draw(st.booleans()):
        torch.manual_seed(0)
        save_subject_encoder(SubjectEncoder(CONFIG), base)
    else:
        write(base, encoder_tensors())
    content = bytearray(base.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, length + 8))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'0123456789"{}[],:._')))
    (tmp_path / "mutated").write_bytes(content)
    try:
        encoder = load_subject_encoder(tmp_path / "mutated", sites=TINY_SITES)
    except NestedAttentionError:
        return
    encoder(torch.zeros(1, 2, encoder.config.vision_dim))


# Memory

MEASURE = """
import sys
import time
sys.path.insert(0, {tests!r})
import conftest, torch
from nested_attention.checkpoint import load_subject_encoder
from nested_attention.sites import Site, sdxl_sites

torch.set_num_threads(1)

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

load_subject_encoder({warm!r}, sites={sites!r})  # whatever is imported or allocated once
for path, arguments in {loads!r}:
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak
    before, start = memory("VmRSS"), time.process_time()
    encoder = load_subject_encoder(path, **eval(arguments))
    print(memory("VmHWM") - before, time.process_time() - start)
    del encoder
"""


def cost_of_loading(loads: list[tuple[Path, str]], tmp_path: Path) -> list[tuple[int, float]]:
    """For each load: bytes by which it raises a fresh process's memory at its worst, mapped pages included,
    and seconds of processor time, which others on the machine do not change."""
    warm = write(tmp_path / "warm", encoder_tensors())
    script = MEASURE.format(
        tests=str(Path(__file__).parent),
        warm=str(warm),
        sites=TINY_SITES,
        loads=[(str(path), arguments) for path, arguments in loads],
    )
    # So that what one load leaves free is the system's again, and not what the next one takes unseen.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    rows = [line.split() for line in result.stdout.splitlines()]
    return [(int(peak), float(seconds)) for peak, seconds in rows]


BIG = Sizes(vision_dim=512, queries=2048, width=1024, depth=3, inner=1024)  # 160 MB in fp32
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures through /proc")


@needs_proc
def test_loading_takes_no_second_copy(tmp_path: Path) -> None:
    tensors = encoder_tensors(sizes=BIG)
    paths = [write(tmp_path / f"x{suffix}", tensors) for suffix in (".safetensors", ".bin")]
    sizes = [path.stat().st_size for path in paths for _ in range(2)]
    as_it_is = f"dict(sites={TINY_SITES!r})"
    cast = f"dict(sites={TINY_SITES!r}, dtype=torch.float16)"
    costs = cost_of_loading([(path, how) for path in paths for how in (as_it_is, cast)], tmp_path)
    assert min(sizes) > 150e6
    for (peak, _), size in zip(costs[0::2], sizes[0::2], strict=True):
        assert 0.9 * size < peak < 1.2 * size  # as it is: the file, once
    for (peak, _), size in zip(costs[1::2], sizes[1::2], strict=True):
        assert 0.5 * size < peak < 1.2 * size  # cast to half: at most the file, once
