"""Fetching known weights from the model hub into ComfyUI's folders.

The file is fetched next to where it belongs, checked in full (size and SHA-256 as the hub gives them, then
the header), and only then moved into place in one step: what lies under the final name is always complete.
An interrupted download goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import NestedAttentionError
from .layouts import recognise
from .registry import KnownWeights, known_weights

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
            f"{known.name}{' (experimental)' if known.experimental else ''}",
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


def download(known: KnownWeights, models: Path, say: Say) -> Path:
    """Fetches the file into its folder, and returns its path; one that is there already is kept.

    Raises NestedAttentionError, saying how to get the file by hand, if the hub cannot be reached, refuses, or
    sends something else than it announced, and if the file cannot be written.
    """
    place = known.place(models)
    if place.is_file():
        check_header(place)
        say(f"Already there: {place}")
        return place
    staging = place.parent / STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NestedAttentionError(
            f"{place.parent} cannot be written ({error}); check its permissions. {known.by_hand(models)}"
        ) from error
    fetched, size, digest = _fetch(known, staging, models)
    try:
        check_content(fetched, size, digest)
    except NestedAttentionError as error:
        fetched.unlink(missing_ok=True)  # it would be taken for complete the next time
        raise NestedAttentionError(f"{error}. {known.by_hand(models)}") from error
    try:
        os.replace(fetched, place)
    except OSError as error:
        raise NestedAttentionError(f"{place} cannot be written ({error}); check its permissions") from error
    shutil.rmtree(staging, ignore_errors=True)
    say(f"Saved: {place}")
    _say_what_it_is(known, place, say)
    return place


def _fetch(known: KnownWeights, staging: Path, models: Path) -> tuple[Path, int | None, str | None]:
    """The file in `staging`, and the size and SHA-256 the hub announced."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise NestedAttentionError(
            "huggingface_hub is not installed, which downloads need: pip install huggingface_hub. Or by "
            f"hand: {known.by_hand(models)}"
        ) from error
    try:
        facts: Any = hub.get_hf_file_metadata(hub.hf_hub_url(known.repo, known.file))
        # The commit of the facts, so that the file is the one they are about even if a newer one comes now.
        path = hub.hf_hub_download(known.repo, known.file, revision=facts.commit_hash, local_dir=str(staging))
    # Offline, blocked, refused, gone, out of space: the client raises its own, httpx's, requests' and the
    # system's exceptions, which have no base of their own.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NestedAttentionError(
            f"{known.file} of {known.repo} could not be fetched ({type(error).__name__}: {reason}). What was "
            f"fetched is kept, and the next try goes on from there. Or by hand: {known.by_hand(models)}"
        ) from error
    digest = facts.etag if facts.etag and _SHA256.fullmatch(facts.etag) else None
    return Path(path), facts.size, digest


def check_content(path: Path, size: int | None, digest: str | None) -> None:
    """Raises NestedAttentionError unless the file is as announced: bytes, SHA-256 and header.

    None: the hub did not say (a SHA-256 it gives for all large files).
    """
    found = path.stat().st_size
    if size is not None and found != size:
        raise NestedAttentionError(f"{path.name} has {found} bytes; the hub announced {size}")
    if digest is not None:
        with path.open("rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(2**22):
                sha256.update(block)
        if sha256.hexdigest() != digest:
            raise NestedAttentionError(
                f"{path.name} has the SHA-256 {sha256.hexdigest()}; the hub announced {digest}"
            )
    check_header(path)


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file. Raises NestedAttentionError if it is none, or cut off."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
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
