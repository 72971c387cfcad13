"""What a run tells while it goes on: a line of figures every so many steps, in a file and to trackers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from ..errors import NestedAttentionError

TrackerName = Literal["tensorboard", "wandb"]


ALIKE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""How processes may share a run."""


def new_accelerator(folder: Path, trackers: Sequence[TrackerName]) -> Accelerator:
    """Where there is a GPU, on it. Raises NestedAttentionError for a tracker that is not installed, and for
    processes that would each hold a part of the model."""
    for name in trackers:
        if find_spec(name) is None:
            raise NestedAttentionError(
                f"figures were to go to {name}, which is not installed: pip install {name}, or take it out "
                "of `trackers`; log.jsonl has the same figures"
            )
    more: dict[str, Any] = {"log_with": list(trackers), "project_dir": str(folder)} if trackers else {}
    # Objectives choose their own precision and arithmetic, whatever `accelerate config` has been told.
    more |= {"mixed_precision": "no", "dynamo_backend": "no"}
    # All processes begin alike, and no step changes a buffer.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers, **more)
    accelerator.gradient_accumulation_steps = 1  # the environment's stands above an argument
    kind = accelerator.distributed_type
    if kind not in ALIKE:
        raise NestedAttentionError(
            f"Accelerate is set to {kind.value}; expected processes that each hold the whole model: launch "
            "with `accelerate launch --multi_gpu`, or put another `distributed_type` into its configuration"
        )
    if trackers:
        accelerator.init_trackers("figures", init_kwargs={"wandb": {"dir": str(folder)}})
    return accelerator


def memory_peak() -> float:
    """The most memory this process has held, in GB: of the GPU if there is one, else its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Records:
    """`log.jsonl` in a run's folder, and the trackers of its accelerator. Only the main process writes."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._path, self._accelerator = folder / "log.jsonl", accelerator
        self._since, self._samples = time.monotonic(), 0

    def begin(self, samples: int) -> None:
        """From here on, the rate of samples is counted."""
        self._since, self._samples = time.monotonic(), samples

    def write(self, step: int, samples: int, figures: Mapping[str, float]) -> None:
        """A line: figures, samples so far, samples a second since the last line, and memory."""
        now = time.monotonic()
        speed = (samples - self._samples) / max(now - self._since, 1e-9)
        self._since, self._samples = now, samples
        self.note(step, {
            "samples": samples, "samples/s": round(speed, 3), "memory GB": round(memory_peak(), 3), **figures
        })  # fmt: skip

    def show(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8 by name, to trackers."""
        for tracker in self._accelerator.trackers:
            more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None] for name, pixels in pictures.items()}, step=step, **more)

    def close(self) -> None:
        """Ends the trackers. `Accelerator.end_training` would end the group of processes too, which the next
        phase needs."""
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name, as they are."""
        if not self._accelerator.is_main_process:
            return
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **figures}) + "\n")
        self._accelerator.log(dict(figures), step=step)
