"""Saved subjects in folders: which there are, the file behind a name, and the file a new one goes to.

A name is a path below one of a few folders, with the folder's label behind it unless it is the first one, as
ComfyUI writes it: `alice.safetensors`, `subjects/alice_00001_.safetensors [output]`. Names come from
workflows, which come from anywhere, so no name leads out of its folder: not by `..`, not by an absolute path
or a drive, and not by a link.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from unicodedata import category

from ..errors import NestedAttentionError
from ..subject import FORMAT

SUFFIX = ".safetensors"
_HEADER_BYTES = 2**16  # a subject's header has a few hundred; a checkpoint's is not worth reading
_REFUSED = set('<>:"|?*')  # names that cannot be copied to every system, drives and streams included
_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, broken ones, and line ends, by Unicode category
_LONGEST, _DEEPEST = 120, 16  # bytes of one part of a name, parts of a name
_TOKENS = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}


def list_subjects(folders: Mapping[str, Path]) -> list[str]:
    """Names of the saved subjects below the folders (label → folder), told by their content."""
    return [
        _name(path.relative_to(root).as_posix(), label, folders)
        for label, root in folders.items()
        for path in _listings.setdefault(root, _Listing()).of(root)
    ]


class _Listing:
    """The saved subjects below one folder, looked for again once a folder below it has changed.

    ComfyUI asks for a node's options many times for one picture, and an output folder may be large.
    """

    def __init__(self) -> None:
        self._found: tuple[dict[str, int], list[Path]] | None = None

    def of(self, root: Path) -> list[Path]:
        if self._found is None or {name: _changed(name) for name in self._found[0]} != self._found[0]:
            folders: dict[str, int] = {}
            seen: list[Path] = []
            for folder, subfolders, names in os.walk(root):
                subfolders[:] = [name for name in subfolders if _is_plain(name)]
                folders[folder] = _changed(folder)
                seen += [Path(folder, name) for name in names if name.endswith(SUFFIX)]
            files = [path for path in sorted(seen) if is_subject(path) and _leads_inside(root, path)]
            # A change within the clock's grain of the last one would not show.
            settled = max(folders.values(), default=0) < time.time_ns() - 2 * 10**9
            self._found = (folders, files) if settled and folders else None
            return files
        return self._found[1]


_listings: dict[Path, _Listing] = {}


def _changed(folder: str) -> int:
    """When something was last put into or taken out of a folder, in ns; -1 if it is gone."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def find_subject(name: str, folders: Mapping[str, Path]) -> Path:
    """The file behind a name. Raises NestedAttentionError if there is none, or if it leads out of its
    folder."""
    label, relative = next(iter(folders)), name
    for other in folders:
        if name.endswith(f" [{other}]"):
            label, relative = other, name[: -len(f" [{other}]")]
    path = inside(folders[label], relative)
    if not path.is_file():
        raise NestedAttentionError(
            f"there is no saved subject {relative!r} in {folders[label]}. Save one with Save Subject, or put "
            "the file there, press R in the editor and choose it again"
        )
    return path


def new_file(prefix: str, folder: Path) -> Path:
    """The file that the next subject saved under `prefix` goes to; its folder is made if need be.

    prefix: the beginning of the file's name, with folders below `folder` before it if wanted. %year%,
    %month%, %day%, %hour%, %minute% and %second% are filled in, and a number follows, as ComfyUI names
    pictures: `subjects/alice` → `subjects/alice_00001_.safetensors`. Raises NestedAttentionError for a prefix
    that leads out of `folder`, and for a folder that cannot be made.
    """
    for token, code in _TOKENS.items():
        prefix = prefix.replace(f"%{token}%", time.strftime(code))
    start = inside(folder, prefix)
    try:
        start.parent.mkdir(parents=True, exist_ok=True)
        taken = os.listdir(start.parent)
    except OSError as error:
        raise NestedAttentionError(
            f"the folder {start.parent} cannot be used ({error}); check its permissions, or choose another "
            "filename prefix"
        ) from error
    numbered = re.compile(re.escape(start.name) + r"_(\d{1,9})_", re.IGNORECASE)
    numbers = [int(match[1]) for name in taken if (match := numbered.match(name))]
    return start.with_name(f"{start.name}_{max(numbers, default=0) + 1:05}_{SUFFIX}")


def inside(root: Path, relative: str) -> Path:
    """root / relative, with all links followed. Raises NestedAttentionError unless that lies below root."""
    parts = re.split(r"[/\\]", relative)
    if len(parts) > _DEEPEST or not all(map(_is_plain, parts)):
        raise NestedAttentionError(
            f"{relative!r} is no name of a file below {root}: expected names of folders and a file with / "
            "between them, without .. and without a drive or any of " + " ".join(sorted(_REFUSED))
        )
    real = Path(os.path.realpath(root))
    path = Path(os.path.realpath(real.joinpath(*parts)))
    if not path.is_relative_to(real) or path == real:
        raise NestedAttentionError(
            f"{relative!r} leads out of {root} by a link, to {path}; put the file itself there"
        )
    return path


def is_subject(path: Path) -> bool:
    """Whether a file says of itself that it is a saved subject. Reads its header only."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= _HEADER_BYTES:
                return False
            header = json.loads(file.read(length))
        return bool(header["__metadata__"]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_plain(part: str) -> bool:
    """Whether it names one file or folder on every system, and a visible one."""
    if not part or len(part.encode(errors="replace")) > _LONGEST or part[0] == "." or part[-1] in ". ":
        return False
    return not any(letter in _REFUSED or category(letter) in _INVISIBLE for letter in part)


def _leads_inside(root: Path, path: Path) -> bool:
    try:
        inside(root, path.relative_to(root).as_posix())
    except NestedAttentionError:
        return False
    return True


def _name(relative: str, label: str, folders: Mapping[str, Path]) -> str:
    return relative if label == next(iter(folders)) else f"{relative} [{label}]"
