"""Saved subjects in folders: names, files, thumbnails, and names that want out of their folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nested_attention.errors import NestedAttentionError
from nested_attention.storage.store import find_subject, inside, is_subject, list_subjects, new_file
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
    "a" * 500,
    "a/" * 40 + "a",
]


@pytest.fixture
def subject() -> Subject:
    generator = torch.Generator().manual_seed(0)
    return Subject(torch.randn(4, 8, generator=generator), torch.zeros(4), "person", "f" * 32)


@pytest.fixture
def shelves(tmp_path: Path) -> dict[str, Path]:
    folders = {"input": tmp_path / "in", "output": tmp_path / "out"}
    for folder in folders.values():
        folder.mkdir()
    return folders


def test_subjects_are_listed_by_their_content(subject: Subject, shelves: dict[str, Path]) -> None:
    (shelves["output"] / "subjects").mkdir()
    subject.save(shelves["output"] / "subjects" / "alice_00001_.safetensors")
    subject.save(shelves["input"] / "bob.safetensors")
    save_file({"tokens": subject.tokens}, shelves["output"] / "lora.safetensors")
    for content in (b"", b"1234", b"\xff" * 8 + b"{}", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}"):
        (shelves["output"] / f"{len(content)}.safetensors").write_bytes(content)
    (shelves["output"] / "picture.png").touch()
    (shelves["output"] / "folder.safetensors").mkdir()
    names = list_subjects(shelves)
    assert names == ["bob.safetensors", "subjects/alice_00001_.safetensors [output]"]
    assert [find_subject(name, shelves) for name in names] == [
        shelves["input"] / "bob.safetensors",
        shelves["output"] / "subjects" / "alice_00001_.safetensors",
    ]
    assert list_subjects({"input": shelves["input"] / "gone"}) == []


def test_folders_are_walked_again_only_when_they_changed(
    subject: Subject, shelves: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nested_attention.storage import store as shelf

    read: list[Path] = []
    monkeypatch.setattr(shelf, "is_subject", lambda path: bool(read.append(path)) or path.stem != "lora")
    (shelves["output"] / "people").mkdir()
    subject.save(shelves["output"] / "people" / "a.safetensors")
    for folder in (shelves["output"], shelves["output"] / "people", shelves["input"]):
        os.utime(folder, (1e9, 1e9))
    first = list_subjects(shelves)
    assert first == ["people/a.safetensors [output]"] and len(read) == 1
    assert list_subjects(shelves) == first and len(read) == 1
    subject.save(shelves["output"] / "people" / "b.safetensors")  # changed just now: looked at each time
    assert list_subjects(shelves) == [*first, "people/b.safetensors [output]"]
    (shelves["output"] / "people" / "a.safetensors").unlink()
    assert list_subjects(shelves) == ["people/b.safetensors [output]"]
    (shelves["output"] / "people" / "b.safetensors").unlink()
    (shelves["output"] / "people").rmdir()
    assert list_subjects(shelves) == []


def test_the_header_alone_tells_a_subject_from_a_checkpoint(subject: Subject, tmp_path: Path) -> None:
    many = {f"layer.{i}.weight": torch.zeros(1) for i in range(3000)}
    save_file(many, tmp_path / "checkpoint.safetensors", {"format": "nested_attention.subject"})
    assert not is_subject(tmp_path / "checkpoint.safetensors")  # a header of 200 kB is not even read
    subject.save(tmp_path / "s.safetensors")
    assert is_subject(tmp_path / "s.safetensors")


def test_a_missing_subject_names_folder_and_what_to_do(shelves: dict[str, Path]) -> None:
    for name, folder in (("gone.safetensors", "input"), ("gone.safetensors [output]", "output")):
        with pytest.raises(
            NestedAttentionError, match=rf"'gone.safetensors' in {re.escape(str(shelves[folder]))}.*Save"
        ):
            find_subject(name, shelves)


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_name_leaves_its_folder(subject: Subject, shelves: dict[str, Path], name: str) -> None:
    subject.save(shelves["output"].parent / "alice.safetensors")
    before = sorted(shelves["output"].parent.rglob("*"))
    for label in ("", " [output]", " [input]"):
        with pytest.raises(NestedAttentionError, match="no name of a file"):
            find_subject(name + label, shelves)
    with pytest.raises(NestedAttentionError, match="no name of a file"):
        new_file(name, shelves["output"])
    assert sorted(shelves["output"].parent.rglob("*")) == before  # and no folder was made


def test_links_that_lead_out_are_neither_listed_nor_read_nor_written_to(
    subject: Subject, shelves: dict[str, Path], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    subject.save(outside / "alice.safetensors")
    out = shelves["output"]
    try:
        (out / "alice.safetensors").symlink_to(outside / "alice.safetensors")
    except OSError:
        pytest.skip("this system allows no links")
    (out / "folder").symlink_to(outside, target_is_directory=True)
    (out / "loop").symlink_to(out / "loop")
    assert list_subjects(shelves) == []
    for name in ("alice.safetensors", "folder/alice.safetensors"):
        with pytest.raises(NestedAttentionError, match="leads out of .* by a link"):
            find_subject(f"{name} [output]", shelves)
    with pytest.raises(NestedAttentionError, match="leads out of .* by a link"):
        new_file("folder/new/bob", out)
    with pytest.raises(NestedAttentionError):
        find_subject("loop [output]", shelves)
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
        path = new_file("subjects/alice", tmp_path)
        assert path == tmp_path / "subjects" / f"alice_{number:05}_.safetensors"
        subject.save(path)
    for name in ("alice_00041_.png", "ALICE_00007_.safetensors", "alice_b_00099_.safetensors", "alice_x_"):
        (tmp_path / "subjects" / name).touch()
    assert new_file("subjects/alice", tmp_path).name == "alice_00042_.safetensors"
    assert new_file("a[b](c)+", tmp_path).name == "a[b](c)+_00001_.safetensors"
    assert re.fullmatch(r"\d{4}-\d\d_00001_\.safetensors", new_file("%year%-%month%", tmp_path).name)


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NestedAttentionError, match="cannot be used.*permissions"):
        new_file("file/alice", tmp_path)


def test_a_path_inside_is_returned_whole(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b c/ä.safetensors") == tmp_path / "a" / "b c" / "ä.safetensors"
    assert inside(tmp_path, "a\\b") == tmp_path / "a" / "b"
    for name in ("木\u3000村.safetensors", "8\u202fPM", "👩\u200d🚀"):  # wide, narrow and joining spaces
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
