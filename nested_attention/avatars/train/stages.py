"""The whole recipe: which stage runs on what, for how long, and where its weights go.

Every stage reads the weights of those before it from the weights folder, so that each can be run again,
longer, or continued from the last checkpoint in the runs folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import load_subject_encoder, save_subject_encoder
from ...errors import NestedAttentionError
from ...paths import ADAPTERS, SMALL_WORLD
from ...training.schedule import Schedule
from ...training.settings import StartSettings
from ...training.trainer import TrainerOptions
from ..drawing.identity import Person, Pet
from ..models.control import load_control, save_control
from ..models.lora import save_lora
from ..models.scorers import save_scorer
from ..models.world import load_part, load_world, save_part
from . import base, clip, encoders, pose_and_style, reading, scorers, text, vae
from .configured import train_from_configuration
from .data import CloseUps, Crops, Pictures, draw_both, draw_close_ups, draw_crops, drawing_version
from .device import for_device, prepare_device
from .folder import write_pictures
from .pose_data import PoseData, draw_pose_data

Written = tuple[Path, ...]
"""The files that a stage has written."""

SUBJECTS = (Person.WORD, Pet.WORD)
POSE_FILE, STYLE_FILE = "controlnet/avatars_pose.safetensors", "loras/avatars_ink.safetensors"


READING = 0.1
"""Share of an encoder's steps and minutes in which its Q-Former learns to read, before it meets the UNet."""


@dataclass(frozen=True)
class Recipe:
    """Folders, and how much of everything.

    onward: begin with the weights that are there, with a new schedule, instead of random ones; for stages
    that can. out: where each stage's files are copied as soon as they are written.
    """

    runs: Path = Path("runs/world")
    weights: Path = SMALL_WORLD
    adapters: Path = ADAPTERS
    pictures: int = 40_000
    encoder_pictures: int = 20_000
    pose_pictures: int = 8_000
    judged: int = 24_000
    threads: int = 2
    workers: int = 2
    onward: bool = False
    out: Path | None = None

    @property
    def drawing(self) -> dict[str, Any]:
        """How pictures are drawn: by how many processes, and where they are kept."""
        return {"workers": self.workers, "cache": self.runs / "data"}

    def options(self, options: TrainerOptions, file: str) -> TrainerOptions:
        """For the device that trains. A run that goes on from `file` reads in an order of its own."""
        return for_device(replace(options, seed=self.seed(file)) if self.onward else options)

    def seed(self, file: str) -> int:
        """Of a run that goes on from `file`."""
        return int.from_bytes(sha256((self.weights / file).read_bytes()).digest()[:4], "big")


@dataclass(frozen=True)
class Stage:
    """draw: makes what the stage learns from, or reads it back. run: (recipe, drawn, schedule), trains and
    writes. minutes: of the recipe, on a CPU. onward: whether it can begin with the weights that are there."""

    draw: Callable[[Recipe], Any]
    run: Callable[[Recipe, Any, Schedule], Written]
    minutes: float
    onward: bool = False


def _for_base(recipe: Recipe) -> tuple[Pictures, Pictures]:
    return draw_both("base", recipe.pictures, 2, **recipe.drawing)


def _saved(recipe: Recipe, **parts: Any) -> Written:
    return tuple(file for name, module in parts.items() for file in save_part(recipe.weights, name, module))


def _text(recipe: Recipe, drawn: tuple[Pictures, ...], schedule: Schedule) -> Written:
    modules = text.train_text(recipe.runs / "text", drawn, schedule, for_device(text.OPTIONS))
    return _saved(recipe, text_encoder=modules["text_l"], text_encoder_2=modules["text_g"])


def _vae(recipe: Recipe, drawn: tuple[Pictures, ...], schedule: Schedule) -> Written:
    start: Any = load_part(recipe.weights, "vae") if recipe.onward else None
    options = recipe.options(vae.OPTIONS, "vae.safetensors")
    return _saved(recipe, vae=vae.train_vae(recipe.runs / "vae", drawn, schedule, options, start=start))


def _vision(recipe: Recipe, drawn: Crops, schedule: Schedule) -> Written:
    start = load_part(recipe.weights, "vision") if recipe.onward else None
    options = recipe.options(clip.OPTIONS, "vision.safetensors")
    vision = clip.train_clip(recipe.runs / "clip", drawn, schedule, options, start=start)
    return _saved(recipe, vision=vision)


def _base(recipe: Recipe, drawn: tuple[Pictures, ...], schedule: Schedule) -> Written:
    readers = load_part(recipe.weights, "text_encoder"), load_part(recipe.weights, "text_encoder_2")
    start = load_part(recipe.weights, "unet") if recipe.onward else None
    options = recipe.options(base.OPTIONS, "unet.safetensors")
    unet = base.train_base(recipe.runs / "base", drawn, readers, schedule, options, start=start)
    return _saved(recipe, unet=unet)


def _encoder(
    recipe: Recipe, drawn: tuple[CloseUps | None, Path], schedule: Schedule, *, word: str
) -> Written:
    """Its Q-Former learns to read first, unless it has: onward."""
    file, (close_ups, pictures) = f"{word}_encoder.safetensors", drawn
    if close_ups is None:
        start = StartSettings(kind="file", path=recipe.weights / file)
    else:
        path = recipe.runs / word / "reading.safetensors"
        start = StartSettings(kind="file", path=path, projections=False)
        first, schedule = schedule.split(READING)
        world = load_world(recipe.weights)
        reader, options = encoders.new_encoder(world, word), for_device(reading.OPTIONS)
        reading.train_reading(recipe.runs / f"{word}-reading", reader, world, close_ups, first, options)
        save_subject_encoder(reader, path)
    trained = train_from_configuration(
        recipe.runs / word,
        recipe.weights,
        word,
        pictures,
        schedule=schedule,
        adapt=lambda options: recipe.options(options, file),
        start=start,
    )
    shutil.copyfile(trained, recipe.weights / file)
    return (recipe.weights / file,)


def _adapter(recipe: Recipe, drawn: tuple[Pictures, ...], schedule: Schedule, *, word: str) -> Written:
    """From the shipped encoder's Q-Former: as adapters are trained that are not ours."""
    world = load_world(recipe.weights)
    start = encoders.new_adapter(load_subject_encoder(recipe.weights / f"{word}_encoder.safetensors"))
    data, options = encoders.encode_data(world, drawn), for_device(encoders.OPTIONS)
    run = recipe.runs / f"{word}-adapter"
    trained = encoders.train_encoder(run, world, data, schedule, options, start=start)
    file = recipe.adapters / f"{word}.safetensors"
    save_subject_encoder(trained.half(), file)
    return (file,)


def _posed(recipe: Recipe, *, seed: int, inked: bool = False) -> tuple[PoseData, PoseData]:
    """Pictures of one figure with their poses, and half as many of two."""
    number, half = recipe.pose_pictures, recipe.pose_pictures // 2
    alone = draw_pose_data(number, seed, inked=inked, **recipe.drawing)
    return alone, draw_pose_data(half, seed, inked=inked, together=True, **recipe.drawing)


def _pose(recipe: Recipe, drawn: tuple[PoseData, ...], schedule: Schedule) -> Written:
    world, path = load_world(recipe.weights), recipe.weights / POSE_FILE
    start = load_control(path) if recipe.onward else None
    options = recipe.options(pose_and_style.POSE_OPTIONS, POSE_FILE)
    control = pose_and_style.train_pose(recipe.runs / "pose", world, drawn, schedule, options, start=start)
    save_control(control, path)
    return (path,)


def _style(recipe: Recipe, drawn: tuple[PoseData, ...], schedule: Schedule) -> Written:
    world, options = load_world(recipe.weights), for_device(pose_and_style.STYLE_OPTIONS)
    lora = pose_and_style.train_style(recipe.runs / "style", world, drawn, schedule, options)
    save_lora(lora, recipe.weights / STYLE_FILE)
    return (recipe.weights / STYLE_FILE,)


def _recogniser(recipe: Recipe, drawn: scorers.Families, schedule: Schedule, *, word: str) -> Written:
    autoencoder: Any = load_part(recipe.weights, "vae")
    options = for_device(scorers.RECOGNISER_OPTIONS)
    network = scorers.train_recogniser(recipe.runs / f"scorer_{word}", drawn, autoencoder, schedule, options)
    return (save_scorer(recipe.weights, f"scorer_{word}", network),)


def _prompt_scorer(recipe: Recipe, drawn: scorers.Prompted, schedule: Schedule) -> Written:
    autoencoder: Any = load_part(recipe.weights, "vae")
    options = for_device(scorers.PROMPT_OPTIONS)
    network = scorers.train_prompt_scorer(
        recipe.runs / "scorer_prompt", drawn, autoencoder, schedule, options
    )
    return (save_scorer(recipe.weights, "scorer_prompt", network),)


def _families(recipe: Recipe, *, word: str) -> scorers.Families:
    return scorers.draw_families(word, recipe.judged // 4, 101, **recipe.drawing)


def _prompted(recipe: Recipe) -> scorers.Prompted:
    return scorers.draw_prompted(recipe.judged, 200, **recipe.drawing)


def _for_encoder(recipe: Recipe, *, word: str) -> tuple[CloseUps | None, Path]:
    """Close-ups to learn reading from, unless it has been learned; and pictures."""
    if recipe.onward:
        return None, _written(recipe, word=word)
    number, seed = recipe.encoder_pictures, 13 + SUBJECTS.index(word)
    return draw_close_ups(word, number, seed, **recipe.drawing), _written(recipe, word=word)


def _written(recipe: Recipe, *, word: str) -> Path:
    """Half as many pictures of two as of one, as files: all of them, or none. Onward: others than before."""
    number, seed = recipe.encoder_pictures * 3 // 2, 3 + SUBJECTS.index(word)
    if recipe.onward:
        seed = recipe.seed(f"{word}_encoder.safetensors")
    folder = recipe.runs / word / f"pictures-{number}-{seed}-{drawing_version()}"
    if not folder.exists():
        partial_folder = folder.with_suffix(".partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        write_pictures(partial_folder, word, number, seed=seed, workers=recipe.workers)
        partial_folder.replace(folder)
    return folder


def _of_subjects(word: str) -> Callable[[Recipe], tuple[Pictures, Pictures]]:
    seed = 3 + SUBJECTS.index(word)
    return lambda recipe: draw_both(word, recipe.encoder_pictures, seed, **recipe.drawing)


STAGES: dict[str, Stage] = {
    "text": Stage(_for_base, _text, 7),
    "vae": Stage(lambda recipe: draw_both("base", 8_000, 1, **recipe.drawing), _vae, 15, onward=True),
    "vision": Stage(
        lambda recipe: draw_crops(recipe.pictures, 11, **recipe.drawing), _vision, 60, onward=True
    ),
    "base": Stage(_for_base, _base, 600, onward=True),
    **{
        word: Stage(partial(_for_encoder, word=word), partial(_encoder, word=word), 240, onward=True)
        for word in SUBJECTS
    },
    **{f"{word}-adapter": Stage(_of_subjects(word), partial(_adapter, word=word), 40) for word in SUBJECTS},
    "pose": Stage(partial(_posed, seed=5), _pose, 10, onward=True),
    "style": Stage(partial(_posed, seed=6, inked=True), _style, 5),
    **{
        f"scorer-{word}": Stage(partial(_families, word=word), partial(_recogniser, word=word), 15)
        for word in SUBJECTS
    },
    "scorer-prompt": Stage(_prompted, _prompt_scorer, 10),
}
"""In order."""


def train(names: Mapping[str, float | None], recipe: Recipe, *, say: Callable[[str], None] = print) -> None:
    """Run stages, in the order of STAGES; a name's value is its minutes, in place of the stage's own.

    Everything is drawn before anything is trained: drawing forks, which a process that uses a GPU must not. A
    stage that was interrupted continues from its last checkpoint under `recipe.runs`; one that is complete
    there does nothing but export. Raises NestedAttentionError for a stage that does not exist, and, of a
    recipe that goes onward, for one that cannot.
    """
    unknown = sorted(set(names) - set(STAGES))
    if unknown:
        raise NestedAttentionError(f"no such stage: {', '.join(unknown)}. The stages are {', '.join(STAGES)}")
    fresh = [name for name in names if not STAGES[name].onward]
    if recipe.onward and fresh:
        raise NestedAttentionError(
            f"{', '.join(fresh)} cannot go on from weights that are there; train them without onward"
        )
    torch.set_num_threads(recipe.threads)
    chosen = {name: stage for name, stage in STAGES.items() if name in names}
    started = time.monotonic()
    for stage in chosen.values():
        stage.draw(recipe)
    say(f"drawn: {(time.monotonic() - started) / 60:.1f} minutes")
    prepare_device()
    for name, stage in chosen.items():
        started, minutes = time.monotonic(), names[name]
        schedule = Schedule(steps=10**9, minutes=stage.minutes if minutes is None else minutes)
        for file in stage.run(recipe, stage.draw(recipe), schedule):
            if recipe.out is not None:
                ours = file.is_relative_to(recipe.weights)
                _copy(
                    file, recipe.out / (file.relative_to(recipe.weights) if ours else f"adapters/{file.name}")
                )
        say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes")


def _copy(file: Path, target: Path) -> None:
    """Copy a file so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_suffix(".partial")
    shutil.copyfile(file, partial_file)
    partial_file.replace(target)
