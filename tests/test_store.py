"""The subject store: names, files, thumbnails, names that want out of their folder, and many that save at
once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_files import at_once

from nested_attention.errors import NestedAttentionError
from nested_attention.storage.store import find_subject, inside, is_subject, list_subjects, save_subject
from nested_attention.storage.thumbnail import SIZE, make_thumbnail, neutral_icon
from nested_attention.subject import Subject, read_subject

TRAVERSALS = [
    "../alice.safetensors",
    "subjects/../../alice.safetensors",
    "..\\alice.safetensors",
    "/etc/passwd",
    "C:\\alice.safetensors",
    "C:alice.safetensors",
    "\\\\server\\share\\alice.safetensors",
    "subjects//alice.safetensors",
    "./alice.safetensors",
    ".hidden/alice.safetensors",
    "alice.safetensors\0.png",
    "alice\n.safetensors",
    "alice.safetensors:stream",
    "",
    ".",
    "..",
    "con",
    "NUL",
    "aux.safetensors",
    "com1/alice.safetensors",
    "Lpt9 .txt",
    "a" * 500,
    "a/" * 40 + "a",
]


@pytest.fixture
def subject() -> Subject:
    generator = torch.Generator().manual_seed(0)
    return Subject(torch.randn(4, 8, generator=generator), torch.zeros(4), "person", "f" * 32)


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Path]:
    folders = {"input": tmp_path / "in", "output": tmp_path / "out"}
    for folder in folders.values():
        folder.mkdir()
    return folders


def test_subjects_are_listed_by_their_content(subject: Subject, stores: dict[str, Path]) -> None:
    (stores["output"] / "subjects").mkdir()
    subject.save(stores["output"] / "subjects" / "alice_00001_.safetensors")
    subject.save(stores["input"] / "bob.safetensors")
    save_file({"tokens": subject.tokens}, stores["output"] / "lora.safetensors")
    for content in (b"", b"1234", b"\xff" * 8 + b"{}", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}"):
        (stores["output"] / f"{len(content)}.safetensors").write_bytes(content)
    (stores["output"] / "picture.png").touch()
    (stores["output"] / "folder.safetensors").mkdir()
    names = list_subjects(stores)
    assert names == ["bob.safetensors", "subjects/alice_00001_.safetensors [output]"]
    assert [find_subject(name, stores) for name in names] == [
        stores["input"] / "bob.safetensors",
        stores["output"] / "subjects" / "alice_00001_.safetensors",
    ]
    assert list_subjects({"input": stores["input"] / "gone"}) == []


def test_folders_are_walked_again_only_when_they_changed(
    subject: Subject, stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_attention.storage import store

    read: list[Path] = []
    now, later = time.time_ns, [0]
    monkeypatch.setattr(store, "time", SimpleNamespace(time_ns=lambda: now() + later[0]))
    monkeypatch.setattr(store, "is_subject", lambda path: bool(read.append(path)) or path.stem != "lora")
    (stores["output"] / "people").mkdir()
    subject.save(stores["output"] / "people" / "a.safetensors")
    assert len(list_subjects(stores)) == len(list_subjects(stores)) == len(read) / 2  # changed just now
    later[0] = 60 * 10**9
    read.clear()
    first = list_subjects(stores)
    assert first == ["people/a.safetensors [output]"] and len(read) == 1
    assert list_subjects(stores) == first and len(read) == 1
    subject.save(stores["output"] / "people" / "b.safetensors")
    os.utime(stores["output"] / "people", (1e9, 1e9))  # as tools do that keep the times of what they copy
    assert list_subjects(stores) == [*first, "people/b.safetensors [output]"]
    (stores["output"] / "people" / "a.safetensors").unlink()
    assert list_subjects(stores) == ["people/b.safetensors [output]"]
    (stores["output"] / "people" / "b.safetensors").unlink()
    (stores["output"] / "people").rmdir()
    assert list_subjects(stores) == []


def test_what_changes_while_subjects_are_listed_is_listed_the_next_time(
    subject: Subject, stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_attention.storage import store

    subject.save(stores["output"] / "a.safetensors")
    os.utime(stores["output"], (1e9, 1e9))
    now, later, changed, told = time.time_ns, [0], store._changed, store.is_subject

    def slow(path: Path) -> bool:
        later[0] += 60 * 10**9
        return told(path)

    def saved_first(path: str) -> tuple[int, ...]:
        if path == str(stores["output"]):
            monkeypatch.setattr(store, "_changed", changed)
            subject.save(stores["output"] / "b.safetensors")
        return changed(path)

    monkeypatch.setattr(store, "time", SimpleNamespace(time_ns=lambda: now() + later[0]))
    monkeypatch.setattr(store, "is_subject", slow)
    monkeypatch.setattr(store, "_changed", saved_first)
    list_subjects(stores)
    assert list_subjects(stores) == ["a.safetensors [output]", "b.safetensors [output]"]
    # A file that is copied there bit by bit, which changes the folder only when it begins.
    whole = (stores["output"] / "a.safetensors").read_bytes()
    (stores["output"] / "c.safetensors").write_bytes(whole[:20])
    later[0] += 60 * 10**9
    assert len(list_subjects(stores)) == 2
    (stores["output"] / "c.safetensors").write_bytes(whole)
    assert list_subjects(stores)[2:] == ["c.safetensors [output]"]
    # Another thread, which finds that the list is not to be kept.
    later[0] += 60 * 10**9
    list_subjects(stores)

    def forgotten(path: str) -> tuple[int, ...]:
        store._listings[stores["output"]]._found = None
        return changed(path)

    monkeypatch.setattr(store, "_changed", forgotten)
    assert len(list_subjects(stores)) == 3


def test_the_header_alone_tells_a_subject_from_a_checkpoint(subject: Subject, tmp_path: Path) -> None:
    many = {f"layer.{i}.weight": torch.zeros(1) for i in range(3000)}
    save_file(many, tmp_path / "checkpoint.safetensors", {"format": "nested_attention.subject"})
    assert not is_subject(tmp_path / "checkpoint.safetensors")  # a header of 200 kB is not even read
    subject.save(tmp_path / "s.safetensors")
    assert is_subject(tmp_path / "s.safetensors")


def test_a_missing_subject_names_folder_and_what_to_do(stores: dict[str, Path]) -> None:
    for name, folder in (("gone.safetensors", "input"), ("gone.safetensors [output]", "output")):
        with pytest.raises(
            NestedAttentionError, match=rf"'gone.safetensors' in {re.escape(str(stores[folder]))}.*Save"
        ):
            find_subject(name, stores)


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_name_leaves_its_folder(subject: Subject, stores: dict[str, Path], name: str) -> None:
    subject.save(stores["output"].parent / "alice.safetensors")
    before = sorted(stores["output"].parent.rglob("*"))
    for label in ("", " [output]", " [input]"):
        with pytest.raises(NestedAttentionError, match="no name of a file"):
            find_subject(name + label, stores)
    with pytest.raises(NestedAttentionError, match="no name of a file"):
        save_subject(subject, name, stores["output"])
    assert sorted(stores["output"].parent.rglob("*")) == before  # and no folder was made


def test_links_that_lead_out_are_neither_listed_nor_read_nor_written_to(
    subject: Subject, stores: dict[str, Path], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    subject.save(outside / "alice.safetensors")
    out = stores["output"]
    try:
        (out / "alice.safetensors").symlink_to(outside / "alice.safetensors")
    except OSError:
        pytest.skip("this system allows no links")
    (out / "folder").symlink_to(outside, target_is_directory=True)
    (out / "loop").symlink_to(out / "loop")
    assert list_subjects(stores) == []
    for name in ("alice.safetensors", "folder/alice.safetensors"):
        with pytest.raises(NestedAttentionError, match="leads out of .* by a link"):
            find_subject(f"{name} [output]", stores)
    with pytest.raises(NestedAttentionError, match="leads out of .* by a link"):
        save_subject(subject, "folder/new/bob", out)
    with pytest.raises(NestedAttentionError):
        find_subject("loop [output]", stores)
    assert os.listdir(outside) == ["alice.safetensors"]
    # A link from one place inside to another is no way out, and neither is a folder that is itself a link.
    subject.save(out / "bob.safetensors")
    (out / "same.safetensors").symlink_to(out / "bob.safetensors")
    (tmp_path / "elsewhere").symlink_to(out, target_is_directory=True)
    linked = {"output": tmp_path / "elsewhere"}
    assert list_subjects(linked) == ["bob.safetensors", "same.safetensors"]
    assert find_subject("same.safetensors", linked) == out / "bob.safetensors"


def test_files_are_numbered_as_comfyui_numbers_pictures(subject: Subject, tmp_path: Path) -> None:
    for number in (1, 2):
        path = save_subject(subject, "subjects/alice", tmp_path)
        assert path == tmp_path / "subjects" / f"alice_{number:05}_.safetensors"
        assert is_subject(path)
    for name in ("alice_00041_.png", "ALICE_00007_.safetensors", "alice_b_00099_.safetensors", "alice_x_"):
        (tmp_path / "subjects" / name).touch()
    assert save_subject(subject, "subjects/alice", tmp_path).name == "alice_00042_.safetensors"
    assert save_subject(subject, "a[b](c)+", tmp_path).name == "a[b](c)+_00001_.safetensors"
    name = save_subject(subject, "%year%-%month%", tmp_path).name
    assert re.fullmatch(r"\d{4}-\d\d_00001_\.safetensors", name)


@pytest.mark.parametrize("digits", ["999999999", "999999999999999", "9" * 40])
def test_large_numbers_do_not_end_the_counting(subject: Subject, tmp_path: Path, digits: str) -> None:
    (tmp_path / f"subject_{digits}_.safetensors").write_bytes(b"another's")
    saved = {save_subject(subject, "subject", tmp_path) for _ in range(4)}
    assert len(saved) == 4
    assert all(map(is_subject, saved))
    assert len(list_subjects({"output": tmp_path})) == 4
    assert (tmp_path / f"subject_{digits}_.safetensors").read_bytes() == b"another's"


def test_what_is_saved_can_be_chosen(subject: Subject, tmp_path: Path) -> None:
    """The longest prefix there may be, and one more."""
    longest = "a" * (120 - len("_00001_.safetensors"))
    saved = save_subject(subject, longest, tmp_path)
    assert list_subjects({"output": tmp_path}) == [saved.name]
    with pytest.raises(NestedAttentionError, match="prefix 'aaa.* is too long: .* have 121 bytes, .* 120"):
        save_subject(subject, longest + "a", tmp_path)
    assert os.listdir(tmp_path) == [saved.name]


PROCESS = """
import sys
sys.path.insert(0, {tests!r})
import conftest, pathlib, torch
from nested_attention.storage.store import save_subject
from nested_attention.subject import Subject

for number in range({each}):
    subject = Subject(torch.full((2, 4), {first} + number), torch.zeros(2), "person", "f")
    save_subject(subject, "people/alice", pathlib.Path({folder!r}))
"""


def test_threads_and_processes_that_save_at_once_overwrite_nothing(tmp_path: Path) -> None:
    each, processes = 10, 2
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROCESS.format(
                    tests=str(Path(__file__).parent), each=each, first=float(1000 * n), folder=str(tmp_path)
                ),
            ]
        )
        for n in range(1, 1 + processes)
    ]

    def save(number: int) -> None:
        subject = Subject(torch.full((2, 4), float(number)), torch.zeros(2), "person", "f")
        save_subject(subject, "people/alice", tmp_path)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(save, range(40)))
    assert [process.wait() for process in running] == [0] * processes
    names = list_subjects({"output": tmp_path})
    assert len(names) == 40 + each * processes == len(list((tmp_path / "people").iterdir()))
    kept = {float(Subject.load(tmp_path / name).tokens[0, 0]) for name in names}
    assert kept == {float(n) for n in range(40)} | {1000.0 * p + n for p in (1, 2) for n in range(each)}


def test_a_subject_that_cannot_be_saved_leaves_no_name(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NestedAttentionError, match="alice_00001_.safetensors cannot be written .No space"):
        save_subject(subject, "alice", tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_in_the_output_folder_hang_nothing(
    subject: Subject, stores: dict[str, Path]
) -> None:
    subject.save(stores["output"] / "alice.safetensors")
    os.mkfifo(stores["output"] / "pipe.safetensors")
    (stores["output"] / "device.safetensors").symlink_to("/dev/zero")
    (stores["output"] / "sub").mkdir()
    (stores["output"] / "sub" / "linked.safetensors").symlink_to(stores["output"] / "pipe.safetensors")
    with at_once():
        assert list_subjects(stores) == ["alice.safetensors [output]"]
        with pytest.raises(NestedAttentionError, match="no saved subject 'pipe.safetensors'"):
            find_subject("pipe.safetensors [output]", stores)


@pytest.mark.parametrize("name", [None, 3, ["a"], {"a": 1}, True])
def test_names_that_are_no_text(subject: Subject, stores: dict[str, Path], name: Any) -> None:
    for call in (lambda: find_subject(name, stores), lambda: save_subject(subject, name, stores["output"])):
        with pytest.raises(NestedAttentionError, match="name of a subject's file is .*; expected text"):
            call()


def test_long_names_give_short_messages(subject: Subject, stores: dict[str, Path]) -> None:
    name = "a/" * 500_000
    for call in (lambda: find_subject(name, stores), lambda: save_subject(subject, name, stores["output"])):
        with pytest.raises(NestedAttentionError) as error:
            call()
        assert len(str(error.value)) < 1000


def test_a_folder_that_cannot_be_made_says_so(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NestedAttentionError, match="cannot be used.*permissions"):
        save_subject(subject, "file/alice", tmp_path)


def test_a_path_inside_is_returned_whole(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b c/ä.safetensors") == tmp_path / "a" / "b c" / "ä.safetensors"
    assert inside(tmp_path, "a\\b") == tmp_path / "a" / "b"
    for name in (
        "console",
        "com10",
        "auxiliary.safetensors",
        "lpt",
        "木\u3000村.safetensors",
        "8\u202fPM",
        "👩\u200d🚀",
    ):  # wide, narrow and joining spaces
        assert inside(tmp_path, name) == tmp_path / name


def test_a_thumbnail_is_small_and_kept_only_if_asked_for(subject: Subject, tmp_path: Path) -> None:
    picture = torch.rand(300, 600, 3, generator=torch.Generator().manual_seed(0))
    thumbnail = make_thumbnail(picture)
    assert (thumbnail.shape, thumbnail.dtype) == ((SIZE // 2, SIZE, 3), torch.uint8)
    assert abs(float(thumbnail.float().mean()) / 255 - float(picture.mean())) < 0.01
    assert make_thumbnail(picture[:40, :30]).shape == (40, 30, 3)  # never enlarged
    assert make_thumbnail(picture[:1, :600]).shape == (1, SIZE, 3)
    subject.save(tmp_path / "with", thumbnail=thumbnail)
    subject.save(tmp_path / "without")
    loaded, kept = read_subject(tmp_path / "with")
    assert kept is not None
    assert torch.equal(kept, thumbnail)
    assert torch.equal(loaded.tokens, subject.tokens)
    assert read_subject(tmp_path / "without")[1] is None


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 3), (4, 4, 4), (SIZE + 1, 4, 3)])
def test_other_pictures_are_no_thumbnails(subject: Subject, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(NestedAttentionError, match="thumbnail has shape"):
        subject.save(tmp_path / "s", thumbnail=torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(NestedAttentionError, match="dtype torch.float32"):
        subject.save(tmp_path / "s", thumbnail=torch.zeros(4, 4, 3))
    assert not (tmp_path / "s").exists()


def test_a_changed_thumbnail_is_damage(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "s"
    subject.save(path, thumbnail=torch.full((4, 4, 3), 7, dtype=torch.uint8))
    path.write_bytes(path.read_bytes().replace(bytes([7] * 48), bytes([7] * 47 + [8])))
    with pytest.raises(NestedAttentionError, match="damaged"):
        read_subject(path)


def test_the_icon_shows_nobody_in_particular() -> None:
    icon = neutral_icon()
    assert (icon.shape, icon.dtype) == ((SIZE, SIZE, 3), torch.uint8)
    assert len(icon.unique()) == 2
    assert torch.equal(icon, icon.flip(1))  # symmetric
