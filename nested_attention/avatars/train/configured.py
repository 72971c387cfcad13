"""A subject encoder for people or pets, trained as anybody trains one: from the files in `configs`.

The world is frozen. The loss is that of denoising alone (Sec. 3.3), weighted by what a cell shows, at
timesteps that are denser at high noise. A crop of the subject is the input, the full picture the target, and
the prompt says `person` or `pet` without anything that identity fixes. Crop and picture differ in pose,
expression, scene and clothing, so that copying does not pay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...paths import CONFIGS
from ...training.frozen import BaseModel, default_device
from ...training.prepare.run import prepare
from ...training.prepare.settings import PrepareSettings, SourceSettings
from ...training.reading import Place, read_config
from ...training.run import train
from ...training.schedule import Schedule
from ...training.settings import StartSettings, TrainSettings
from ...training.trainer import TrainerOptions
from ..models.pipeline import export_world
from ..models.world import load_world
from .device import precision_of, unet_pass


def train_from_configuration(
    folder: Path,
    weights: Path,
    word: str,
    pictures: Path,
    *,
    schedule: Schedule,
    adapt: Callable[[TrainerOptions], TrainerOptions],
    start: StartSettings | None = None,
) -> Path:
    """`nested-attention world export`, then `prepare` and `train`; the encoder's file.

    folder: where all of it is kept; what has been encoded or trained there is not done again. weights: the
    world's folder. pictures: as `nested-attention world pictures` writes them. schedule: how many steps and
    minutes at most. adapt: the configuration's batch, rate, average, seed and workers to the machine; its
    precision is the faster one. start: what to begin with, in place of the configuration's start.
    """
    base, world = folder / "small-world", load_world(weights)
    export_world(base, world)
    model = BaseModel(base=Place(str(base)), precision="fp32")
    source = SourceSettings(path=pictures)
    preparing = read_config(CONFIGS / "prepare" / f"small-{word}.yaml", PrepareSettings)
    prepare(replace(preparing, model=model, source=source, output=folder / "prepared"))
    settings = read_config(CONFIGS / "train" / f"small-{word}.yaml", TrainSettings)
    (phase,) = settings.phases
    known = TrainerOptions(
        batch=phase.batch,
        rate=phase.rate,
        ema=settings.ema,
        seed=settings.seed,
        workers=settings.workers,
    )
    adapted = adapt(known)
    phase = replace(
        phase,
        data=folder / "prepared",
        batch=adapted.batch,
        rate=adapted.rate,
        steps=min(schedule.steps, phase.steps or schedule.steps),
        minutes=schedule.minutes,
    )
    faster = precision_of(folder, unet_pass(world.unet.to(default_device()), phase.batch))
    del world  # `train` reads its own copy
    settings = replace(
        settings,
        model=model,
        output=folder,
        phases=(phase,),
        start=start or settings.start,
        precision="bf16" if faster is torch.bfloat16 else "fp32",
        ema=adapted.ema,
        seed=adapted.seed,
        workers=adapted.workers,
    )
    return train(settings)
