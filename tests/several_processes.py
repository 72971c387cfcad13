"""A run of several processes for test_trainer.py: `several_processes.py FOLDER SECONDS STEPS [apart]` takes
so many seconds a step; with `apart` every process has a disk of its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from nested_attention.errors import NestedAttentionError
from nested_attention.training.data import Arrays, Batch
from nested_attention.training.schedule import Schedule
from nested_attention.training.trainer import Trainer, TrainerOptions

DATA = Arrays(x=torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))


def main() -> None:
    torch.manual_seed(0)
    folder, seconds, steps = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    if "apart" in sys.argv:
        folder = folder / str(PartialState(cpu=True).process_index)

    def objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        time.sleep(seconds)
        return {"square": models["net"](batch["x"]).square().mean(dim=1)}

    options = TrainerOptions(batch=2, workers=1, save_every=2 if "apart" in sys.argv else 1000)
    more: dict[str, Any] = {"loss_weights": {"square": 1.0}}
    run = Trainer(folder, {"net": torch.nn.Linear(4, 4)}, DATA, objective, Schedule(steps), options, **more)
    print("begun", flush=True)
    try:
        run.run()
    except NestedAttentionError as error:
        print(error, flush=True)


if __name__ == "__main__":
    main()
