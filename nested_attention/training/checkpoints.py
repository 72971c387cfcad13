"""Checkpoints of a run: folders `step-…`, written whole or not at all, of which the last ones are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from ..errors import NestedAttentionError


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete ones of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix)


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Bring a run to where a checkpoint was written. Raises NestedAttentionError for one that is damaged."""
    try:
        accelerator.load_state(str(path))
    except Exception as error:  # of pickled and of safe tensors, in many kinds
        raise NestedAttentionError(
            f"{path} cannot be read ({_short(error)}). Delete that folder: the same command then goes on "
            "from the checkpoint before it, or begins"
        ) from error


def save_checkpoint(
    accelerator: Accelerator, path: Path, keep: int, export: Callable[[Path], None] | None
) -> None:
    """Write a checkpoint and delete those beyond the last `keep`. export: writes what else belongs into it,
    on the main process. Raises NestedAttentionError if the disk does not take it."""
    partial = path.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    with naming_disk(partial):
        accelerator.save_state(str(partial))
        if export is not None and accelerator.is_main_process:
            export(partial)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with naming_disk(partial):
            _keep_safe(partial)
        partial.replace(path)
        for old in checkpoints_in(path.parent)[:-keep]:
            shutil.rmtree(old)


def _keep_safe(folder: Path) -> None:
    """What was written is on the disk, or a power failure could leave a folder of empty files under a name
    that says they are complete."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or os.name == "posix":  # elsewhere folders cannot be opened
            number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
            try:
                os.fsync(number)
            finally:
                os.close(number)


@contextmanager
def naming_disk(path: Path) -> Iterator[None]:
    """What cannot be written ends the run with its name, and leaves no part of a checkpoint."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, NestedAttentionError) as error:
        if path.suffix == ".partial":
            shutil.rmtree(path, ignore_errors=True)
        raise NestedAttentionError(
            f"{path.with_suffix('')} cannot be written ({_short(error)}); check space and permissions. The "
            "same command goes on from the last checkpoint"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
