"""The whole recipe: which stage runs on what, for how long, and where its weights go.

Every stage reads the weights of those before it from the weights folder, so that each can be run again,
longer, or continued from the last checkpoint in the runs folder. A run that begins with something else has
another folder there: it neither goes on from another's checkpoints nor ends with another's weights.
"""

from __future__ import annotations

import json
import math
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
from ...paths import ADAPTERS, CONFIGS, SMALL_WORLD
from ...storage.files import digest_of, replacing
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
_NOTE, _ADAPTERS = "written.json", "adapters"

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
        return int(digest_of(self.weights / file)[:8], 16)


@dataclass(frozen=True)
class Stage:
    """draw: makes what the stage learns from, or reads it back. run: (recipe, folder of the run, drawn,
    schedule), trains and writes. minutes: of the recipe, on a CPU. reads: the files beneath the weights that
    decide what it learns. onward: the file that it can begin with, if it can. size: the field of the recipe
    that says how much is drawn."""

    draw: Callable[[Recipe], Any]
    run: Callable[[Recipe, Path, Any, Schedule], Written]
    minutes: float
    reads: tuple[str | Path, ...] = ()
    onward: str = ""
    size: str = ""


def _for_base(recipe: Recipe) -> tuple[Pictures, Pictures]:
    return draw_both("base", recipe.pictures, 2, **recipe.drawing)


def _saved(recipe: Recipe, **parts: Any) -> Written:
    return tuple(file for name, module in parts.items() for file in save_part(recipe.weights, name, module))


def _text(recipe: Recipe, folder: Path, drawn: tuple[Pictures, ...], schedule: Schedule) -> Written:
    modules = text.train_text(folder, drawn, schedule, for_device(text.OPTIONS))
    return _saved(recipe, text_encoder=modules["text_l"], text_encoder_2=modules["text_g"])


def _vae(recipe: Recipe, folder: Path, drawn: tuple[Pictures, ...], schedule: Schedule) -> Written:
    start: Any = load_part(recipe.weights, "vae") if recipe.onward else None
    options = recipe.options(vae.OPTIONS, "vae.safetensors")
    return _saved(recipe, vae=vae.train_vae(folder, drawn, schedule, options, start=start))


def _vision(recipe: Recipe, folder: Path, drawn: Crops, schedule: Schedule) -> Written:
    start = load_part(recipe.weights, "vision") if recipe.onward else None
    options = recipe.options(clip.OPTIONS, "vision.safetensors")
    vision = clip.train_clip(folder, drawn, schedule, options, start=start)
    return _saved(recipe, vision=vision)


def _base(recipe: Recipe, folder: Path, drawn: tuple[Pictures, ...], schedule: Schedule) -> Written:
    readers = load_part(recipe.weights, "text_encoder"), load_part(recipe.weights, "text_encoder_2")
    start = load_part(recipe.weights, "unet") if recipe.onward else None
    options = recipe.options(base.OPTIONS, "unet.safetensors")
    unet = base.train_base(folder, drawn, readers, schedule, options, start=start)
    return _saved(recipe, unet=unet)


def _encoder(
    recipe: Recipe, folder: Path, drawn: tuple[CloseUps | None, Path], schedule: Schedule, *, word: str
) -> Written:
    """Its Q-Former learns to read first, unless it has: onward."""
    file, (close_ups, pictures) = f"{word}_encoder.safetensors", drawn
    if close_ups is None:
        start = StartSettings(kind="file", path=recipe.weights / file)
    else:
        path = folder / "reading.safetensors"
        start = StartSettings(kind="file", path=path, projections=False)
        first, schedule = schedule.split(READING)
        world = load_world(recipe.weights)
        reader, options = encoders.new_encoder(world, word), for_device(reading.OPTIONS)
        reading.train_reading(folder / "reading", reader, world, close_ups, first, options)
        save_subject_encoder(reader, path)
    trained = train_from_configuration(
        folder,
        recipe.weights,
        word,
        pictures,
        schedule=schedule,
        adapt=lambda options: recipe.options(options, file),
        start=start,
    )
    _copy(trained, recipe.weights / file)
    return (recipe.weights / file,)


def _adapter(
    recipe: Recipe, folder: Path, drawn: tuple[Pictures, ...], schedule: Schedule, *, word: str
) -> Written:
    """From the shipped encoder's Q-Former: as adapters are trained that are not ours."""
    world = load_world(recipe.weights)
    start = encoders.new_adapter(load_subject_encoder(recipe.weights / f"{word}_encoder.safetensors"))
    data, options = encoders.encode_data(world, drawn), for_device(encoders.OPTIONS)
    trained = encoders.train_encoder(folder, world, data, schedule, options, start=start)
    file = recipe.adapters / f"{word}.safetensors"
    save_subject_encoder(trained.half(), file)
    return (file,)


def _posed(recipe: Recipe, *, seed: int, inked: bool = False) -> tuple[PoseData, PoseData]:
    """Pictures of one figure with their poses, and half as many of two."""
    number, half = recipe.pose_pictures, recipe.pose_pictures // 2
    alone = draw_pose_data(number, seed, inked=inked, **recipe.drawing)
    return alone, draw_pose_data(half, seed, inked=inked, together=True, **recipe.drawing)


def _pose(recipe: Recipe, folder: Path, drawn: tuple[PoseData, ...], schedule: Schedule) -> Written:
    world, path = load_world(recipe.weights), recipe.weights / POSE_FILE
    start = load_control(path) if recipe.onward else None
    options = recipe.options(pose_and_style.POSE_OPTIONS, POSE_FILE)
    control = pose_and_style.train_pose(folder, world, drawn, schedule, options, start=start)
    save_control(control, path)
    return (path,)


def _style(recipe: Recipe, folder: Path, drawn: tuple[PoseData, ...], schedule: Schedule) -> Written:
    world, options = load_world(recipe.weights), for_device(pose_and_style.STYLE_OPTIONS)
    lora = pose_and_style.train_style(folder, world, drawn, schedule, options)
    save_lora(lora, recipe.weights / STYLE_FILE)
    return (recipe.weights / STYLE_FILE,)


def _recogniser(
    recipe: Recipe, folder: Path, drawn: scorers.Families, schedule: Schedule, *, word: str
) -> Written:
    autoencoder: Any = load_part(recipe.weights, "vae")
    options = for_device(scorers.RECOGNISER_OPTIONS)
    network = scorers.train_recogniser(folder, drawn, autoencoder, schedule, options)
    return (save_scorer(recipe.weights, f"scorer_{word}", network),)


def _prompt_scorer(recipe: Recipe, folder: Path, drawn: scorers.Prompted, schedule: Schedule) -> Written:
    autoencoder: Any = load_part(recipe.weights, "vae")
    options = for_device(scorers.PROMPT_OPTIONS)
    network = scorers.train_prompt_scorer(folder, drawn, autoencoder, schedule, options)
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


_VAE, _VISION, _UNET = "vae.safetensors", "vision.safetensors", "unet.safetensors"
_TEXT = "text_encoder.safetensors", "text_encoder_2.safetensors"
_DRAWS = *_TEXT, _UNET


def _encoder_stage(word: str) -> Stage:
    return Stage(
        partial(_for_encoder, word=word),
        partial(_encoder, word=word),
        minutes=240,
        reads=(*_DRAWS, _VISION, _VAE, *(CONFIGS / of / f"small-{word}.yaml" for of in ("prepare", "train"))),
        onward=f"{word}_encoder.safetensors",
        size="encoder_pictures",
    )


def _adapter_stage(word: str) -> Stage:
    reads = (*_DRAWS, _VISION, f"{word}_encoder.safetensors")
    return Stage(
        _of_subjects(word), partial(_adapter, word=word), minutes=40, reads=reads, size="encoder_pictures"
    )


def _recogniser_stage(word: str) -> Stage:
    run = partial(_recogniser, word=word)
    return Stage(partial(_families, word=word), run, minutes=15, reads=(_VAE,), size="judged")


STAGES: dict[str, Stage] = {
    "text": Stage(_for_base, _text, minutes=7, size="pictures"),
    "vae": Stage(lambda recipe: draw_both("base", 8_000, 1, **recipe.drawing), _vae, minutes=15, onward=_VAE),
    "vision": Stage(
        lambda recipe: draw_crops(recipe.pictures, 11, **recipe.drawing),
        _vision,
        minutes=60,
        onward=_VISION,
        size="pictures",
    ),
    "base": Stage(_for_base, _base, minutes=600, reads=_TEXT, onward=_UNET, size="pictures"),
    **{word: _encoder_stage(word) for word in SUBJECTS},
    **{f"{word}-adapter": _adapter_stage(word) for word in SUBJECTS},
    "pose": Stage(
        partial(_posed, seed=5), _pose, minutes=10, reads=_DRAWS, onward=POSE_FILE, size="pose_pictures"
    ),
    "style": Stage(
        partial(_posed, seed=6, inked=True), _style, minutes=5, reads=_DRAWS, size="pose_pictures"
    ),
    **{f"scorer-{word}": _recogniser_stage(word) for word in SUBJECTS},
    "scorer-prompt": Stage(_prompted, _prompt_scorer, minutes=10, reads=(_VAE,), size="judged"),
}
"""In order."""


def train(names: Mapping[str, float | None], recipe: Recipe, *, say: Callable[[str], None] = print) -> None:
    """Run stages, in the order of STAGES; a name's value is its minutes, in place of the stage's own.

    Everything is drawn before anything is trained: drawing forks, which a process that uses a GPU must not. A
    stage that was interrupted continues from its last checkpoint under `recipe.runs`; one that is complete
    there does nothing but export. Raises NestedAttentionError for a stage that does not exist, for minutes
    that are not above 0, of a recipe that goes onward, for one that cannot, and where the weights of a
    complete run would replace others.
    """
    unknown = sorted(set(names) - set(STAGES))
    if unknown:
        raise NestedAttentionError(f"no such stage: {', '.join(unknown)}. The stages are {', '.join(STAGES)}")
    for name, minutes in names.items():
        if minutes is not None and not 0 < minutes < math.inf:
            raise NestedAttentionError(
                f"{name} has {minutes:g} minutes; expected a number above 0, for example {name}=4.5"
            )
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
        started, given, folder = time.monotonic(), names[name], _folder(recipe, name, stage)
        _check_written(recipe, folder)
        schedule = Schedule(steps=10**9, minutes=stage.minutes if given is None else given)
        files = stage.run(recipe, folder, stage.draw(recipe), schedule)
        _note_written(recipe, folder, files)
        if recipe.out is not None:
            for file in files:
                _copy(file, recipe.out / _name(recipe, file))
        say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes, in {folder}")


def _folder(recipe: Recipe, name: str, stage: Stage) -> Path:
    """Of the run of a stage that begins with the weights that are there now, and learns from this much."""
    files = [*stage.reads, *([stage.onward] if recipe.onward else [])]
    read = [digest_of(path) if (path := recipe.weights / file).exists() else "" for file in files]
    size = getattr(recipe, stage.size) if stage.size else 0
    begins = json.dumps([drawing_version(), size, recipe.onward, read])
    return recipe.runs / f"{name}-{sha256(begins.encode()).hexdigest()[:8]}"


def _name(recipe: Recipe, file: Path) -> str:
    """Of a file that a stage has written, beneath the weights; adapters stand there in a folder of theirs."""
    ours = file.is_relative_to(recipe.weights)
    return file.relative_to(recipe.weights).as_posix() if ours else f"{_ADAPTERS}/{file.name}"


def _check_written(recipe: Recipe, folder: Path) -> None:
    """Refuse to write a complete run's weights over others, which may be newer."""
    note = folder / _NOTE
    for name, digest in (json.loads(note.read_text()) if note.exists() else {}).items():
        place, _, adapter = name.partition("/")
        file = recipe.adapters / adapter if place == _ADAPTERS else recipe.weights / name
        if file.exists() and digest_of(file) != digest:
            raise NestedAttentionError(
                f"{file} is not what the complete run in {folder} wrote, and would be replaced by it. Name "
                "another folder with --runs to train anew, go on from the file with --onward if the stage "
                "can, or move the file away to have that run's again"
            )


def _note_written(recipe: Recipe, folder: Path, files: Written) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _NOTE) as temporary:
        temporary.write_text(json.dumps({_name(recipe, file): digest_of(file) for file in files}) + "\n")


def _copy(file: Path, target: Path) -> None:
    """Copy a file so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        shutil.copyfile(file, temporary)
