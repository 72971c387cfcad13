"""Where pictures and captions come from: folders, parquet files, webdataset's tar files.

A source lists its samples without reading pictures, in an order of its own that does not change, and gives
the bytes of each when asked, in any order.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ...errors import NestedAttentionError
from .settings import SourceSettings

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_EXTRAS = ("reference", "mask", "weight")

Read = Callable[[], bytes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One picture of a source, not read yet. more: its own `reference`, `mask` and `weight`, where they are.

    name: no other's of the source. caption: None where there is none. subject: whom it shows; the name where
    the source does not say.
    """

    name: str
    picture: Read
    caption: Callable[[], str | None]
    subject: str
    more: Mapping[str, Read] = field(default_factory=dict)


def samples_of(source: SourceSettings, *, by_folder: bool = False) -> list[Sample]:
    """All samples of a source. Raises NestedAttentionError if there are none, or it cannot be read.

    by_folder: the pictures of one folder below the source's show one subject. Otherwise each picture of a
    folder shows a subject of its own: folders of photographs are made for other reasons too.
    """
    if not source.path.exists():
        raise NestedAttentionError(f"source.path: there is no {source.path}")
    found = list(_KINDS[source.kind](source.path))
    if source.kind == "folder" and not by_folder:
        found = [replace(sample, subject=sample.name) for sample in found]
    if not found:
        raise NestedAttentionError(
            f"source.path: {source.path} has no pictures; expected, for the kind {source.kind!r}, "
            f"{_EXPECTED[source.kind]}"
        )
    return found


_EXPECTED = {
    "folder": f"files that end with {', '.join(PICTURES)}",
    "parquet": "a .parquet file, or a folder of them",
    "webdataset": "a .tar file, or a folder of them, with pictures in them",
}


def _folder(root: Path) -> Iterator[Sample]:
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in PICTURES or Path(path.stem).suffix in (f".{name}" for name in _EXTRAS):
            continue
        beside = {name: path.with_name(f"{path.stem}.{name}.png") for name in _EXTRAS}
        parent = path.parent.relative_to(root).as_posix()
        name = path.relative_to(root).as_posix()
        yield Sample(
            name=name,
            picture=path.read_bytes,
            caption=partial(_text_beside, path.with_suffix(".txt")),
            subject=name if parent == "." else parent,
            more={name: file.read_bytes for name, file in beside.items() if file.exists()},
        )


def _text_beside(path: Path) -> str | None:
    return path.read_text(encoding="utf-8-sig") if path.exists() else None


def _files(root: Path, ending: str) -> list[tuple[Path, str]]:
    """The files of a source, each with its path below the source's folder: files in two folders may have one
    name, and what one holds is not what the other does."""
    if root.is_file():
        return [(root, root.name)]
    return [(path, path.relative_to(root).as_posix()) for path in sorted(root.rglob(f"*{ending}"))]


def _webdataset(root: Path) -> Iterator[Sample]:
    for path, place in _files(root, ".tar"):
        members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as archive:  # not packed: members are read where they lie
                for member in archive:
                    if member.isfile():
                        stem, _, ending = Path(member.name).name.partition(".")
                        key = (Path(member.name).parent / stem).as_posix()
                        members.setdefault(key, {})[ending.lower()] = (member.offset_data, member.size)
        except (OSError, tarfile.TarError) as error:
            raise NestedAttentionError(f"{path} cannot be read as a .tar file: {error}") from error
        for key, parts in members.items():
            picture = next((end for end in parts if f".{end}" in PICTURES), None)
            if picture is None:
                continue
            read = {end: partial(_part, path, *part) for end, part in parts.items()}
            name = f"{place}:{key}"
            yield Sample(
                name=name,
                picture=read[picture],
                caption=partial(_decoded, read.get("txt")),
                subject=_subject(path, key, read.get("subject.txt")) or name,
                more={name: read[f"{name}.png"] for name in _EXTRAS if f"{name}.png" in read},
            )


def _subject(path: Path, key: str, read: Read | None) -> str:
    """What a `.subject.txt` says; "" without one."""
    if read is None:
        return ""
    try:
        return read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise NestedAttentionError(f"{path}: {key}.subject.txt is not text in UTF-8 ({error})") from error


def _part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _decoded(read: Read | None) -> str | None:
    return None if read is None else read().decode("utf-8-sig")


def _parquet(root: Path) -> Iterator[Sample]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise NestedAttentionError("parquet files need pyarrow: pip install pyarrow") from error
    for path, place in _files(root, ".parquet"):
        try:
            file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise NestedAttentionError(f"{path} cannot be read as a parquet file: {error}") from error
        columns = set(file.schema_arrow.names)
        if not {"picture", "caption"} <= columns:
            raise NestedAttentionError(
                f"{path} has the columns {', '.join(sorted(columns))}; expected picture and caption, and "
                "where needed subject, reference, mask and weight"
            )
        told = [name for name in ("caption", "subject") if name in columns]
        for group in range(file.num_row_groups):
            there = {extra: _filled(file, path, group, extra) for extra in _EXTRAS if extra in columns}
            for row, values in enumerate(file.read_row_group(group, columns=told).to_pylist()):
                name, subject = f"{place}:{group}:{row}", values.get("subject")
                more = [extra for extra, rows in there.items() if rows[row]]
                yield Sample(
                    name=name,
                    picture=partial(_cell, path, group, row, "picture"),
                    caption=partial(_same, values["caption"]),
                    subject=name if subject in (None, "") else str(subject),
                    more={extra: partial(_cell, path, group, row, extra) for extra in more},
                )


def _filled(file: Any, path: Path, group: int, column: str) -> Sequence[bool]:
    """Which rows have something in a column of pictures, which is read only where the file does not say."""
    rows = file.metadata.row_group(group)
    leaves = map(rows.column, range(rows.num_columns))
    told = [leaf.statistics for leaf in leaves if leaf.path_in_schema.split(".")[0] == column]
    if any(one is not None and one.has_null_count and not one.null_count for one in told):
        return [True] * rows.num_rows
    found: list[bool] = _column(path, group, column).is_valid().to_pylist()
    return found


def _same(text: str | None) -> str | None:
    return text


def _cell(path: Path, group: int, row: int, column: str) -> bytes:
    value = _column(path, group, column)[row].as_py()
    return value["bytes"] if isinstance(value, dict) else value


@lru_cache(maxsize=8)
def _column(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(0)


_KINDS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "folder": _folder,
    "parquet": _parquet,
    "webdataset": _webdataset,
}
