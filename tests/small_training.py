"""The small world as a base model on disk, pictures of it, and configurations that prepare and train on
them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nested_attention.avatars.train.folder import write_pictures
from nested_attention.training.frozen import BaseModel
from nested_attention.training.prepare.settings import PrepareSettings, SourceSettings
from nested_attention.training.settings import (
    EncoderSettings,
    LossSettings,
    PhaseSettings,
    TrainSettings,
    ValidationSettings,
)

SIZES = EncoderSettings(num_queries=8, width=64, depth=1, heads=2, head_dim=32)


def base_of(world: Path) -> BaseModel:
    return BaseModel(base=str(world), precision="fp32")  # type: ignore[arg-type]


def preparing(world: Path, folder: Path, pictures: Path | None = None, **changed: Any) -> PrepareSettings:
    """Settings that prepare `folder`/pictures, or other ones, into `folder`/prepared."""
    settings = PrepareSettings(
        model=base_of(world),
        output=folder / "prepared",
        recipe="identities",
        source=SourceSettings(path=pictures or folder / "pictures"),
        resolution=32,
        step=32,
        square=True,
        smallest=16,
        size_conditioning=(128, 128, 0, 0, 128, 128),
        held_out=4,
        shard=6,
        batch=4,
        workers=1,
    )
    return replace(settings, **changed)


def draw(folder: Path, number: int = 16, word: str = "person", pairs: float = 0.0) -> Path:
    write_pictures(folder / "pictures", word, number, pairs=pairs, each=1)
    return folder / "pictures"


def training(world: Path, prepared: Path, output: Path, steps: int = 4, **changed: Any) -> TrainSettings:
    """Settings of a short run on prepared data."""
    settings = TrainSettings(
        model=base_of(world),
        output=output,
        name="small",
        licence="CC0",
        source="drawn here",
        phases=(PhaseSettings(data=prepared, batch=4, steps=steps, rate=1e-3, warmup=1),),
        encoder=SIZES,
        loss=LossSettings(),
        validation=ValidationSettings(every=0),
        precision="fp32",
        gradient_checkpointing=False,
        save_every=2,
        workers=0,
    )
    return replace(settings, **changed)


def log_of(folder: Path) -> list[dict[str, float]]:
    """What a run has noted, line by line."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
