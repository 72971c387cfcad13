"""Subject encoders on disk: our own layout, the official release's and IP-Adapter Plus (SDXL)'s.

What a file is, is decided by its content: the container by its first bytes, the layout by its metadata (ours)
or by its tensors (`storage/layouts.py`). Tensors are read one after the other: beside the encoder's own
weights, loading takes the memory of the largest of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__, subject
from .card import EncoderCard
from .encoder import SubjectEncoder, SubjectEncoderConfig, weight_digests
from .errors import NestedAttentionError
from .storage.layouts import Layout, recognise
from .storage.tensors import TensorReader, TensorSpec, open_tensors, write_tensors

FORMAT, FORMAT_VERSION = "nested_attention.subject_encoder", "1"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_subject_encoder(
    path: str | os.PathLike[str],
    *,
    operations: Any = nn,
    dtype: torch.dtype | None = None,
    ignore_unexpected: bool = False,
    **overrides: Any,
) -> SubjectEncoder:
    """The encoder in a file, in evaluation mode and on the CPU.

    operations: namespace of layers (SubjectEncoder). dtype: of the weights; None keeps the file's, or the
    widest of them if it mixes several. ignore_unexpected: use a file of a foreign layout in spite of tensors
    that are not understood.

    overrides: fields of SubjectEncoderConfig. In a file of a foreign layout they fill in what shapes cannot
    tell; the defaults are the sites of SDXL base, Q-Former heads of size 64, the word "person", alpha 2, norm
    "inner", and "penultimate_hidden_states" as features for 16 queries (IP-Adapter Plus), otherwise
    "last_hidden_state" (the paper).

    Raises NestedAttentionError for a missing or damaged file and for an architecture that does not fit,
    saying what was found and what was expected.
    """
    known = {field.name for field in dataclasses.fields(SubjectEncoderConfig)}
    if set(overrides) - known:
        raise NestedAttentionError(
            f"unknown overrides {sorted(set(overrides) - known)}; expected some of {sorted(known)}"
        )
    with open_tensors(path) as file, _naming(path):
        layout = _find_layout(file, overrides, ignore_unexpected)
        dtype = _choose_dtype(layout, file.specs, dtype)
        weights, digests = _read_weights(file, layout, dtype)
    with _naming(path):
        if file.metadata.get("format") == FORMAT and file.metadata.get("checksum") != _checksum(digests):
            raise NestedAttentionError("its weights are not those that were saved; the file is damaged")
    return SubjectEncoder.from_weights(layout.config, weights, digests, operations=operations)


def read_card(path: str | os.PathLike[str]) -> EncoderCard:
    """What an encoder's file says of itself; an empty card for every other file, whatever it is."""
    try:
        with open_tensors(path, safetensors_only=True) as file:  # whose metadata is read without its tensors
            return EncoderCard.from_metadata(file.metadata)
    except NestedAttentionError:
        return EncoderCard()


def read_encoder_config(path: str | os.PathLike[str]) -> SubjectEncoderConfig:
    """What `load_subject_encoder` would build of a file, from its header alone.

    Raises NestedAttentionError as it does, for what the header shows.
    """
    with open_tensors(path) as file, _naming(path):
        return _find_layout(file, {}, ignore_unexpected=False).config


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{path} is not a usable subject encoder: {error}") from error


def save_subject_encoder(
    encoder: SubjectEncoder,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    card: EncoderCard | None = None,
) -> None:
    """Write an encoder in our layout: its state dict, and its configuration and card in the metadata.

    dtype: of the stored weights; None keeps the encoder's. The file is replaced in one step. Raises
    NestedAttentionError if it cannot be written.
    """
    state = encoder.state_dict()
    weights = {name: tensor.to(dtype=dtype or tensor.dtype) for name, tensor in state.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "config": encoder.config.to_json(),
        "checksum": _checksum(weight_digests(weights.items())),
        "card": (card or EncoderCard()).to_json(),
    }
    write_tensors(path, weights, metadata)


def _find_layout(file: TensorReader, overrides: Mapping[str, Any], ignore_unexpected: bool) -> Layout:
    shapes = {name: spec.shape for name, spec in file.specs.items()}
    kind = file.metadata.get("format")
    if kind == subject.FORMAT:
        raise NestedAttentionError("it is a saved subject; load it as a subject, and its encoder here")
    if kind == FORMAT:
        config = dataclasses.replace(_read_config(file), **overrides)
        layout = Layout(config, {name: name for name in shapes})
    elif any(re.fullmatch(r"projections\.\w+-[\w-]+\.to_key\.weight", name) for name in shapes):
        raise NestedAttentionError(
            "its tensors are those of our own layout, but its metadata is gone, and with it the "
            "configuration; use the original file, not one that another tool saved again"
        )
    else:
        layout = recognise(shapes, overrides, ignore_unexpected=ignore_unexpected)
    _check_shapes(layout, shapes)
    return layout


def _read_config(file: TensorReader) -> SubjectEncoderConfig:
    version = file.metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise NestedAttentionError(
            f"format version {version}; this library reads version {FORMAT_VERSION}. Update Nested Attention"
        )
    if "config" not in file.metadata:
        raise NestedAttentionError("its metadata has no configuration; expected an entry 'config'")
    config = SubjectEncoderConfig.from_json(file.metadata["config"])
    if max(config.depth, len(config.sites)) > len(file.specs):
        raise NestedAttentionError(
            f"its configuration has {config.depth} Q-Former layers and {len(config.sites)} sites; found only "
            f"{len(file.specs)} tensors"
        )
    return config


def _check_shapes(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare with the architecture as torch.nn builds it (other operations may create weights lazily)."""
    with torch.device("meta"):
        reference = SubjectEncoder(layout.config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in reference.items()}
    missing = [name for name in expected if name not in layout.names]
    unexpected = [layout.names[name] for name in layout.names if name not in expected]
    for what, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            raise NestedAttentionError(
                f"it {what} {len(names)} tensors of {len(expected)}, the first is {names[0]}"
            )
    for name, shape in expected.items():
        found = shapes[layout.names[name]]
        if found != shape:
            raise NestedAttentionError(f"{layout.names[name]} has shape {found}; expected {shape}")


def _choose_dtype(layout: Layout, specs: Mapping[str, TensorSpec], dtype: torch.dtype | None) -> torch.dtype:
    found = {specs[name].dtype for name in layout.names.values()}
    integral = [d for d in found if not d.is_floating_point]
    if integral:
        raise NestedAttentionError(
            f"its weights are stored as {integral[0]}; expected a floating-point dtype"
        )
    if dtype is not None:
        return dtype
    if not found <= set(_DTYPES):
        raise NestedAttentionError(
            f"its weights are stored as {sorted(map(str, found))}, in which they cannot be used; save "
            "them as fp16 or, in Python, give load_subject_encoder a dtype="
        )
    widest = torch.float16 if torch.float16 in found else torch.bfloat16
    for other in found:
        widest = torch.promote_types(widest, other)
    return widest


def _read_weights(
    file: TensorReader, layout: Layout, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights as `dtype` by their names in SubjectEncoder, and their digests as they are stored."""
    weights: dict[str, Tensor] = {}

    def stored() -> Iterator[tuple[str, Tensor]]:
        for name, name_in_file in layout.names.items():
            tensor = file.read(name_in_file)
            # NaN propagates through both; unlike isfinite they need no copy. fp8 has neither.
            extremes = torch.aminmax(tensor.half() if tensor.element_size() < 2 else tensor)
            if not all(map(math.isfinite, map(float, extremes))):
                raise NestedAttentionError(f"{name_in_file} contains NaN or infinite values; it is damaged")
            weights[name] = tensor.to(dtype)
            yield name, tensor

    return weights, weight_digests(stored())


def _checksum(digests: Mapping[str, str]) -> str:
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16).hexdigest()
