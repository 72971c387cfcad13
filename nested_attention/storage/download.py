"""Fetching known weights from the model hub into ComfyUI's folders.

The file is fetched next to where it belongs, checked in full (size and SHA-256 as the hub gives them, then
the header), and only then moved into place in one step: what lies under the final name is always complete.
What has come of it is kept when a download fails or is killed, and the next run goes on from there. The
hub's client does so within a run only, so the partial file is ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import NestedAttentionError
from .files import open_regular, sha256_of
from .layouts import recognise
from .registry import KnownWeights, known_weights
from .tensors import read_shapes

STAGING = ".nested-attention-download"
_SHA256 = re.compile(r"[0-9a-f]{64}")

Say = Callable[[str], None]


def models_folder(comfyui: Path) -> Path:
    """ComfyUI's folder of models. Raises NestedAttentionError if this is no ComfyUI."""
    models = comfyui / "models"
    if not models.is_dir():
        raise NestedAttentionError(
            f"there is no folder {models}; expected ComfyUI's folder, with models in it. Say where it is "
            "with --comfyui"
        )
    return models


def overview(models: Path | None) -> list[str]:
    """A few lines on each of the known weights, and whether it lies in ComfyUI's folder of models."""
    lines = []
    for known in known_weights().values():
        place = None if models is None else known.place(models)
        state = "ComfyUI was not found" if place is None else "not installed"
        if place is not None and place.is_file():
            state = f"installed: {place}"
        lines += [
            known.name,
            f"    {known.title}",
            f"    licence {known.licence}, from {known.repo}{f', {known.size}' if known.size else ''}",
            f"    {state}",
        ]
    return lines


def licence_text(known: KnownWeights) -> list[str]:
    """What somebody has to know before the file is fetched."""
    lines = [
        known.title,
        f"From: {known.page}{f' ({known.size})' if known.size else ''}",
        f"Licence: {known.licence} ({known.licence_url})",
        known.terms,
    ]
    return [*lines, known.note] if known.note else lines


def download(known: KnownWeights, models: Path, say: Say, *, accept_unverified: bool = False) -> Path:
    """Fetches the file into its folder, and returns its path; one that is there already is kept.

    accept_unverified: take the file although the hub gives no SHA-256 for it, by which a changed one would be
    noticed. Raises NestedAttentionError, saying how to get the file by hand, if the hub cannot be reached,
    refuses, or sends something else than it announced, and if the file cannot be written.
    """
    place = known.place(models)
    if place.is_file():
        return _already(place, say)
    hub = _client(known, models)
    facts = _facts(hub, known, models)
    digest = facts.etag if facts.etag and _SHA256.fullmatch(facts.etag) else None
    if digest is None:
        if not accept_unverified:
            raise NestedAttentionError(
                f"the hub gives no SHA-256 for {known.file} of {known.repo}: a changed file would not be "
                f"noticed. Nothing was fetched. Look at {known.page}; if you trust it, add "
                "--accept-unverified"
            )
        say(f"The hub gives no SHA-256 for {known.file}: its content is not verified")
    staging = place.parent / STAGING / place.name  # one file's, so that another's partial one stays
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / "lock", timeout=0):
            there = place.is_file()  # another download may have ended since it was asked first
            if not there:
                part = _fetch(hub, known, facts, staging, models)
                try:
                    check_content(part, facts.size, digest)
                except NestedAttentionError as error:
                    shutil.rmtree(staging, ignore_errors=True)  # nothing can come of it
                    raise NestedAttentionError(f"{error}. {known.by_hand(models)}") from error
                os.replace(part, place)
            shutil.rmtree(staging, ignore_errors=True)  # here: afterwards it may be another download's
    except Timeout as error:
        raise NestedAttentionError(
            f"another download of {place} is under way; wait until it has ended, and try again"
        ) from error
    except OSError as error:
        raise NestedAttentionError(
            f"{place} cannot be written ({error.strerror or error}); check space and permissions. "
            f"{known.by_hand(models)}"
        ) from error
    for folder in (staging, staging.parent):  # Windows kept the former, whose lock was open
        with contextlib.suppress(OSError):  # gone, or another download is under way
            folder.rmdir()
    if there:
        return _already(place, say)
    say(f"Saved: {place}")
    _say_what_it_is(known, place, say)
    return place


def _already(place: Path, say: Say) -> Path:
    check_header(place)
    say(f"Already there: {place}")
    return place


def _client(known: KnownWeights, models: Path) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.file_download
    except ImportError as error:
        raise NestedAttentionError(
            "huggingface_hub is not installed, which downloads need: pip install huggingface_hub. Or by "
            f"hand: {known.by_hand(models)}"
        ) from error
    return huggingface_hub


def _facts(hub: Any, known: KnownWeights, models: Path) -> Any:
    """The size, the ETag (a large file's SHA-256) and the commit that the hub announces."""
    try:
        return hub.get_hf_file_metadata(hub.hf_hub_url(known.repo, known.file))
    except Exception as error:
        raise _failure(error, known, models) from error


def _fetch(hub: Any, known: KnownWeights, facts: Any, staging: Path, models: Path) -> Path:
    """The whole file in `staging`. What was there of it before is not fetched again."""
    # Named by its content: what has come of one file is never continued with another one's end.
    name = re.sub(r"[^0-9A-Za-z]", "", facts.etag or facts.commit_hash or "")[:64] or "unknown"
    part = staging / f"{name}.part"
    for other in staging.glob("*.part"):
        if other != part:
            other.unlink(missing_ok=True)  # of a version that the hub has replaced
    if name == "unknown" or _too_large(part, facts.size):
        part.unlink(missing_ok=True)
    try:
        with part.open("ab") as file:
            if facts.size is None or file.tell() < facts.size:  # else it was killed before it was checked
                # The commit of the facts, so that the file is theirs even if a newer one comes now.
                hub.file_download.http_get(
                    hub.hf_hub_url(known.repo, known.file, revision=facts.commit_hash),
                    file,
                    resume_size=file.tell(),
                    headers=hub.utils.build_hf_headers(),
                    expected_size=facts.size,
                    displayed_filename=known.target,
                )
    except Exception as error:
        if not _too_large(part, facts.size):
            raise _failure(error, known, models) from error
        part.unlink()  # a server that ignores where to go on from has sent everything again
        then = "More came than was announced, and the next run begins anew"
        raise _failure(error, known, models, then) from error
    return part


def _too_large(part: Path, size: int | None) -> bool:
    return size is not None and part.is_file() and part.stat().st_size > size


def _failure(
    error: Exception,
    known: KnownWeights,
    models: Path,
    then: str = "What has come of it is kept, and the next run goes on from there",
) -> NestedAttentionError:
    """Offline, blocked, refused, gone, out of space: the client raises its own, httpx's, requests' and the
    system's exceptions, which have no base of their own."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return NestedAttentionError(
        f"{known.file} of {known.repo} could not be fetched ({type(error).__name__}: {reason}). {then}. "
        f"Or by hand: {known.by_hand(models)}"
    )


def check_content(path: Path, size: int | None, digest: str | None) -> None:
    """Raises NestedAttentionError unless the file is as announced: bytes, SHA-256 and header.

    None: the hub did not say (a SHA-256 it gives for all large files).
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise NestedAttentionError(f"{path.name} has {found} bytes; the hub announced {size}")
    if digest is not None:
        with open_regular(path) as file:
            found_digest = sha256_of(file)
        if found_digest != digest:
            raise NestedAttentionError(
                f"{path.name} has the SHA-256 {found_digest}; the hub announced {digest}"
            )
    check_header(path)


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file. Raises NestedAttentionError if it is none, or cut off."""
    try:
        return read_shapes(path, safetensors_only=True)
    except NestedAttentionError as error:
        raise NestedAttentionError(
            f"{path} is no complete safetensors file ({error}); delete it and fetch it again"
        ) from error


def _say_what_it_is(known: KnownWeights, place: Path, say: Say) -> None:
    """The layout is recognised now rather than when a picture is wanted; the file is kept either way."""
    if known.kind == "encoder":
        try:
            config = recognise(check_header(place), {}).config
            say(f"Recognised: {config.num_queries} queries, {len(config.sites)} cross-attention layers")
        except NestedAttentionError as error:
            say(f"The file is complete, and its layout is not recognised: {error}. Please report this")
    for name in known.needs:
        needed = known_weights()[name]
        if not needed.place(place.parent.parent).is_file():
            say(f"It needs {name} as well: nested-attention download {name}")
