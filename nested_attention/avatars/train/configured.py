"""Stage 5: a subject encoder for people or pets, trained as anybody trains one: from the files in `configs`.

The world is frozen, and the loss is the paper's (Sec. 3.3). A crop of the subject is the input, the full
picture the target, and the prompt says `person` or `pet` without anything that identity fixes. Crop and
picture differ in pose, expression, scene and clothing, so that copying does not pay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...paths import CONFIGS
from ...training.frozen import BaseModel
from ...training.prepare.run import prepare
from ...training.prepare.settings import PrepareSettings, SourceSettings
from ...training.reading import Place, read_config
from ...training.run import train
from ...training.settings import StartSettings, TrainSettings
from ...training.trainer import TrainerOptions
from ..models.pipeline import export_world
from ..models.world import load_world


def train_from_configuration(
    folder: Path,
    weights: Path,
    word: str,
    pictures: Path,
    *,
    minutes: float,
    adapt: Callable[[TrainerOptions], TrainerOptions],
    start: Path | None = None,
) -> Path:
    """`nested-attention world export`, then `prepare` and `train`; the encoder's file.

    folder: where all of it is kept; what has been encoded or trained there is not done again. weights: the
    world's folder. pictures: as `nested-attention world pictures` writes them. minutes: of training at most.
    adapt: the configuration's batch, rate, seed and workers to the machine. start: an encoder to begin with,
    in place of the configuration's start.
    """
    base = folder / "small-world"
    export_world(base, load_world(weights))
    model = BaseModel(base=Place(str(base)), precision="fp32")
    source = SourceSettings(path=pictures)
    preparing = read_config(CONFIGS / "prepare" / f"small-{word}.yaml", PrepareSettings)
    prepare(replace(preparing, model=model, source=source, output=folder / "prepared"))
    settings = read_config(CONFIGS / "train" / f"small-{word}.yaml", TrainSettings)
    (phase,) = settings.phases
    known = TrainerOptions(batch=phase.batch, rate=phase.rate, seed=settings.seed, workers=settings.workers)
    adapted = adapt(known)
    phase = replace(phase, data=folder / "prepared", minutes=minutes, batch=adapted.batch, rate=adapted.rate)
    settings = replace(settings, model=model, output=folder, seed=adapted.seed, workers=adapted.workers)
    begin = settings.start if start is None else StartSettings(kind="file", path=start)
    return train(replace(settings, phases=(phase,), start=begin))
