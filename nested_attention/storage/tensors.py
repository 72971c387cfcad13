"""Files of tensors: safetensors and PyTorch's own, told apart by their content, never by their name.

Nothing in a file is ever executed: PyTorch files are read with `weights_only=True` and nothing else.

Tensors are read into memory, not mapped to the file. A mapped file that is overwritten in place gives other
weights to an encoder that is in use, and one that is cut off ends the process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import NestedAttentionError
from .files import cannot_write, file_state, open_regular, replacing

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_NOT_TENSORS = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself; fetch it with `git lfs pull`",
    b"<!": "a web page; download the file itself, not the page that shows it",
    b"<html": "a web page; download the file itself, not the page that shows it",
}
_HEADER_BYTES = 100 * 10**6  # of a safetensors file, at most: the format's own limit
_LARGEST = 2**63 - 1  # of sizes and their products, as PyTorch counts
_DTYPES = {
    name: getattr(torch, torch_name)
    for name, torch_name in {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
        "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
        "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
        "BOOL": "bool", "C64": "complex64",
    }.items()
    if hasattr(torch, torch_name)  # some came late
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class TensorReader:
    """An open file of tensors. metadata: its text entries.

    read: name → tensor, of its own memory; each name once, since a PyTorch file's tensors are let go as they
    are read.
    """

    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    read: Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class TensorFile:
    """All tensors of a file, and its text metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: str | os.PathLike[str], *, safetensors_only: bool = False) -> TensorFile:
    """Everything in a file. Raises NestedAttentionError as `open_tensors` does."""
    with open_tensors(path, safetensors_only=safetensors_only) as file:
        return TensorFile({name: file.read(name) for name in file.specs}, dict(file.metadata))


def read_shapes(
    path: str | os.PathLike[str], *, safetensors_only: bool = False
) -> dict[str, tuple[int, ...]]:
    """The shapes in a file, without reading its tensors. Raises NestedAttentionError as `open_tensors`
    does."""
    with _opened(path, safetensors_only) as (file, kind), _naming_damage(path, kind):
        if kind == "safetensors":
            specs, _, _ = _read_header(file)
            return {name: spec.shape for name, spec in specs.items()}
        mapped = kind == "zip"  # files of before PyTorch 1.6 cannot be mapped
        content = torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
        return {name: tuple(tensor.shape) for name, tensor in _flatten(content)}


@contextlib.contextmanager
def open_tensors(
    path: str | os.PathLike[str], *, safetensors_only: bool = False, header_bytes: int = _HEADER_BYTES
) -> Iterator[TensorReader]:
    """A file of tensors to read one after the other, and only those that are wanted.

    safetensors_only: refuse PyTorch files, for content that was never written as one. header_bytes: of a
    safetensors file, at most; in memory a header may take twenty times as much. Raises
    NestedAttentionError if the file is missing, empty, damaged, no regular file or not a file of tensors, and
    when the block ends if the file was written to or replaced meanwhile.
    """
    with _opened(path, safetensors_only) as (file, kind):
        state = file_state(os.fstat(file.fileno()))
        with _naming_damage(path, kind):
            reader = _safetensors_reader(file, header_bytes) if kind == "safetensors" else _torch_reader(file)
        yield reader
        if file_state(os.fstat(file.fileno())) != state:
            raise _changed(path)


def _changed(path: object) -> NestedAttentionError:
    return NestedAttentionError(f"{path} was written to or replaced while it was read; load it again")


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], safetensors_only: bool) -> Iterator[tuple[BinaryIO, str]]:
    """The open file, and what it is by its first bytes: "safetensors", "zip" or "pickle"."""
    with open_regular(path) as file:
        head = file.read(64)
        if not head:
            raise NestedAttentionError(f"{path} is empty; download or save it again")
        # A safetensors file starts with the length of its header, which may look like another kind's first
        # bytes.
        is_safetensors = head[8:9] == b"{"
        for start, what in _NOT_TENSORS.items():
            if head.lower().startswith(start) and not is_safetensors:
                raise NestedAttentionError(f"{path} is {what}")
        kind = "safetensors"
        if not is_safetensors and not safetensors_only:
            kind = "zip" if head.startswith(_ZIP) else "pickle" if head.startswith(_PICKLE) else kind
        file.seek(0)
        if kind == "pickle" and tarfile.is_tarfile(file):
            # A form of before PyTorch 0.2, which PyTorch before 2.6 does not read safely with `weights_only`.
            raise NestedAttentionError(f"{path} is a tar archive; save the weights as safetensors")
        file.seek(0)
        yield file, kind


@contextlib.contextmanager
def _naming_damage(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    expected = "safetensors" if kind == "safetensors" else "a PyTorch file of tensors and nothing else"
    try:
        yield
    # Damaged files make the parsers raise almost anything, from KeyError to UnicodeDecodeError.
    except Exception as error:
        # PyTorch's own messages advise loading without weights_only, which would run code from the file.
        reason = f": {' '.join(str(error).split())[:200]}" if kind == "safetensors" else ""
        raise NestedAttentionError(
            f"{path} cannot be read as {expected} ({type(error).__name__}{reason}). It is damaged, "
            "incomplete or of another format; download or save it again"
        ) from error


def _safetensors_reader(file: BinaryIO, header_bytes: int) -> TensorReader:
    specs, places, metadata = _read_header(file, header_bytes)

    def read(name: str) -> Tensor:
        begin, end = places[name]
        content = torch.empty(end - begin, dtype=torch.uint8)
        file.seek(begin)
        if end > begin and file.readinto(content.numpy()) != end - begin:  # type: ignore[attr-defined]
            raise _changed(file.name)
        return content.view(specs[name].dtype).reshape(specs[name].shape)

    return TensorReader(specs, metadata, read)


def _read_header(
    file: BinaryIO, header_bytes: int = _HEADER_BYTES
) -> tuple[dict[str, TensorSpec], dict[str, tuple[int, int]], dict[str, str]]:
    """The tensors of a safetensors file, where each begins and ends in the file, and the metadata.

    The library that reads safetensors maps the file; its format is a length, a header in JSON, and the
    tensors' bytes. Raises ValueError, or what a wrong header makes Python raise, unless the tensors fill the
    rest of the file without a gap.
    """
    start = file.read(8)
    length = struct.unpack("<Q", start)[0]
    if length > header_bytes:
        raise ValueError(f"a header of {length} bytes, expected at most {header_bytes}")
    text = file.read(length)
    if len(text) != length:
        raise ValueError(f"a header of {length} bytes of which {len(text)} are there")
    header = json.loads(text)
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    specs, places = {}, {}
    for name, entry in header.items():
        shape, dtype, (begin, end) = entry["shape"], _DTYPES[entry["dtype"]], entry["data_offsets"]
        if not all(type(size) is int and size >= 0 for size in (*shape, begin, end)):
            raise ValueError(f"sizes that are no numbers at {name}")
        if math.prod(max(size, 1) for size in shape) > _LARGEST:
            raise ValueError(f"sizes that are too large at {name}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{end - begin} bytes for shape {tuple(shape)} of {dtype} at {name}")
        specs[name] = TensorSpec(tuple(shape), dtype)
        places[name] = (8 + length + begin, 8 + length + end)
    reached = 8 + length
    for begin, end in sorted(places.values()):
        if begin != reached:
            raise ValueError(f"a gap or an overlap at byte {reached}")
        reached = end
    size = os.fstat(file.fileno()).st_size
    if reached != size:
        raise ValueError(f"{reached} bytes by its header and {size} in the file")
    return specs, places, metadata


def _torch_reader(file: BinaryIO) -> TensorReader:
    tensors = dict(_flatten(torch.load(file, map_location="cpu", weights_only=True)))
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return TensorReader(specs, {}, tensors.pop)


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Nested dictionaries of tensors → dotted names; what is not a tensor (a step count) is left out."""
    if isinstance(content, Tensor):
        yield prefix, content.detach()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write safetensors so that the file is either the old or the new one in full, whatever happens.

    Raises NestedAttentionError if the folder does not exist or the file cannot be written.
    """
    path = Path(path)
    with replacing(path) as temporary:
        try:
            save_file(
                {k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, dict(metadata)
            )
        except SafetensorError as error:
            # It names a temporary file, which says nothing.
            raise cannot_write(path, str(error).split(" at path ")[0]) from error
