"""The subject store: saved subjects in folders. Which there are, the file behind a name, and saving another.

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

from torch import Tensor

from ..errors import NestedAttentionError
from ..prompt import short
from ..subject import FORMAT, Subject
from .files import file_state, open_regular, take

SUFFIX = ".safetensors"
_HEADER_BYTES = 2**16  # a subject's header has a few hundred; a checkpoint's is not worth reading
_REFUSED = set('<>:"|?*')  # names that cannot be copied to every system, drives and streams included
_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, broken ones, and line ends, by Unicode category
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {  # on Windows, whatever follows a dot
    f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"
}
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
    """The saved subjects below one folder, looked for again once a folder or a file that may be one changed.

    ComfyUI asks for a node's options many times for one picture, from several threads, and an output folder
    may be large. States are taken before what they are of is read: what changes meanwhile shows next time.
    """

    def __init__(self) -> None:
        self._found: tuple[dict[str, tuple[int, ...]], list[Path]] | None = None

    def of(self, root: Path) -> list[Path]:
        found = self._found
        if found is None or {name: _changed(name) for name in found[0]} != found[0]:
            began = time.time_ns()
            states = {str(root): _changed(str(root))}
            seen: list[Path] = []
            for folder, subfolders, names in os.walk(root):
                subfolders[:] = [name for name in subfolders if _is_plain(name)]
                files = [os.path.join(folder, name) for name in names if name.endswith(SUFFIX)]
                below = [os.path.join(folder, name) for name in subfolders]
                states |= {path: _changed(path) for path in below + files}
                seen += map(Path, files)
            found = states, [path for path in sorted(seen) if is_subject(path) and _leads_inside(root, path)]
            # A change within the clock's grain of the last one would not show.
            last = max((time_ns for state in states.values() for time_ns in state[-2:]), default=0)
            self._found = found if last < began - 2 * 10**9 else None
        return found[1]


_listings: dict[Path, _Listing] = {}


def _changed(path: str) -> tuple[int, ...]:
    """What differs once a file was written to, or something put into or taken out of a folder; empty if it is
    gone."""
    try:
        return file_state(os.stat(path))
    except OSError:
        return ()


def find_subject(name: str, folders: Mapping[str, Path]) -> Path:
    """The file behind a name. Raises NestedAttentionError if there is none, or if it leads out of its
    folder."""
    _check_text(name)
    label, relative = next(iter(folders)), name
    for other in folders:
        if name.endswith(f" [{other}]"):
            label, relative = other, name[: -len(f" [{other}]")]
    path = inside(folders[label], relative)
    if not path.is_file():
        raise NestedAttentionError(
            f"there is no saved subject {short(relative)!r} in {folders[label]}. Save one with Save Subject, "
            "or put the file there, press R in the editor and choose it again"
        )
    return path


def save_subject(subject: Subject, prefix: str, folder: Path, *, thumbnail: Tensor | None = None) -> Path:
    """Save under the next free name that begins with `prefix`, and return it: nothing is ever overwritten, by
    however many threads and processes at once.

    prefix: the beginning of the file's name, with folders below `folder` before it if wanted; they are made
    if need be. %year%, %month%, %day%, %hour%, %minute% and %second% are filled in, and a number follows, as
    ComfyUI names pictures: `subjects/alice` → `subjects/alice_00001_.safetensors`. Raises
    NestedAttentionError for a prefix that leads out of `folder` or is too long, and for a folder that cannot
    be written to.
    """
    path = _take_name(prefix, folder)
    try:
        subject.save(path, thumbnail=thumbnail)
    except BaseException:
        path.unlink(missing_ok=True)  # nothing but the name
        raise
    return path


def _take_name(prefix: str, folder: Path) -> Path:
    """An empty file under the next free number."""
    _check_text(prefix)
    for token, code in _TOKENS.items():
        prefix = prefix.replace(f"%{token}%", time.strftime(code))
    start = inside(folder, prefix)
    try:
        start.parent.mkdir(parents=True, exist_ok=True)
        # More digits than anybody has saved would only make names longer and longer.
        numbered = re.compile(re.escape(start.name) + r"_([0-9]{1,15})_", re.IGNORECASE)
        taken = [int(match[1]) for name in os.listdir(start.parent) if (match := numbered.match(name))]
        number = max(taken, default=0) + 1
        while True:
            name = f"{start.name}_{number:05}_{SUFFIX}"
            if not _is_plain(name):  # it would be in the folder, and could not be chosen
                raise NestedAttentionError(
                    f"the filename prefix {short(prefix)!r} is too long: the file's name would have "
                    f"{len(name.encode())} bytes, expected at most {_LONGEST}"
                )
            if take(start.with_name(name)):
                return start.with_name(name)
            number += 1  # somebody was faster
    except OSError as error:
        raise NestedAttentionError(
            f"the folder {start.parent} cannot be used ({error.strerror or error}); check its permissions, "
            "or choose another filename prefix"
        ) from error


def inside(root: Path, relative: str) -> Path:
    """root / relative, with all links followed. Raises NestedAttentionError unless that lies below root."""
    parts = re.split(r"[/\\]", relative)
    if len(parts) > _DEEPEST or not all(map(_is_plain, parts)):
        raise NestedAttentionError(
            f"{short(relative)!r} is no name of a file below {root}: expected names of folders and a file "
            "with / between them, none of them .., a drive, or con or another device of Windows, and without "
            + " ".join(sorted(_REFUSED))
        )
    real = Path(os.path.realpath(root))
    path = Path(os.path.realpath(real.joinpath(*parts)))
    if not path.is_relative_to(real) or path == real:
        raise NestedAttentionError(
            f"{short(relative)!r} leads out of {root} by a link, to {path}; put the file itself there"
        )
    return path


def is_subject(path: Path) -> bool:
    """Whether a file says of itself that it is a saved subject. Reads its header only."""
    try:
        with open_regular(path) as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= _HEADER_BYTES:
                return False
            header = json.loads(file.read(length))
        return bool(header["__metadata__"]["format"] == FORMAT)
    # NestedAttentionError, of a file that cannot be opened, is a ValueError.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _check_text(name: object) -> None:
    if not isinstance(name, str):  # from a workflow in API format, which may hold anything
        raise NestedAttentionError(f"the name of a subject's file is {name!r:.40}; expected text")


def _is_plain(part: str) -> bool:
    """Whether it names one file or folder on every system, and a visible one."""
    if not part or len(part.encode(errors="replace")) > _LONGEST or part[0] == "." or part[-1] in ". ":
        return False
    if part.split(".")[0].rstrip().casefold() in _DEVICES:
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
