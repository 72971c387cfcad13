"""`nested-attention prepare`: sources, recipes, shards; what is kept of an earlier run, and what is not."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from small_training import base_of, draw, preparing, training

from nested_attention.avatars.models.pixels import to_tensor
from nested_attention.avatars.models.world import load_world
from nested_attention.checkpoint import load_subject_encoder, read_card
from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.align import align_faces
from nested_attention.pictures.files import pixels
from nested_attention.pictures.pyramid import TiledFaceDetector, face_detector
from nested_attention.training import shards
from nested_attention.training.frozen import BaseModel, FrozenEncoders, load_pipeline
from nested_attention.training.prepare import encode as encoding
from nested_attention.training.prepare.pictures import bucket_of, bucket_sizes, fit
from nested_attention.training.prepare.recipes import Recipe, Rejected
from nested_attention.training.prepare.run import prepare
from nested_attention.training.prepare.settings import GenerateSettings, SourceSettings
from nested_attention.training.prepare.sources import samples_of
from nested_attention.training.reading import Place
from nested_attention.training.run import train
from nested_attention.training.shards import PARTS, Index, ShardData, Verified, mean_weight, verify

pytestmark = pytest.mark.once


def quietly(line: str) -> None:
    """Nobody listens."""


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """How many pictures, captions and references the frozen models encode meanwhile."""
    counts = dict.fromkeys(("pictures", "captions", "references"), 0)
    with pytest.MonkeyPatch.context() as patch:
        for name in counts:
            method = getattr(FrozenEncoders, f"encode_{name}")

            def counted(self: Any, items: Any, *more: Any, method: Any = method, name: str = name) -> Any:
                counts[name] += len(items)
                return method(self, items, *more)

            patch.setattr(FrozenEncoders, f"encode_{name}", counted)
        yield counts


BLANK = {"pictures": 0, "captions": 1, "references": 1}
"""What is encoded even if nothing is new: the blank picture and the empty caption."""


def more(pictures: int = 0, captions: int = 0, references: int = 0) -> dict[str, int]:
    return {"pictures": pictures, "captions": 1 + captions, "references": 1 + references}


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenEncoders, "load", _load)
    monkeypatch.setattr(FrozenEncoders, "fingerprints", _fingerprints)


_load, _fingerprints = lru_cache(FrozenEncoders.load), lru_cache(FrozenEncoders.fingerprints)


@pytest.fixture
def people(prepared: Path, tmp_path: Path) -> Path:
    """A folder of its own with the pictures and what was made of them."""
    shutil.copytree(prepared.parent, tmp_path / "people")
    return tmp_path / "people"


def test_shards_hold_what_the_frozen_models_give(world_on_disk: Path, tmp_path: Path) -> None:
    """The same pictures, captions and references as the world's own functions encode them, in bf16; pictures
    of each shape by themselves."""
    pictures = draw(tmp_path, pairs=0.5)
    shapes: dict[str, Any] = {"sizes": ((32, 32), (32, 48)), "enlarged": 4, "size_conditioning": None}
    index, world = prepare(preparing(world_on_disk, tmp_path, **shapes), quietly), load_world()
    prepared = tmp_path / "prepared"
    data = ShardData(prepared, index)
    several, every_cell, weighed = 0, [], []
    assert len(data.buckets) == 2
    for bucket in map(torch.from_numpy, data.buckets):
        read, names = data.read(bucket, {}), [data.row(int(row)).name for row in bucket]
        rgb = np.stack([np.asarray(Image.open(pictures / name)) for name in names])
        crops = [Image.open(pictures / name.replace(".png", ".reference.png")) for name in names]
        context, pooled, ids = world.text([data.row(int(row)).caption for row in bucket])
        wanted = {
            "latent_mean": world.vae.encode(to_tensor(rgb)).latent_dist.mean,
            "context": context,
            "pooled": pooled,
            "features": world.features(np.stack([np.asarray(crop)[::4, ::4] for crop in crops])),
        }
        for name, values in wanted.items():
            atol = 8e-3 * float(values.abs().max())
            torch.testing.assert_close(read[name].float(), values, rtol=8e-3, atol=atol)
            assert read[name].dtype == torch.bfloat16
        people = torch.from_numpy(ids.astype(np.int64) == 2533)
        assert bool((read["mask"] <= people).all())
        assert read["mask"].sum(dim=1).tolist() == [1] * len(bucket)
        texts = [(pictures / name.replace(".png", ".txt")).read_text() for name in names]
        assert [text.split("<")[0].count("person") for text in texts] == [
            int(row[: int(mask.nonzero())].sum()) for row, mask in zip(people, read["mask"], strict=True)
        ], "the one in angle brackets, of one or two"
        several += int((people.sum(dim=1) > 1).sum())
        weights = np.stack(
            [np.asarray(Image.open(pictures / name.replace(".png", ".weight.png"))) for name in names]
        )
        width = rgb.shape[2]
        cells = torch.from_numpy(weights).float().div(255).view(-1, 16, 2, width // 2, 2).mean(dim=(2, 4))
        every_cell.append(cells)
        weighed.append(read["loss_weight"].float())
        told = [128, 4 * width, 0, 0, 128, 4 * width]
        assert read["sizes"].unique(dim=0).tolist() == [told]
        assert (read["latent_deviation"] > 0).all()
    assert several
    mean = torch.cat([cells.mean(dim=(1, 2)) for cells in every_cell]).mean()
    assert index.mean_weight == pytest.approx(float(mean), rel=8e-3), "of examples, whatever their size"
    for cells, weights in zip(every_cell, weighed, strict=True):
        torch.testing.assert_close(weights, cells / mean, rtol=2e-2, atol=2e-2)
    held = ShardData(prepared, index, held_out=True)
    assert (len(data), len(held)) == (12, 4) and len({held.row(i).subject for i in range(4)}) == 4
    assert all((prepared / "held_out" / f"{held.row(i).keys['reference']}.png").exists() for i in range(4))


def test_what_has_been_encoded_is_not_encoded_again(world_on_disk: Path, people: Path) -> None:
    before = Index.read(people / "prepared")
    with counting() as counts:
        after = prepare(preparing(world_on_disk, people), quietly)
    assert counts == BLANK and after == before


def test_a_stopped_run_goes_on_from_the_last_shard(
    world_on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Path
) -> None:
    shutil.copytree(prepared.parent / "pictures", tmp_path / "pictures")
    write, written = encoding.write_shard, []

    def killed(*args: Any) -> Any:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(write(*args))
        return written[-1]

    monkeypatch.setattr(encoding, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(preparing(world_on_disk, tmp_path), quietly)
    monkeypatch.setattr(encoding, "write_shard", write)
    with counting() as counts:
        index = prepare(preparing(world_on_disk, tmp_path), quietly)
    assert counts == more(10, 10, 10), "six of sixteen were done"
    assert [shard.checksum for shard in index.shards] == [s.checksum for s in Index.read(prepared).shards]


def test_a_changed_caption_picture_or_setting_invalidates_what_it_went_into(
    world_on_disk: Path, people: Path
) -> None:
    caption = people / "pictures" / "person-00003.txt"
    caption.write_text("a person in a box")
    with counting() as counts:
        index = prepare(preparing(world_on_disk, people), quietly)
    assert counts == more(captions=1)
    (row,) = [row for shard in index.shards for row in shard.rows if row.name == "person-00003.png"]
    assert row.caption == "a person in a box"
    Image.new("RGB", (32, 32), "red").save(people / "pictures" / "person-00005.png")
    with counting() as counts:
        prepare(preparing(world_on_disk, people), quietly)
    assert counts == more(pictures=1, references=1)
    with counting() as counts:
        prepare(preparing(world_on_disk, people, features="penultimate_hidden_states"), quietly)
    assert counts == more(references=16)
    with counting() as counts:
        index = prepare(preparing(world_on_disk, people, resolution=64, step=64), quietly)
    assert counts["pictures"] == 16 and counts["captions"] == 1
    assert {shard.size for shard in index.shards} == {(64, 64)}
    files = {path.name for path in (people / "prepared" / "shards").iterdir()}
    assert files == {Path(f).name for f in [index.blank, *(shard.file for shard in index.shards)]}


def test_a_mask_that_becomes_a_reference_is_not_taken_for_what_it_was(
    world_on_disk: Path, people: Path
) -> None:
    picture = people / "pictures" / "person-00003.reference.png"
    picture.rename(picture.with_name("person-00003.mask.png"))
    with counting() as counts:
        prepare(preparing(world_on_disk, people), quietly)
    assert counts == more(pictures=1, references=1)


def test_the_mean_weight_reads_the_weights_alone(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nested_attention.training.shards.read_shard", pytest.fail)
    index = Index.read(prepared)
    assert mean_weight(prepared, index.shards) == pytest.approx(index.mean_weight)


def test_other_pairs_are_other_data(prepared: Path) -> None:
    """What subjects are called is the same data, and where each has one picture, so is what an older version
    noted of it: the files alone."""
    index = Index.read(prepared)

    def called(name: Callable[[int], str]) -> Index:
        shards = tuple(
            replace(
                shard, rows=tuple(replace(row, subject=name(i + 6 * s)) for i, row in enumerate(shard.rows))
            )
            for s, shard in enumerate(index.shards)
        )
        return replace(index, shards=shards)

    files = [shard.file for shard in index.shards if not shard.held_out]
    alone = hashlib.blake2b(json.dumps([files, index.blank]).encode(), digest_size=16).hexdigest()
    assert called(str).digest == called(lambda i: f"person {i}").digest == alone
    pairs, others = called(lambda i: f"a{i // 2}"), called(lambda i: f"a{i % 2}")
    assert len({alone, pairs.digest, others.digest}) == 3
    assert called(lambda i: f"b{i // 2}").digest == pairs.digest


def test_weights_are_read_anew_and_nothing_else_is_encoded(world_on_disk: Path, people: Path) -> None:
    """Other ones, none at all, and shards that an older version wrote, without any."""
    (people / "pictures" / "person-00003.weight.png").unlink()
    Image.new("L", (32, 32), 51).save(people / "pictures" / "person-00005.weight.png")
    with counting() as counts:
        index = prepare(preparing(world_on_disk, people), quietly)
    assert counts == BLANK
    data = ShardData(people / "prepared", index)
    held = ShardData(people / "prepared", index, held_out=True)

    def weight(name: str) -> torch.Tensor:
        (found,) = [
            (each, row) for each in (data, held) for row in range(len(each)) if each.row(row).name == name
        ]
        read = found[0].read(torch.tensor([found[1]]), {})["loss_weight"].float()
        return read * index.mean_weight  # before they are made to average 1

    torch.testing.assert_close(weight("person-00003.png"), torch.ones(1, 16, 16), rtol=8e-3, atol=0)
    torch.testing.assert_close(weight("person-00005.png"), torch.full((1, 16, 16), 0.2), rtol=8e-3, atol=0)
    assert float(weight("person-00004.png").std()) > 0.1 and 0.1 < index.mean_weight < 1
    for picture in (people / "pictures").glob("person-*.txt"):
        Image.new("L", (32, 32), 0).save(picture.with_suffix(".weight.png"))
    with pytest.raises(NestedAttentionError, match="every NAME.weight.png is black"):
        prepare(preparing(world_on_disk, people), quietly)
    Image.new("L", (32, 32), 255).save(people / "pictures" / "person-00004.weight.png")
    Image.new("L", (16, 32), 51).save(people / "pictures" / "person-00005.weight.png")
    said: list[str] = []
    index = prepare(preparing(world_on_disk, people), said.append)
    assert "left out 1; 1 × other weight" in said[0]

    older = tuple(
        replace(shard, rows=tuple(replace(row, keys={k: v for k, v in row.keys.items() if k != "weight"})
                                  for row in shard.rows))
        for shard in index.shards
    )  # fmt: skip
    replace(index, shards=older, mean_weight=1.0).write(people / "prepared")
    read = ShardData(people / "prepared", Index.read(people / "prepared")).read(torch.arange(2), {})
    assert bool((read["loss_weight"] == 1).all()) and read["loss_weight"].shape == (2, 16, 16)


def test_another_autoencoder_invalidates_the_latents_alone(world_on_disk: Path, people: Path) -> None:
    vae = people / "vae"
    shutil.copytree(world_on_disk / "vae", vae)
    scale_weights(vae, 1.01)
    model = replace(base_of(world_on_disk), vae=str(vae))
    with counting() as counts:
        index = prepare(preparing(world_on_disk, people, model=model), quietly)
    assert counts == more(pictures=16)
    assert index.frozen["vae"] != Index.read(people.parent / "people" / "prepared").blank


def scale_weights(folder: Path, factor: float) -> None:
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    state["encoder.conv_in.weight"] *= factor
    save_file(state, path, {"format": "pt"})


def test_a_damaged_or_missing_shard_is_named_and_made_again(world_on_disk: Path, people: Path) -> None:
    folder, index = people / "prepared", Index.read(people / "prepared")
    verify(folder, index)
    damaged, missing = (folder / shard.file for shard in index.shards[:2])
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(NestedAttentionError, match=f"{damaged.name} does not hold what was written"):
        verify(folder, index)
    missing.unlink()
    with counting() as counts:
        assert prepare(preparing(world_on_disk, people), quietly) == index
    assert counts == more(12, 12, 12)
    verify(folder, index)
    missing.unlink()
    with pytest.raises(NestedAttentionError, match=f"{missing.name} is missing"):
        verify(folder, index)


def test_a_file_that_was_verified_is_not_read_again(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.read(prepared)
    verify(prepared, index)
    monkeypatch.setattr("nested_attention.training.shards.read_shard", pytest.fail)
    verify(prepared, index)


def test_a_start_that_is_interrupted_is_not_repeated_and_a_read_only_disk_is_read(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)  # other files, in another place: nothing is known of them
    index = Index.read(folder)
    many = replace(index, shards=index.shards * 9)
    whole, read = shards.read_shard, list[str]()

    def once(path: Path, wanted: str) -> Any:
        read.append(path.name)
        return whole(path, wanted)

    monkeypatch.setattr(shards, "read_shard", once)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "LOOKED_AT", 2)
        patch.setattr(Verified, "check", failing_after(3, Verified.check))
        with pytest.raises(KeyboardInterrupt):
            verify(folder, many)
    assert len(read) == 3
    verify(folder, index)
    assert len(read) == 1 + len({shard.file for shard in index.shards}) + 1  # the third is read again
    written = (folder / "verified.json").stat().st_mtime_ns
    verify(folder, index)
    assert (folder / "verified.json").stat().st_mtime_ns == written  # nothing new is written
    (folder / "verified.json").unlink()

    def refused(path: Path) -> Any:
        raise NestedAttentionError(f"{path} cannot be written (Read-only file system)")

    monkeypatch.setattr(shards, "replacing", refused)
    verify(folder, index)


def test_what_was_read_counts_for_the_next_start_and_for_other_machines(
    people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `prepare`, however it ends; and machines number the disk that they share each in its own way."""
    folder = people / "prepared"
    index, state = Index.read(folder), shards.file_state
    (folder / "verified.json").unlink()
    encoding.Journal(folder)  # and is stopped
    monkeypatch.setattr(shards, "read_shard", pytest.fail)
    encoding.Journal(folder)
    monkeypatch.setattr(shards, "file_state", lambda found: (state(found)[0] + 1, *state(found)[1:]))
    for shard in index.shards:
        Verified(folder).check(shard.file, shard.checksum)


def failing_after(number: int, check: Any) -> Any:
    """The method, until it has been called that often."""
    calls: list[str] = []

    def checked(self: Verified, file: str, wanted: str) -> None:
        calls.append(file)
        if len(calls) > number:
            raise KeyboardInterrupt
        check(self, file, wanted)

    return checked


def test_what_cannot_be_used_is_listed_with_its_reason(world_on_disk: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path, 8)
    (pictures / "person-00000.txt").unlink()
    (pictures / "person-00001.txt").write_text("somebody in a desert")
    (pictures / "person-00002.txt").write_bytes(b"\xff\xfe\xfa")
    (pictures / "person-00003.png").write_bytes((pictures / "person-00003.png").read_bytes()[:100])
    Image.new("RGB", (8, 32)).save(pictures / "person-00004.png")
    said: list[str] = []
    index = prepare(preparing(world_on_disk, tmp_path), said.append)
    names = {row.name for shard in index.shards for row in shard.rows}
    assert names == {f"person-0000{i}.png" for i in (5, 6, 7)}
    assert said[0].startswith("kept 3 (0 held out), left out 5; 2 × no caption; 1 × no word; 1 × not a pict")
    page = (tmp_path / "prepared" / "report.html").read_text()
    for name, told in {
        "person-00000.png": "there is no text",
        "person-00001.png": "somebody in a desert",
        "person-00003.png": "truncated",
        "person-00004.png": "32",
    }.items():
        assert name in page and told in page
    assert "no caption: 2" in page and "contact/2.jpg" in page


def test_nothing_that_can_be_used_is_an_error(world_on_disk: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path, 2)
    with pytest.raises(NestedAttentionError, match="none of 2 pictures can be used.*none of dragon in"):
        prepare(preparing(world_on_disk, tmp_path, word="dragon"), quietly)
    with pytest.raises(NestedAttentionError, match="there is no .*nowhere"):
        prepare(preparing(world_on_disk, tmp_path, pictures.parent / "nowhere"), quietly)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NestedAttentionError, match="has no pictures"):
        prepare(preparing(world_on_disk, tmp_path, tmp_path / "empty"), quietly)


def test_parquet_and_webdataset_give_what_a_folder_gives(
    world_on_disk: Path, tmp_path: Path, prepared: Path
) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    pictures = prepared.parent / "pictures"
    stems = sorted(path.stem for path in pictures.glob("*.txt"))[:5]
    parts = {"picture": "png", "caption": "txt", "reference": "reference.png", "weight": "weight.png"}
    table = {
        name: [(pictures / f"{stem}.{end}").read_bytes() for stem in stems] for name, end in parts.items()
    }
    table["caption"] = [text.decode() for text in table["caption"]]
    parquet.write_table(arrow.table({**table, "subject": stems}), tmp_path / "p.parquet", row_group_size=2)
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for stem in stems:
            for ending in parts.values():
                archive.add(pictures / f"{stem}.{ending}", f"a/{stem}.{ending}")
            subject = tarfile.TarInfo(f"a/{stem}.subject.txt")
            subject.size = len(stem)
            archive.addfile(subject, io.BytesIO(stem.encode()))
    folder = samples_of(SourceSettings(path=pictures))[:5]
    for kind, path in (("parquet", "p.parquet"), ("webdataset", "p.tar")):
        source = SourceSettings(kind=kind, path=tmp_path / path)  # type: ignore[arg-type]
        samples = samples_of(source)
        assert [s.subject for s in samples] == stems
        for ours, theirs in zip(samples, folder, strict=True):
            assert ours.picture() == theirs.picture() and ours.caption().strip() == theirs.caption().strip()  # type: ignore[union-attr]
            assert ours.more["reference"]() == theirs.more["reference"]()
        made = prepare(
            preparing(world_on_disk, tmp_path, output=tmp_path / kind, source=source, held_out=0), quietly
        )
        there = Index.read(prepared)
        read = ShardData(tmp_path / kind, replace(made, mean_weight=there.mean_weight)).read(
            torch.arange(5), {}
        )
        whole = ShardData(prepared, there)
        named = {whole.row(i).name: i for i in range(len(whole))}
        held = ShardData(prepared, there, held_out=True)
        for place, stem in enumerate(stems):
            where, row = whole, named.get(f"{stem}.png")
            if row is None:
                where, row = held, [held.row(i).name for i in range(4)].index(f"{stem}.png")
            wanted = where.read(torch.tensor([row]), {})
            for name in (name for names in PARTS.values() for name in names):
                torch.testing.assert_close(read[name][place], wanted[name][0], rtol=2e-2, atol=2e-2)


def test_a_parquet_file_may_count_subjects_from_0_and_lack_what_is_optional(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = {
        "picture": [b"1", b"2", b"3", b"4"],
        "caption": ["a person"] * 4,
        "subject": [0, 0, 1, None],
        "weight": [None, b"w", None, b"v"],
        "mask": [b"m"] * 4,
        "reference": arrow.array([None] * 4, arrow.binary()),
    }
    parquet.write_table(arrow.table(rows), tmp_path / "p.parquet", row_group_size=3)
    found = samples_of(SourceSettings(kind="parquet", path=tmp_path / "p.parquet"))
    assert [one.subject for one in found] == ["0", "0", "1", "p.parquet:1:0"]
    assert [sorted(one.more) for one in found] == [["mask"], ["mask", "weight"], ["mask"], ["mask", "weight"]]
    assert found[1].more["weight"]() == b"w"


def test_files_of_one_name_in_two_folders_show_different_subjects(tmp_path: Path) -> None:
    """A reference is another picture of the subject: two people who are taken for one would be paired."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        table = arrow.table({"picture": [b"1", b"2"], "caption": ["a person"] * 2})
        parquet.write_table(table, tmp_path / folder / "0000.parquet")
        with tarfile.open(tmp_path / folder / "0000.tar", "w") as archive:
            for name, content in {
                "000000.png": b"1",
                "000001.png": b"2",
                "000001.subject.txt": b" \n",
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    for kind, rows in (("parquet", ("0:0", "0:1")), ("webdataset", ("000000", "000001"))):
        ending = {"parquet": "parquet", "webdataset": "tar"}[kind]
        whole = samples_of(SourceSettings(kind=kind, path=tmp_path))  # type: ignore[arg-type]
        named = [f"{folder}/0000.{ending}:{row}" for folder in "ab" for row in rows]
        assert [sample.subject for sample in whole] == [sample.name for sample in whole] == named
        alone = SourceSettings(kind=kind, path=tmp_path / "a" / f"0000.{ending}")  # type: ignore[arg-type]
        assert [sample.subject for sample in samples_of(alone)] == [f"0000.{ending}:{row}" for row in rows]


def test_a_parquet_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"image": [b""]}), tmp_path / "p.parquet")
    with pytest.raises(NestedAttentionError, match="has the columns image; expected picture and caption"):
        samples_of(SourceSettings(kind="parquet", path=tmp_path / "p.parquet"))
    (tmp_path / "q.parquet").write_bytes(b"PAR")
    with pytest.raises(NestedAttentionError, match="q.parquet cannot be read as a parquet file"):
        samples_of(SourceSettings(kind="parquet", path=tmp_path / "q.parquet"))
    (tmp_path / "t.tar").write_bytes(b"no tar")
    with pytest.raises(NestedAttentionError, match="t.tar cannot be read as a .tar file"):
        samples_of(SourceSettings(kind="webdataset", path=tmp_path / "t.tar"))


def recipe(**changed: Any) -> Recipe:
    return Recipe(replace(preparing(Path("w"), Path("f")), smallest=64, resolution=512, **changed))


def photograph(tmp_path: Path, name: str, alpha: bool = False) -> Any:
    """One of the photographs that scikit-image ships, as a sample."""
    from skimage import data

    tmp_path.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(getattr(data, name)())
    if alpha:
        mask = Image.new("L", picture.size, 0)
        mask.paste(255, (100, 20, 350, 280))
        picture.putalpha(mask)
    picture.save(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_text("a photo of it")
    return samples_of(SourceSettings(path=tmp_path))[0]


def test_faces_takes_the_aligned_face_and_the_whole_photograph(tmp_path: Path) -> None:
    sample = photograph(tmp_path / "a", "astronaut")
    faces = recipe(recipe="faces", square=False, step=64)
    look = faces.look(sample)
    found = faces.prepare(sample, look)
    picture = pixels(Image.open(io.BytesIO(sample.picture())))
    aligned = align_faces(picture[None], face_detector())
    torch.testing.assert_close(found.reference, aligned.crops[0].movedim(-1, 0))
    assert look.size == (512, 512) and found.target.shape == (3, 512, 512)
    assert found.reference.shape == (3, 512, 512) and not torch.equal(found.reference, found.target)
    with pytest.raises(Rejected, match="no face"):
        faces.look(photograph(tmp_path / "c", "chelsea"))


def test_photographs_go_from_the_picture_to_a_trained_file(world_on_disk: Path, tmp_path: Path) -> None:
    """scikit-image's astronaut and cat, at 64 pixels: the face and the photograph, the pet and itself."""
    for name, kind, word in (("astronaut", "faces", "person"), ("chelsea", "pets", "pet")):
        folder = tmp_path / word
        photograph(folder / "pictures", name)
        (folder / "pictures" / f"{name}.txt").write_text(f"a photo of a {word}")
        sizes: dict[str, Any] = {"resolution": 64, "step": 16, "square": False, "size_conditioning": None}
        settings = preparing(world_on_disk, folder, recipe=kind, word=word, **sizes)
        index = prepare(settings, quietly)
        (shard,) = index.shards
        assert shard.size == {"astronaut": (64, 64), "chelsea": (48, 80)}[name]
        run = training(world_on_disk, settings.output, folder / "run", steps=1)
        run = replace(run, phases=(replace(run.phases[0], batch=1),))
        encoder = load_subject_encoder(train(run, say=quietly))
        assert encoder.config.word == word and read_card(run.file).samples == 1


def test_a_face_is_looked_for_once(
    world_on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again to encode it, for the report, or in a later run; but where notes of an older version lack
    its place. Pictures without a caption are not looked at."""
    for number in range(3):
        photograph(tmp_path / "pictures" / str(number), "astronaut")
        (tmp_path / "pictures" / str(number) / "astronaut.txt").write_text("a person" if number else "")
    file = tmp_path / "pictures" / "2" / "astronaut.png"
    ImageOps.mirror(Image.open(file)).save(file)
    find, found = TiledFaceDetector.__call__, []

    def counted(detector: TiledFaceDetector, picture: torch.Tensor) -> Any:
        found.append(torch.get_num_threads())
        return find(detector, picture)

    monkeypatch.setattr(TiledFaceDetector, "__call__", counted)
    recipe = preparing(world_on_disk, tmp_path, recipe="faces", held_out=1, workers=2)
    before = torch.get_num_threads()
    index = prepare(recipe, quietly)
    assert found == [1, 1] and torch.get_num_threads() == before, "a core each"
    assert prepare(recipe, quietly) == index and len(found) == 2
    notes = recipe.output / "looked.jsonl"
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    notes.write_text("".join(json.dumps([key, {"size": v["size"]}]) + "\n" for key, v in lines))
    assert prepare(recipe, quietly) == index and len(found) == 4


def test_pets_are_as_they_are_or_on_white(tmp_path: Path) -> None:
    sample = photograph(tmp_path / "a", "chelsea")
    look = recipe(recipe="pets").look(sample)
    as_it_is = recipe(recipe="pets").prepare(sample, look)
    assert as_it_is.reference.shape == (3, 300, 451)
    with pytest.raises(Rejected, match="no mask"):
        recipe(recipe="pets", isolate=True).look(sample)
    cut = photograph(tmp_path / "b", "chelsea", alpha=True)
    isolated = recipe(recipe="pets", isolate=True).prepare(cut, look)
    assert isolated.reference.shape == (3, 512, 512) and bool((isolated.reference[:, :20] == 1).all())
    assert not bool((isolated.reference[:, 256, 256] == 1).all())


def test_the_word_takes_the_place_of_what_stands_for_it(world_on_disk: Path) -> None:
    frozen = FrozenEncoders.load(base_of(world_on_disk), torch.device("cpu"))
    words = recipe(word="person", replaces=("old man", "girl"))
    assert words.caption("A  girl,\nsitting", frozen.tokenize) == ("A person, sitting", [2])
    assert words.caption("an old man and a girl", frozen.tokenize)[0] == "an person and a girl"
    assert words.caption("a person and a girl", frozen.tokenize) == ("a person and a girl", [2])
    assert words.caption("a person and a <Person>", frozen.tokenize) == ("a person and a person", [5])
    assert words.caption("a girl and a <girl>", frozen.tokenize) == ("a girl and a person", [5])
    assert words.caption("a <girl> and a person", frozen.tokenize) == ("a person and a person", [2])
    with pytest.raises(Rejected, match="none of person, old man, girl in 'a girlish desert'"):
        words.caption("a girlish desert", frozen.tokenize)
    with pytest.raises(Rejected, match="no caption"):
        words.caption(" \n", frozen.tokenize)
    with pytest.raises(Rejected, match="cuts the text off"):
        words.caption("tree " * 90 + "person", frozen.tokenize)


def test_a_vae_that_gives_nan_is_told_with_file_and_remedy(world_on_disk: Path, people: Path) -> None:
    vae = people / "vae"
    shutil.copytree(world_on_disk / "vae", vae)
    scale_weights(vae, float("nan"))
    model = replace(base_of(world_on_disk), vae=str(vae))
    said = r"person-\d+.png: its latents are NaN.*float32.*sdxl-vae-fp16-fix"
    with pytest.raises(NestedAttentionError, match=said):
        prepare(preparing(world_on_disk, people, model=model), quietly)


def test_too_little_memory_halves_the_batch_or_names_the_picture(
    world_on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Path
) -> None:
    shutil.copytree(prepared.parent / "pictures", tmp_path / "pictures")
    encode, most = FrozenEncoders.encode_pictures, [2]

    def limited(self: FrozenEncoders, pictures: torch.Tensor) -> Any:
        if len(pictures) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return encode(self, pictures)

    monkeypatch.setattr(FrozenEncoders, "encode_pictures", limited)
    index = prepare(preparing(world_on_disk, tmp_path), quietly)
    assert sum(len(shard.rows) for shard in index.shards) == 16
    most[0] = 0
    other = preparing(world_on_disk, tmp_path, output=tmp_path / "other")
    with pytest.raises(NestedAttentionError, match="person-.*png: out of memory with one picture at a time"):
        prepare(other, quietly)


def test_a_full_disk_stops_it_and_what_is_there_is_kept(
    world_on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Path
) -> None:
    from nested_attention.storage import tensors

    shutil.copytree(prepared.parent / "pictures", tmp_path / "pictures")
    save, saved = tensors.save_file, []

    def full(content: Any, path: Any, metadata: Any) -> None:
        if len(saved) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        saved.append(save(content, path, metadata))

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(NestedAttentionError, match="safetensors cannot be written .No space left on device"):
        prepare(preparing(world_on_disk, tmp_path), quietly)
    assert len(list((tmp_path / "prepared" / "shards").iterdir())) == 2
    monkeypatch.setattr(tensors, "save_file", save)
    with counting() as counts:
        prepare(preparing(world_on_disk, tmp_path), quietly)
    assert counts == more(4, 4, 4)


def test_the_base_model_draws_what_the_paper_trains_pets_on(world_on_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a pet in the desert\n\na pet on a sofa\n")
    generating = GenerateSettings(
        prompts=tmp_path / "prompts.txt", folder=tmp_path / "drawn", each=2, size=32, steps=2, guidance=2.0
    )
    synthetic = preparing(
        world_on_disk, tmp_path, source=None, generate=generating, recipe="synthetic", word="pet", held_out=0
    )
    index = prepare(synthetic, quietly)
    rows = [row for shard in index.shards for row in shard.rows]
    captions = ["a pet on a sofa"] * 2 + ["a photo of a pet in the desert"] * 2
    assert sorted(row.caption for row in rows) == captions
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "drawn").glob("*.png")}
    assert len(set(drawn.values())) == 4
    read = ShardData(synthetic.output, index).read(torch.arange(4), {})
    assert read["features"].unique(dim=0).shape[0] == 4
    (tmp_path / "prompts.txt").write_text("a pet on a sofa\na pet at night\n")
    with counting() as counts:
        prepare(synthetic, quietly)
    assert counts == more(2, 2, 2), "those of the prompt that stayed were neither drawn nor encoded again"
    kept = {p.name for p in (tmp_path / "drawn").glob("*.png")} & set(drawn)
    assert len(kept) == 2


def test_only_what_was_drawn_here_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs in the folder stay, whatever they are called, drawn pictures until others are there; a base
    model may move."""
    from nested_attention.training.prepare import generate as module

    monkeypatch.setattr(module, "_draw", lambda *given: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(module, "load_pipeline", lambda *given: MagicMock())
    folder = tmp_path / "pets"
    folder.mkdir()
    mine = {folder / f"{name}.{end}" for name in ("my_dog", "0" * 32) for end in ("png", "txt")}
    for path in mine:
        path.write_text("mine")
    Image.new("RGB", (8, 8)).save(folder / f"{'1' * 32}.png")
    theirs = {folder / f"{'1' * 32}.png"}
    (tmp_path / "prompts.txt").write_text("a pet\na cat")
    drawing = GenerateSettings(prompts=tmp_path / "prompts.txt", folder=folder, each=2)

    def drawn(base: str, settings: GenerateSettings) -> set[Path]:
        module.generate(BaseModel(base=Place(base)), settings, torch.device("cpu"))
        found = set(folder.iterdir())
        assert mine | theirs < found and all(path.read_text() == "mine" for path in mine)
        return found - mine - theirs

    for place in ("here", "there"):
        (tmp_path / place / "sdxl").mkdir(parents=True)
    first = drawn(str(tmp_path / "here" / "sdxl"), drawing)
    assert len(first) == 8 and drawn(str(tmp_path / "there" / "sdxl"), drawing) == first
    other = drawn(str(tmp_path / "here" / "sdxl"), replace(drawing, guidance=7.0))
    assert len(other) == 8 and not other & first


def test_pipelines_draw_with_the_autoencoder_that_is_named(world_on_disk: Path, tmp_path: Path) -> None:
    shutil.copytree(world_on_disk / "vae", tmp_path / "vae")
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    own = base_of(world_on_disk)
    for model, empty in ((own, False), (replace(own, vae=Place(str(tmp_path / "vae"))), True)):
        pipeline = load_pipeline(model, torch.bfloat16, torch.device("cpu"))
        assert {pipeline.vae.dtype, pipeline.unet.dtype} == {torch.bfloat16}
        assert empty is not any(parameter.any() for parameter in pipeline.vae.parameters())


def test_settings_that_exclude_each_other_are_refused() -> None:
    good = preparing(Path("w"), Path("f"))
    for changed, said in (
        ({"recipe": "synthetic"}, "expected `generate`"),
        ({"source": None}, "expected `source`"),
        ({"resolution": 33}, "no multiple of step"),
        ({"word": "<x>"}, "a word for the subject"),
        ({"batch": 0}, "batch is 0"),
        ({"held_out": -1}, "held_out is -1"),
        ({"sizes": ()}, r"sizes is \[\]; expected heights and widths"),
        ({"sizes": ((32, 32), (32, 0))}, r"sizes is \[\[32, 32\], \[32, 0\]\]"),
    ):
        with pytest.raises(NestedAttentionError, match=said):
            replace(good, **changed)  # type: ignore[arg-type]


@given(st.integers(40, 4000), st.integers(40, 4000), st.sampled_from([(512, 64), (1024, 64), (1024, 32)]))
@settings(max_examples=60, deadline=None)
def test_a_picture_goes_to_the_size_of_the_nearest_shape(
    height: int, width: int, how: tuple[int, int]
) -> None:
    resolution, step = how
    sizes = bucket_sizes(resolution, step, square=False)
    found = bucket_of((height, width), sizes)
    assert all(h % step == w % step == 0 and h * w <= resolution**2 and 0.5 <= w / h <= 2 for h, w in sizes)
    assert (resolution, resolution) in sizes and all((w, h) in sizes for h, w in sizes)

    def apart(size: tuple[int, int]) -> float:
        return abs(np.log(size[1] / size[0]) - np.log(width / height))

    assert apart(found) <= min(map(apart, sizes)) + 1e-9


def test_fitting_keeps_the_middle_and_tells_what_was_cut() -> None:
    picture = torch.zeros(40, 80, 3)
    picture[:, 15:65] = 1  # more than the cut shows: resampling reads beside it
    cut, told = fit(picture, (20, 20))
    assert cut.shape == (3, 20, 20) and float(cut.mean()) == 1 and told == (40, 80, 0, 10, 20, 20)


def test_an_index_of_another_version_is_refused(people: Path) -> None:
    path = people / "prepared" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(NestedAttentionError, match="training_shards version 99"):
        Index.read(people / "prepared")
    path.unlink()
    with pytest.raises(NestedAttentionError, match="was not prepared, or not to the end"):
        Index.read(people / "prepared")


def test_a_model_that_is_not_there_is_named(world_on_disk: Path, tmp_path: Path) -> None:
    draw(tmp_path, 2)
    model = replace(base_of(world_on_disk), vision=str(tmp_path / "nothing"))
    with pytest.raises(NestedAttentionError, match="CLIPVisionModel.* cannot be loaded from .*nothing"):
        prepare(preparing(world_on_disk, tmp_path, model=model), quietly)


@pytest.mark.parametrize("recipe", ["identities", "pets"])
def test_a_folder_is_one_subject_for_albums_only(tmp_path: Path, recipe: str) -> None:
    """Pictures that lie in folders for another reason are not taken for pictures of one subject."""
    for name in ("00000/a.png", "00000/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    samples = samples_of(SourceSettings(path=tmp_path), by_folder=recipe == "identities")
    found = {sample.name: sample.subject for sample in samples}
    album = {"00000/a.png": "00000", "00000/b.png": "00000", "c.png": "c.png"}
    assert found == (album if recipe == "identities" else {name: name for name in album})


def test_the_recipe_says_whether_a_folder_is_a_subject(
    world_on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def ask(source: SourceSettings, *, by_folder: bool = False) -> None:
        asked.append(by_folder)
        raise NestedAttentionError("asked")

    monkeypatch.setattr("nested_attention.training.prepare.run.samples_of", ask)
    (tmp_path / "pictures").mkdir()
    for recipe in ("identities", "pets", "faces"):
        with pytest.raises(NestedAttentionError, match="asked"):
            prepare(preparing(world_on_disk, tmp_path, recipe=recipe), quietly)
    assert asked == [True, False, False]


@pytest.mark.parametrize("says", [True, False])
def test_an_album_in_a_tar_says_whose_pictures_are(world_on_disk: Path, people: Path, says: bool) -> None:
    """Without that, each picture is its own reference: whoever prepares it is told, and how to say it."""
    with tarfile.open(people / "album.tar", "w") as archive:
        for number in range(6):
            key = f"anna/{number}" if number < 3 else f"ben/{number}"
            for ending in ("png", "txt"):
                archive.add(people / "pictures" / f"person-{number:05d}.{ending}", f"{key}.{ending}")
            if says:
                subject = tarfile.TarInfo(f"{key}.subject.txt")
                subject.size = 4
                archive.addfile(subject, io.BytesIO(b"anna" if number < 3 else b"ben "))
    source, said = SourceSettings(kind="webdataset", path=people / "album.tar"), list[str]()
    index = prepare(
        preparing(world_on_disk, people, output=people / "album", source=source, held_out=0), said.append
    )
    assert len({row.subject for shard in index.shards for row in shard.rows}) == (2 if says else 6)
    told = [line for line in said if "no subject has two pictures" in line]
    assert len(told) == (0 if says else 1) and all("KEY.subject.txt" in line for line in told)
    page = (people / "album" / "report.html").read_text()
    assert ("no subject has two pictures" in page) is not says


def test_a_kill_while_the_end_is_written_forgets_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(prepared, tmp_path / "copy")
    before = (folder / "done.jsonl").read_bytes()
    index = Index.read(folder)

    def killed(file: str, wanted: str) -> None:
        raise KeyboardInterrupt

    journal = encoding.Journal(folder)
    monkeypatch.setattr(journal._verified, "check", killed)
    with pytest.raises(KeyboardInterrupt):
        journal.finish(index.shards, index.blank)
    assert (folder / "done.jsonl").read_bytes() == before
