"""Subjects: weights, mixing, saving, and files that are not what they claim."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from synthetic_checkpoints import TINY_SITES

from nested_attention import __version__
from nested_attention.checkpoint import save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.storage.tensors import open_tensors
from nested_attention.subject import Subject
from nested_attention.subject_batch import padded_bias, padded_tokens

TOKENS = 6
CONFIG = SubjectEncoderConfig(
    vision_dim=12,
    token_dim=20,
    num_queries=TOKENS,
    width=16,
    depth=1,
    heads=2,
    head_dim=8,
    sites=TINY_SITES[:2],
)


@pytest.fixture(scope="module")
def encoder() -> SubjectEncoder:
    torch.manual_seed(0)
    return SubjectEncoder(CONFIG).eval()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def subject(encoder: SubjectEncoder, features: torch.Tensor) -> Subject:
    return Subject.from_images(encoder, features[:2], [1, 3])


def equal(a: Subject, b: Subject) -> bool:
    """Bit for bit, provenance included."""
    fields = ("word", "fingerprint", "images")
    same = all(getattr(a, name) == getattr(b, name) for name in fields)
    return same and torch.equal(a.tokens, b.tokens) and torch.equal(a.token_bias, b.token_bias)


def shares(subject: Subject, sizes: list[int]) -> list[float]:
    """What part of the attention each group of tokens gets when all logits are equal."""
    weights = subject.token_bias.double().softmax(0)
    return [float(part.sum()) for part in weights.split(sizes)]


# From images


def test_one_image(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    subject = Subject.from_images(encoder, features[:1])
    assert torch.equal(subject.tokens, encoder(features[:1])[0])
    assert torch.equal(subject.token_bias, torch.zeros(TOKENS))
    assert (subject.word, subject.fingerprint, subject.images) == ("person", encoder.fingerprint, 1)
    assert not subject.tokens.requires_grad


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.3, 0.3, 0.3], torch.full((3,), 7.0), [1e-300] * 3])
def test_equal_weights_are_the_concatenation_bit_for_bit(
    encoder: SubjectEncoder, features: torch.Tensor, weights: list[float] | None
) -> None:
    subject = Subject.from_images(encoder, features[:3], weights)
    singles = [Subject.from_images(encoder, image[None]) for image in features[:3]]
    assert torch.equal(subject.tokens, torch.cat([single.tokens for single in singles]))
    assert torch.equal(subject.token_bias, torch.zeros(3 * TOKENS))
    assert subject.images == 3


def test_weights_are_each_images_share(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    subject = Subject.from_images(encoder, features[:3], [1, 2, 5])
    assert shares(subject, [TOKENS] * 3) == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    scaled = Subject.from_images(encoder, features[:3], [10, 20, 50])
    torch.testing.assert_close(scaled.token_bias, subject.token_bias)


def test_an_image_of_weight_zero_is_removed_exactly(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    with_zero = Subject.from_images(encoder, features[:3], [2, 0, 3])
    assert equal(with_zero, Subject.from_images(encoder, features[[0, 2]], [2, 3]))


def test_weights_of_any_ratio_stay_finite(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    subject = Subject.from_images(encoder, features[:2], [5e-324, 1e308])
    assert torch.isfinite(subject.token_bias).all()
    assert shares(subject, [TOKENS] * 2) == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "1 weights for 2 images"),
        ([1, 1, 1], "3 weights for 2 images"),
        ([0, 0], "at least one above 0"),
        ([1, -1], "≥ 0"),
        ([1, math.nan], "≥ 0"),
        ([1, math.inf], "≥ 0"),
    ],
)
def test_unusable_weights_are_refused(
    encoder: SubjectEncoder, features: torch.Tensor, weights: list[float], message: str
) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        Subject.from_images(encoder, features[:2], weights)


def test_features_are_checked_even_in_training(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    torch.manual_seed(0)
    training = SubjectEncoder(CONFIG)
    with pytest.raises(NestedAttentionError, match="NaN"):
        Subject.from_images(training, features * math.nan)
    with pytest.raises(NestedAttentionError, match="expects"):
        Subject.from_images(training, features[0])
    assert equal(Subject.from_images(training, features), Subject.from_images(encoder, features))


def test_a_subject_is_immutable(subject: Subject) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        subject.word = "pet"  # type: ignore[misc]


# Mixing


def test_half_is_the_concatenation(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    a, b = (Subject.from_images(encoder, image[None]) for image in features[:2])
    assert equal(a.mix(b, 0.5), Subject.from_images(encoder, features[:2]))


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.75])
def test_mixing_two_is_weighting_two_images(
    encoder: SubjectEncoder, features: torch.Tensor, weight: float
) -> None:
    a, b = (Subject.from_images(encoder, image[None]) for image in features[:2])
    expected = Subject.from_images(encoder, features[:2], [1 - weight, weight])
    mixed = a.mix(b, weight)
    assert torch.equal(mixed.tokens, expected.tokens)
    torch.testing.assert_close(mixed.token_bias, expected.token_bias)
    assert shares(mixed, [TOKENS] * 2) == pytest.approx([1 - weight, weight])


def test_a_side_of_weight_zero_is_dropped(encoder: SubjectEncoder, features: torch.Tensor) -> None:
    a = Subject.from_images(encoder, features[:2], [1, 3])
    b = Subject.from_images(encoder, features[2:])
    assert equal(a.mix(b, 0), a)
    assert equal(a.mix(b, 1), b)


def test_half_is_the_concatenation_whatever_the_sizes(
    encoder: SubjectEncoder, features: torch.Tensor
) -> None:
    """Three weighted pictures of one person and one of another: equal weights change nothing."""
    a = Subject.from_images(encoder, features[:3], [1, 2, 2])
    b = Subject.from_images(encoder, features[3:])
    mixed = a.mix(b, 0.5)
    assert torch.equal(mixed.tokens, torch.cat((a.tokens, b.tokens)))
    assert torch.equal(mixed.token_bias, torch.cat((a.token_bias, b.token_bias)))
    assert mixed.images == 4


@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_mixing_weighs_the_pictures_of_each_side(
    encoder: SubjectEncoder, features: torch.Tensor, weight: float
) -> None:
    a = Subject.from_images(encoder, features[:3], [1, 2, 2])
    b = Subject.from_images(encoder, features[3:])
    weights = [(1 - weight) * 0.5, 1 - weight, 1 - weight, weight]
    expected = [w / sum(weights) for w in weights]
    assert shares(a.mix(b, weight), [TOKENS] * 4) == pytest.approx(expected)
    assert shares(b.mix(a, 1 - weight), [TOKENS] * 4) == pytest.approx([expected[-1], *expected[:-1]])


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    weight=st.floats(0, 1),
    bias=st.floats(-5, 0),
)
def test_mixing_weighs_and_normalises(sizes: tuple[int, int], weight: float, bias: float) -> None:
    first = torch.zeros(sizes[0])
    first[1:] = bias
    a = Subject(torch.ones(sizes[0], 4), first, "person", "f")
    b = Subject(torch.ones(sizes[1], 4), torch.zeros(sizes[1]), "person", "f")
    mixed = a.mix(b, weight)
    assert mixed.token_bias.dtype == torch.float32
    assert float(mixed.token_bias.max()) == 0
    if 0 < weight < 1:
        mass = [(1 - weight) * float(first.exp().sum()), weight * sizes[1]]
        expected = [part / sum(mass) for part in mass]
        assert shares(mixed, list(sizes)) == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_where_its_first_subject_is() -> None:
    """The meta device, which no Subject can be on, stands for another one."""
    longer = SimpleNamespace(tokens=torch.ones(20, 20), token_bias=torch.zeros(20))
    there = SimpleNamespace(**{name: x[:12].to("meta") for name, x in vars(longer).items()})
    for read, shape in ((padded_tokens, (2, 20, 20)), (padded_bias, (2, 20))):
        assert read([there, longer]).device.type == "meta"
        assert read([there, longer]).shape == shape


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf])
def test_weights_outside_the_unit_interval_are_refused(subject: Subject, weight: float) -> None:
    with pytest.raises(NestedAttentionError, match="0 to 1"):
        subject.mix(subject, weight)


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_subjects_of_different_encoders_do_not_mix(
    subject: Subject, features: torch.Tensor, weight: float
) -> None:
    torch.manual_seed(9)
    foreign = Subject.from_images(SubjectEncoder(CONFIG).eval(), features[:1])
    with pytest.raises(NestedAttentionError, match=f"{subject.fingerprint} and {foreign.fingerprint}"):
        subject.mix(foreign, weight)


def test_check_encoder(encoder: SubjectEncoder, subject: Subject) -> None:
    subject.check_encoder(encoder)
    torch.manual_seed(9)
    other = SubjectEncoder(dataclasses.replace(CONFIG, word="pet")).eval()
    with pytest.raises(NestedAttentionError) as error:
        subject.check_encoder(other)
    for part in (subject.fingerprint, other.fingerprint, "person", "pet", "encode its pictures again"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": torch.zeros(12)},
        {"tokens": torch.zeros(0, 20)},
        {"tokens": torch.zeros(12, 20, dtype=torch.int32)},
        {"tokens": torch.full((12, 20), math.nan)},
        {"token_bias": torch.zeros(11)},
        {"token_bias": torch.full((12,), -math.inf)},
        {"token_bias": torch.full((12,), math.inf)},
        {"token_bias": torch.full((12,), math.nan)},
        {"word": ""},
        {"fingerprint": ""},
        {"images": 0},
        {"images": True},
    ],
)
def test_impossible_subjects_are_refused(subject: Subject, change: dict[str, object]) -> None:
    with pytest.raises(NestedAttentionError, match="subject"):
        dataclasses.replace(subject, **change)


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_save_and_load(subject: Subject, tmp_path: Path, dtype: torch.dtype) -> None:
    saved = dataclasses.replace(subject, tokens=subject.tokens.to(dtype), word="Alice 木")
    path = tmp_path / "alice"
    saved.save(path)
    loaded = Subject.load(path)
    assert equal(loaded, saved)
    assert loaded.tokens.dtype == dtype
    path.write_bytes(b"")  # the loaded subject does not depend on the file any longer
    assert equal(loaded, saved)


def test_a_removed_token_survives_saving(subject: Subject, tmp_path: Path) -> None:
    bias = subject.token_bias.clone()
    bias[0] = -math.inf
    removed = dataclasses.replace(subject, token_bias=bias)
    removed.save(tmp_path / "s")
    assert equal(Subject.load(tmp_path / "s"), removed)


def test_provenance_and_nothing_else_is_saved(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "holiday-photo-of-alice.safetensors"
    subject.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"tokens", "token_bias"}
    digest = metadata.pop("digest")
    assert re.fullmatch("[0-9a-f]{32}", digest)
    assert metadata == {
        "format": "nested_attention.subject",
        "format_version": "1",
        "word": "person",
        "fingerprint": subject.fingerprint,
        "images": "2",
        "library_version": __version__,
    }
    content = path.read_bytes()
    assert b"alice" not in content
    assert os.fsencode(tmp_path) not in content


def test_saving_replaces_in_one_step_and_leaves_nothing_behind(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    subject.save(path)
    other = dataclasses.replace(subject, tokens=subject.tokens + 1)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(NestedAttentionError, match="no space left"):
            other.save(path)
    assert os.listdir(tmp_path) == ["s.safetensors"]
    assert equal(Subject.load(path), subject)
    other.save(path)
    assert os.listdir(tmp_path) == ["s.safetensors"]
    assert equal(Subject.load(path), other)


def test_saving_where_one_cannot(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(NestedAttentionError, match="no folder"):
        subject.save(tmp_path / "missing" / "s.safetensors")
    with pytest.raises(NestedAttentionError, match="is a folder"):
        subject.save(tmp_path)


def test_a_checkpoint_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gigabytes are not read for it."""
    from nested_attention import subject as module

    path = tmp_path / "checkpoint.safetensors"
    save_file({"tokens": torch.zeros(2, 2), "token_bias": torch.zeros(2)}, path, {"format": "pt"})

    @contextlib.contextmanager
    def header_only(*given: Any, **more: Any) -> Iterator[Any]:
        with open_tensors(*given, **more) as file:
            yield dataclasses.replace(file, read=lambda name: pytest.fail(f"{name} was read"))

    monkeypatch.setattr(module, "open_tensors", header_only)
    with pytest.raises(NestedAttentionError, match="not a saved subject: found pt"):
        Subject.load(path)


def test_loading_what_is_not_there_or_no_subject(
    subject: Subject, encoder: SubjectEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    for broken, message in [
        (path, "no file"),
        (tmp_path, "cannot be opened"),
        ("null\0character", "cannot be opened"),
    ]:
        with pytest.raises(NestedAttentionError, match=message):
            Subject.load(broken)
    for content, message in [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read as safetensors"),
        (b"PK\x03\x04" + bytes(40), "cannot be read as safetensors"),
        (b"\x80\x02c__builtin__\neval\n", "cannot be read as safetensors"),
    ]:
        path.write_bytes(content)
        with pytest.raises(NestedAttentionError, match=message):
            Subject.load(path)
    save_subject_encoder(encoder, path)
    with pytest.raises(NestedAttentionError, match="not a saved subject.*subject_encoder"):
        Subject.load(path)
    save_file({"tokens": subject.tokens}, path)
    with pytest.raises(NestedAttentionError, match="not a saved subject.*tokens"):
        Subject.load(path)
    save_file({"tokens": subject.tokens}, path, {"format": "nested_attention.subject", "format_version": "7"})
    with pytest.raises(NestedAttentionError, match="version 7.*Update"):
        Subject.load(path)
    save_file({"tokens": subject.tokens}, path, {"format": "nested_attention.subject", "format_version": "1"})
    with pytest.raises(NestedAttentionError, match="not a complete subject"):
        Subject.load(path)


def forged(path: Path, header: dict[str, Any], rest: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    return path


@pytest.mark.parametrize("shape", [[0, 2**70], [0, 2**63 - 1, 2], [2**62, 2**62, 0]])
def test_sizes_that_no_tensor_has_are_refused(tmp_path: Path, shape: list[int]) -> None:
    metadata = dict.fromkeys(("word", "fingerprint", "images", "library_version", "digest"), "1")
    header = {
        "__metadata__": {"format": "nested_attention.subject", "format_version": "1", **metadata},
        "tokens": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]},
        "token_bias": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
    }
    with pytest.raises(NestedAttentionError, match="sizes that are too large at tokens"):
        Subject.load(forged(tmp_path / "x.safetensors", header))


def test_a_large_header_is_no_subjects(tmp_path: Path) -> None:
    """Read, it would take twenty times as much memory."""
    path = forged(tmp_path / "x.safetensors", {"x" * 2**20: {}})
    with pytest.raises(NestedAttentionError, match="a header of .* bytes, expected at most 1048576"):
        Subject.load(path)


def saved_bytes(directory: Path) -> bytes:
    torch.manual_seed(4)
    subject = Subject(torch.randn(4, 8), torch.zeros(4), "person", "0123456789abcdef" * 2, 2)
    subject.save(directory / "base")
    return (directory / "base").read_bytes()


def assert_refused_or_unchanged(path: Path, original: bytes, tmp_path: Path) -> None:
    """Only a change without meaning, such as another blank in the header, may pass."""
    (tmp_path / "original").write_bytes(original)
    try:
        loaded = Subject.load(path)
    except NestedAttentionError:
        return
    assert equal(loaded, Subject.load(tmp_path / "original"))


FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_a_mutated_file_is_refused_and_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, inserted, removed or cut anywhere: our error, unless the change undid itself."""
    original = saved_bytes(tmp_path)
    content = bytearray(original)
    header = struct.unpack("<Q", content[:8])[0] + 8
    for _ in range(data.draw(st.integers(1, 3))):
        # Headers and bodies alike: most of the file is header.
        start = data.draw(st.sampled_from([0, 8, header]))
        place = min(start + data.draw(st.integers(0, 400)), len(content) - 1)
        kind = data.draw(st.sampled_from(["set", "flip", "insert", "delete", "cut"]))
        if kind == "set":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del content[place : place + data.draw(st.integers(1, 9))]
        else:
            del content[max(place, 1) :]
    path = tmp_path / "mutated"
    path.write_bytes(content)
    assert_refused_or_unchanged(path, original, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
METADATA_KEYS = ["format", "format_version", "word", "fingerprint", "images", "library_version", "digest"]


@settings(FUZZ, max_examples=300)
@given(data=st.data())
def test_a_rewritten_header_is_refused_and_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    """Valid JSON with other values: metadata of another kind, impossible shapes, offsets and dtypes."""
    content = saved_bytes(tmp_path)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    where = data.draw(st.sampled_from(["metadata", "tensor", "top"]))
    if where == "metadata":
        key = data.draw(st.sampled_from(METADATA_KEYS))
        value = data.draw(JSON | st.text() | st.integers().map(str))
        header["__metadata__"][key] = value
    elif where == "tensor":
        name = data.draw(st.sampled_from(["tokens", "token_bias"]))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        names = ["F64", "F16", "BF16", "I32", "BOOL", "F8_E4M3", "F8_E5M2", "U8", "C64", "F4", "X"]
        dtypes = st.sampled_from(names)
        numbers = st.lists(st.integers(0, 2**64), max_size=3) | st.lists(st.integers(0, 300), max_size=3)
        header[name][field] = data.draw({"dtype": dtypes}.get(field, numbers) | JSON)
    else:
        header[data.draw(st.text(max_size=5))] = data.draw(JSON)
    rewritten = json.dumps(header).encode()
    rewritten += b" " * (-len(rewritten) % 8)
    path = tmp_path / "rewritten"
    path.write_bytes(struct.pack("<Q", len(rewritten)) + rewritten + content[8 + length :])
    assert_refused_or_unchanged(path, content, tmp_path)
