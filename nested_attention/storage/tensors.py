"""Files of tensors: safetensors and PyTorch's own, told apart by their content, never by their name.

Nothing in a file is ever executed: PyTorch files are read with `weights_only=True` and nothing else.
"""

from __future__ import annotations

import os
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import NestedAttentionError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_NOT_TENSORS = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself; fetch it with `git lfs pull`",
    b"<!": "a web page; download the file itself, not the page that shows it",
    b"<html": "a web page; download the file itself, not the page that shows it",
}


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The tensors of a file, mapped into memory (pages are read when used), and its text metadata.

    mapped: False where the format cannot be mapped, and all of it was read. state: tells another file of that
    name from this one.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    mapped: bool
    state: tuple[int, ...]


def read_tensors(path: str | os.PathLike[str], *, safetensors_only: bool = False) -> TensorFile:
    """Raises NestedAttentionError if the file is missing, empty, damaged, or not a file of tensors.

    safetensors_only: refuse PyTorch files, for content that was never written as one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head, state = file.read(64), _state(os.fstat(file.fileno()))
    except FileNotFoundError as error:
        raise NestedAttentionError(f"there is no file {path}; check the name and the folder") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise NestedAttentionError(f"{path} cannot be opened ({error}); expected a readable file") from error
    if not head:
        raise NestedAttentionError(f"{path} is empty; download or save it again")
    # A safetensors file starts with the length of its header, which may look like another kind's first bytes.
    is_safetensors = head[8:9] == b"{"
    for start, what in _NOT_TENSORS.items():
        if head.lower().startswith(start) and not is_safetensors:
            raise NestedAttentionError(f"{path} is {what}")
    is_torch = head.startswith((_ZIP, _PICKLE)) and not is_safetensors and not safetensors_only
    if is_torch and not head.startswith(_ZIP) and tarfile.is_tarfile(path):
        # A form of before PyTorch 0.2, which PyTorch before 2.6 does not read safely with `weights_only`.
        raise NestedAttentionError(f"{path} is a tar archive; save the weights as safetensors")
    kind = "a PyTorch file of tensors and nothing else" if is_torch else "safetensors"
    mapped = not is_torch or head.startswith(_ZIP)  # files of before PyTorch 1.6 cannot be mapped
    try:
        tensors, metadata = (_read_torch(path, mapped), {}) if is_torch else _read_safetensors(path)
    # Damaged files make the parsers raise almost anything, from KeyError to UnicodeDecodeError.
    except Exception as error:
        # PyTorch's own messages advise loading without weights_only, which would run code from the file.
        reason = "" if is_torch else ": " + " ".join(str(error).split())[:200]
        raise NestedAttentionError(
            f"{path} cannot be read as {kind} ({type(error).__name__}{reason}). It is damaged, incomplete or "
            "of another format; download or save it again"
        ) from error
    return TensorFile(path, tensors, metadata, mapped, state)


def map_anew(file: TensorFile) -> TensorFile:
    """The same file with none of its pages read: those that were are let go with the tensors of `file`, which
    is empty from here on. A file that cannot be mapped comes back as it is.

    Raises NestedAttentionError if there is another file of that name by now.
    """
    if not file.mapped:
        return file
    file.tensors.clear()
    again = read_tensors(file.path)
    if again.state != file.state:
        raise NestedAttentionError("it was replaced while it was read; load it again")
    return again


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt") as handle:
        names = handle.keys()
        return {name: handle.get_tensor(name) for name in names}, handle.metadata() or {}


def _read_torch(path: Path, mapped: bool) -> dict[str, Tensor]:
    content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    return dict(_flatten(content))


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
    if not path.parent.is_dir():
        raise NestedAttentionError(
            f"{path} cannot be written: there is no folder {path.parent}; create it first"
        )
    if path.is_dir():
        raise NestedAttentionError(f"{path} cannot be written: it is a folder; expected a file name")
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # the same folder, hence the same file system
    try:
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, dict(metadata))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise NestedAttentionError(
            f"{path} cannot be written ({error}); check space and permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
