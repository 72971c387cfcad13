"""Files, whatever is in them: only regular ones are opened, and a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import NestedAttentionError
from ..prompt import short

_PREFIX, _SUFFIX = ".nested-attention-", ".tmp"
_TEMPORARY = re.compile(rf"{re.escape(_PREFIX)}\w+{re.escape(_SUFFIX)}")
_OLD_S = 24 * 60 * 60  # what has not changed for so long was left by a process that was killed
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file for reading. Never waits: a named pipe without a writer would block for ever, and with it the
    whole server.

    Raises NestedAttentionError if there is no such file, if it cannot be opened, or if it is a folder, a
    pipe, a device or a socket.
    """
    try:
        _check_regular(path, os.stat(path))  # before opening: a device may act on being opened
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  the caller closes it
    except FileNotFoundError as error:
        raise NestedAttentionError(f"there is no file {path}; check the name and the folder") from error
    except (OSError, ValueError) as error:  # ValueError: a null character or half a character in the name
        raise NestedAttentionError(
            f"{short(str(path), 400)} cannot be opened ({_reason(error)}); expected a readable file"
        ) from error
    try:
        _check_regular(path, os.fstat(file.fileno()))  # it may have been exchanged in between
    except NestedAttentionError:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise NestedAttentionError(f"{path} cannot be opened: it is {what}; expected a file")


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of what an open file still holds, in hexadecimal digits."""
    digest = hashlib.sha256()
    while block := file.read(2**22):
        digest.update(block)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """`sha256_of` a file that is ours."""
    with path.open("rb") as file:
        return sha256_of(file)


def file_state(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file or a folder is replaced or written to, its size and time restored or not."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to. What is there becomes `path`, in one step, when the block ends without an error, so
    that `path` is either the old file or the new one in full, whatever happens.

    What a kill left of earlier ones in the same folder is removed. Raises NestedAttentionError if the folder
    does not exist or the file cannot be written.
    """
    if not path.parent.is_dir():
        raise NestedAttentionError(
            f"{path} cannot be written: there is no folder {path.parent}; create it first"
        )
    if path.is_dir():
        raise NestedAttentionError(f"{path} cannot be written: it is a folder; expected a file name")
    _remove_left_over(path.parent)
    try:
        # Beside it, hence on the same file system: only there can it be replaced in one step. A folder, since
        # safetensors writes to a temporary file of its own, under a name that says nothing.
        with tempfile.TemporaryDirectory(
            prefix=_PREFIX, suffix=_SUFFIX, dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            temporary = Path(folder, path.name)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power failure could leave the name with an empty file
            temporary.chmod(_mode(path, Path(folder)))  # safetensors gives its files to their owner alone
            os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, _reason(error)) from error


def _mode(path: Path, folder: Path) -> int:
    """Who may read and write a file: as before if it is there, else as the system has it for a new one of
    this folder."""
    if not path.exists():
        path = folder / f"{path.name}.new"  # beside what is being written
        path.touch()
    return stat.S_IMODE(path.stat().st_mode)


def take(path: Path) -> bool:
    """Make an empty file of a name that is still free; False if it is taken, by anybody.

    Of several threads or processes that take one name, one gets it. Raises OSError.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def cannot_write(path: Path, reason: str) -> NestedAttentionError:
    """An error that names the file that was wanted, and not a temporary one."""
    return NestedAttentionError(f"{path} cannot be written ({reason}); check space and permissions")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _remove_left_over(folder: Path) -> None:
    before = time.time() - _OLD_S
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime >= before:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
