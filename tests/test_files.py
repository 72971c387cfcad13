"""Files: only regular ones are opened, what is written is whole or not there, what is read stays the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from synthetic_checkpoints import TINY_SITES, encoder_tensors, write

from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.storage.files import open_regular, replacing
from nested_attention.storage.store import is_subject
from nested_attention.storage.tensors import open_tensors, read_shapes, read_tensors, write_tensors
from nested_attention.subject import Subject

CONFIG = SubjectEncoderConfig(
    vision_dim=12, token_dim=24, num_queries=6, width=16, depth=1, heads=2, head_dim=8, sites=TINY_SITES
)


@contextmanager
def at_once(seconds: int = 5) -> Iterator[None]:
    """An error in place of a hang."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@needs_pipes
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder", "a socket"])
def test_only_regular_files_are_opened_and_nothing_waits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    listening = socket.socket(socket.AF_UNIX)
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        listening.bind(str(path))
    with at_once(), listening:
        for read in (open_regular, read_tensors, read_shapes, load_subject_encoder, Subject.load):
            with pytest.raises(NestedAttentionError, match=f"x.safetensors cannot be opened: it is {kind}"):
                read(path)
        assert not is_subject(path)


@needs_pipes
def test_a_file_that_becomes_a_pipe_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = os.stat(__file__)
    os.mkfifo(tmp_path / "x")
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    with at_once(), pytest.raises(NestedAttentionError, match="it is a named pipe"):
        open_regular(tmp_path / "x")


# Writing


def test_content_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append(("on disk", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        done.append(("named", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_tensors(tmp_path / "x", {"a": torch.zeros(3)}, {})
    number = os.stat(tmp_path / "x").st_ino
    assert done == [("on disk", number), ("named", number)]


@contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder that this process cannot write to, root or not."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        if user == 0:
            os.chmod(Path(name).parent, os.stat(Path(name).parent).st_mode | 0o111)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if user == 0:
                os.seteuid(0)
            os.chmod(name, 0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has other permissions")
def test_a_read_only_folder_is_named_and_not_a_temporary_file() -> None:
    with read_only_folder() as folder:
        path = folder / "x.safetensors"
        with pytest.raises(NestedAttentionError) as error:
            write_tensors(path, {"a": torch.zeros(3)}, {})
        assert str(error.value) == (
            f"{path} cannot be written (Permission denied); check space and permissions"
        )


def test_a_disk_that_fills_up_is_named_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "x", {"a": torch.zeros(3)}, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/some/temporary.tmp")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(NestedAttentionError, match=r"x cannot be written \(No space left on device\)"):
            write_tensors(tmp_path / "x", {"a": torch.ones(3)}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert torch.equal(read_tensors(tmp_path / "x").tensors["a"], torch.zeros(3))


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_whoever_may_read_new_files_may_read_ours(tmp_path: Path, umask: int) -> None:
    """safetensors writes for the owner alone. A file that is there keeps its permissions."""
    before = os.umask(umask)
    try:
        for mode in (0o666 & ~umask, 0o640):
            write_tensors(tmp_path / "x", {"a": torch.ones(3)}, {})
            assert (tmp_path / "x").stat().st_mode & 0o777 == mode
            (tmp_path / "x").chmod(0o640)
    finally:
        os.umask(before)


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    script = (
        f"import os, pathlib, signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import conftest\n"
        "from nested_attention.storage.files import replacing\n"
        f"with replacing(pathlib.Path({str(tmp_path)!r}, 'x')) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    names = ".nested-attention.tmp", ".x.tmp", f"{'0' * 32}.tmp", f".{'0' * 32}.tmp"  # other programs'
    foreign = [tmp_path / name for name in names]
    for path in foreign:
        path.write_text("half")

    def write_something() -> set[Path]:
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("whole")
        return set(tmp_path.iterdir())

    assert write_something() == {tmp_path / "x", left, *foreign}  # they may still be written to
    old = time.time() - 2 * 24 * 60 * 60
    for path in (left, *foreign):
        os.utime(path, (old, old))
    assert write_something() == {tmp_path / "x", *foreign}


# Reading


def overwritten(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def replaced(path: Path) -> None:
    write_tensors(path, {"a": torch.ones(2000)}, {})


@pytest.mark.parametrize("change", [overwritten, truncated, replaced])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change) -> None:  # noqa: ANN001
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(2000)}, {})
    message = "x.safetensors was written to or replaced while it was read"
    with pytest.raises(NestedAttentionError, match=message), open_tensors(path) as file:
        change(path)
        file.read("a")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("change", [overwritten, truncated])
def test_an_encoder_in_use_does_not_depend_on_its_file(tmp_path: Path, suffix: str, change) -> None:  # noqa: ANN001
    """Weights mapped to a file would change with it, under the old fingerprint, or end the process."""
    path = write(tmp_path / f"x{suffix}", encoder_tensors())
    loaded = load_subject_encoder(path, sites=TINY_SITES)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    change(path)
    os.truncate(path, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_an_encoder_overwritten_while_it_is_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_attention import checkpoint

    path = tmp_path / "x.safetensors"
    torch.manual_seed(0)
    save_subject_encoder(SubjectEncoder(CONFIG), path)
    digests = checkpoint.weight_digests

    def meanwhile(weights: Iterator[tuple[str, torch.Tensor]]) -> dict[str, str]:
        found = digests(weights)
        overwritten(path)
        return found

    monkeypatch.setattr(checkpoint, "weight_digests", meanwhile)
    with pytest.raises(NestedAttentionError, match="was written to or replaced while it was read; load it"):
        load_subject_encoder(path)


def test_shapes_are_read_without_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros(()), "c": torch.zeros(0, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("x.safetensors", "x.bin", "old.bin"):
        assert read_shapes(tmp_path / name) == {"a": (3, 4), "b": (), "c": (0, 2)}
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("a tensor was read"))
    read_shapes(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool],
)
def test_every_dtype_is_read_as_the_library_writes_it(tmp_path: Path, dtype: torch.dtype) -> None:
    written = {"a": (torch.arange(12).reshape(3, 4) % 2).to(dtype), "b": torch.ones((), dtype=dtype)}
    save_file(written, tmp_path / "x", {"note": "木"})
    read = read_tensors(tmp_path / "x")
    assert read.metadata == {"note": "木"}
    for name, tensor in written.items():
        assert (read.tensors[name].dtype, read.tensors[name].shape) == (dtype, tensor.shape)
        assert torch.equal(read.tensors[name].float(), tensor.float())
