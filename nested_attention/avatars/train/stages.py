"""The whole recipe: which stage runs on what, for how long, and where its weights go.

Every stage reads the weights of those before it from the weights folder, so that each can be run again,
longer, or continued from the last checkpoint in the runs folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import load_subject_encoder, save_subject_encoder
from ...errors import NestedAttentionError
from ...paths import ADAPTERS, SMALL_WORLD
from ...training.schedule import Schedule
from ...training.trainer import TrainerOptions
from ..drawing.identity import Person, Pet
from ..models.control import load_control, save_control
from ..models.lora import save_lora
from ..models.pixels import encode_pictures
from ..models.scorers import save_scorer
from ..models.world import World, load_part, load_world, save_part
from . import clip
from .base import train_base
from .configured import train_from_configuration
from .data import draw_pictures
from .encoders import EncoderData, encode_data, new_adapter, train_encoder
from .pose_and_style import train_pose, train_style
from .pose_data import draw_pose_data
from .scorers import train_identity_scorer, train_prompt_scorer
from .text import train_text
from .vae import train_vae

SUBJECTS = (Person.WORD, Pet.WORD)


@dataclass(frozen=True)
class Recipe:
    """Folders, and how much of everything. Minutes are those of the shipped weights, on 2 CPU cores."""

    runs: Path = Path("runs/world")
    weights: Path = SMALL_WORLD
    adapters: Path = ADAPTERS
    pictures: int = 48_000
    encoder_pictures: int = 20_000
    adapter_pictures: int = 8_000
    pose_pictures: int = 8_000
    threads: int = 2
    workers: int = 2
    onward: bool = False
    """Begin with the weights that are there, with a new schedule, instead of random ones."""


def _vae(recipe: Recipe, schedule: Schedule) -> None:
    pictures = draw_pictures("base", 8_000, 1, workers=recipe.workers, cache=recipe.runs / "data")
    save_part(recipe.weights, "vae", train_vae(recipe.runs / "vae", pictures, schedule))


def _decoder(recipe: Recipe, schedule: Schedule) -> None:
    pictures = draw_pictures("base", 8_000, 1, workers=recipe.workers, cache=recipe.runs / "data")
    vae: Any = load_part(recipe.weights, "vae")
    save_part(recipe.weights, "vae", train_vae(recipe.runs / "decoder", pictures, schedule, decoder_of=vae))


def _vision(recipe: Recipe, schedule: Schedule) -> None:
    start = load_part(recipe.weights, "vision") if recipe.onward else None
    options = replace(clip.OPTIONS, seed=int(recipe.onward))  # other crops than the first time
    vision = clip.train_clip(recipe.runs / "clip", schedule, options, start=start)
    save_part(recipe.weights, "vision", vision)


def _text(recipe: Recipe, schedule: Schedule) -> None:
    pictures = draw_pictures("base", recipe.pictures, 2, workers=recipe.workers, cache=recipe.runs / "data")
    modules = train_text(recipe.runs / "text", pictures, schedule)
    save_part(recipe.weights, "text_encoder", modules["text_l"])
    save_part(recipe.weights, "text_encoder_2", modules["text_g"])


def _base(recipe: Recipe, schedule: Schedule) -> None:
    pictures = draw_pictures("base", recipe.pictures, 2, workers=recipe.workers, cache=recipe.runs / "data")
    latents = encode_pictures(load_part(recipe.weights, "vae"), pictures.rgb).half()
    text = load_part(recipe.weights, "text_encoder"), load_part(recipe.weights, "text_encoder_2")
    start = load_part(recipe.weights, "unet") if recipe.onward else None
    options = TrainerOptions(rate=5e-4 if recipe.onward else 1e-3)
    unet = train_base(recipe.runs / "base", pictures, latents, text, schedule, options, start=start)
    save_part(recipe.weights, "unet", unet)


def _subjects(recipe: Recipe, world: World, word: str, number: int, seed: int) -> EncoderData:
    """Drawn pictures of one kind of subject, as the frozen models see them."""
    pictures = draw_pictures(word, number, seed, workers=recipe.workers, cache=recipe.runs / "data")
    return encode_data(world, pictures, word)


def _encoder(word: str) -> Callable[[Recipe, Schedule], None]:
    def stage(recipe: Recipe, schedule: Schedule) -> None:
        path = recipe.weights / f"{word}_encoder.safetensors"
        trained = train_from_configuration(
            recipe.runs / word,
            recipe.weights,
            word,
            pictures=recipe.encoder_pictures,
            seed=3 + SUBJECTS.index(word),
            minutes=schedule.minutes,
            start=path if recipe.onward else None,
        )
        shutil.copyfile(trained, path)

    return stage


ADAPTER_STEPS = 900


def _adapter(word: str) -> Callable[[Recipe, Schedule], None]:
    def stage(recipe: Recipe, schedule: Schedule) -> None:
        """The plain loss from the shipped encoder's Q-Former: as adapters are trained that are not ours."""
        world = load_world(recipe.weights)
        data = _subjects(recipe, world, word, recipe.adapter_pictures, 7 + SUBJECTS.index(word))
        start = new_adapter(load_subject_encoder(recipe.weights / f"{word}_encoder.safetensors"))
        short = Schedule(steps=ADAPTER_STEPS, minutes=schedule.minutes)
        adapter = train_encoder(recipe.runs / f"{word}-adapter", world, data, short, start=start)
        save_subject_encoder(adapter.half(), recipe.adapters / f"{word}.safetensors")

    return stage


def _identity_scorer(word: str) -> Callable[[Recipe, Schedule], None]:
    def stage(recipe: Recipe, schedule: Schedule) -> None:
        vae = load_part(recipe.weights, "vae")
        network = train_identity_scorer(recipe.runs / f"scorer_{word}", word, vae, schedule)
        save_scorer(recipe.weights, f"scorer_{word}", network)

    return stage


def _prompt_scorer(recipe: Recipe, schedule: Schedule) -> None:
    vae = load_part(recipe.weights, "vae")
    network = train_prompt_scorer(recipe.runs / "scorer_prompt", vae, schedule)
    save_scorer(recipe.weights, "scorer_prompt", network)


def _pose(recipe: Recipe, schedule: Schedule) -> None:
    data = draw_pose_data(recipe.pose_pictures, 5, workers=recipe.workers, cache=recipe.runs / "data")
    path = recipe.weights / "controlnet" / "avatars_pose.safetensors"
    start = load_control(path) if recipe.onward else None
    world = load_world(recipe.weights)
    save_control(train_pose(recipe.runs / "pose", world, data, schedule, start=start), path)


def _style(recipe: Recipe, schedule: Schedule) -> None:
    data = draw_pose_data(
        recipe.pose_pictures, 6, inked=True, workers=recipe.workers, cache=recipe.runs / "data"
    )
    lora = train_style(recipe.runs / "style", load_world(recipe.weights), data, schedule)
    save_lora(lora, recipe.weights / "loras" / "avatars_ink.safetensors")


STAGES: dict[str, tuple[Callable[[Recipe, Schedule], None], float]] = {
    "vae": (_vae, 11),
    "vision": (_vision, 55),
    "text": (_text, 7),
    "base": (_base, 130),
    "person": (_encoder("person"), 225),
    "pet": (_encoder("pet"), 215),
    "person-adapter": (_adapter("person"), 40),
    "pet-adapter": (_adapter("pet"), 40),
    "decoder": (_decoder, 3),
    "pose": (_pose, 8),
    "style": (_style, 5),
    "scorer-person": (_identity_scorer("person"), 3),
    "scorer-pet": (_identity_scorer("pet"), 3),
    "scorer-prompt": (_prompt_scorer, 3),
}
"""In order: the stage, and the minutes it takes for the shipped weights."""


def train(
    names: Sequence[str], recipe: Recipe, *, minutes: float | None = None, say: Callable[[str], None] = print
) -> None:
    """Run stages, in the recipe's order. `minutes` replaces the recipe's minutes of each.

    A stage that was interrupted continues from its last checkpoint under `recipe.runs`; one that is complete
    there does nothing but export. Raises NestedAttentionError for a stage that does not exist.
    """
    unknown = sorted(set(names) - set(STAGES))
    if unknown:
        raise NestedAttentionError(f"no such stage: {', '.join(unknown)}. The stages are {', '.join(STAGES)}")
    torch.set_num_threads(recipe.threads)
    for name, (stage, default) in STAGES.items():
        if name in names:
            started = time.monotonic()
            stage(recipe, Schedule(steps=10**9, minutes=default if minutes is None else minutes))
            say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes")
