"""The small world under `nested-attention evaluate`: its drawings, and its own judges behind the same
interface."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...checkpoint import load_subject_encoder
from ...evaluation.drawing import Drawing
from ...evaluation.metrics import picture_similarity
from ...evaluation.run import Output
from ...evaluation.samples import Person, Sample
from ...evaluation.scorers import IdentityScorer, Measure, Scorer, Scores, everybody
from ...evaluation.settings import SmallWorldSettings
from ...evaluation.tasks import Task
from ...paths import SMALL_WORLD
from ...pictures.files import open_picture
from ...storage.files import replacing
from ..drawing.picture import ENLARGE, Picture, crop, enlarge, render
from ..drawing.pose import window
from ..drawing.prompts import prompt, sample_picture
from ..drawing.references import held_out, sample_crop
from ..models.scorers import PromptScorer as PromptJudge
from ..models.scorers import Recogniser, load_prompt_scorer, load_recogniser, prompt_labels
from ..models.world import Sampling, World, load_world

PROMPT = Measure("prompt", "prompt followed", "share of scene, style, clothes, accessory, place and mood")
VISION = Measure("clip_i", "CLIP-I, to the references", "DreamBooth: mean cosine with the references")


@dataclass(frozen=True)
class WorldPlan:
    """What is drawn, and where in each file its judges look.

    corners: of the window of a subject, in art pixels. asked: the drawing that a perfect model would make.
    """

    drawings: tuple[Drawing, ...]
    corners: dict[Path, tuple[int, int]]
    asked: dict[Path, Picture]


def plan_world(settings: SmallWorldSettings, folder: Path) -> WorldPlan:
    """Every held-out subject with every prompt, λ and seed. Writes the references and the true drawings,
    which no model has seen, beneath the folder."""
    drawn = (held_out(settings.word, seed) for seed in range(10 * settings.subjects))
    identities = list(dict.fromkeys(drawn))[: settings.subjects]
    for name in ("references", "truth", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    drawings, corners, asked = [], {}, {}
    people = []
    for number, identity in enumerate(identities, start=1):
        path = folder / "references" / f"{settings.word}{number:03}.png"
        _save(sample_crop(np.random.default_rng(number), identity), path)
        people.append(Person(f"{settings.word} {number}", (path,)))
    for scale in settings.attention_scales:
        for place in range(1, settings.prompts + 1):
            for number, (identity, person) in enumerate(zip(identities, people, strict=True), start=1):
                # One seed a prompt: the same words for every subject.
                picture = sample_picture(np.random.default_rng(place), (identity,), split="heldout")
                truth = folder / "truth" / f"prompt{place:02}_{settings.word}{number:03}.png"
                if truth not in corners:
                    _save(render(picture).rgb, truth)
                for seed in settings.seeds:
                    name = f"prompt{place:02}_{settings.word}{number:03}_scale{scale:g}_seed{seed}"
                    path = folder / "pictures" / f"{name}.png"
                    words = prompt(picture, np.random.default_rng(place))
                    for seen in (path, truth):
                        corners[seen] = window(picture.figures[0].placement)
                        asked[seen] = picture
                    shown = Sample(name, path, (person,), words, truth, scale)
                    drawings.append(Drawing(shown, words, seed))
    return WorldPlan(tuple(drawings), corners, asked)


def _save(art: np.ndarray, path: Path) -> None:
    with replacing(path) as temporary:
        Image.fromarray(enlarge(art)).save(temporary, format="PNG")


def art_pixels(path: Path) -> np.ndarray:
    """A picture of the small world → its art pixels (height, width, 3) uint8."""
    return np.array(open_picture(path))[::ENLARGE, ::ENLARGE]


@dataclass
class WorldDrawer:
    """The small world with an encoder attached."""

    settings: SmallWorldSettings
    world: World

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Image.Image]:
        encoder = load_subject_encoder(encoder_file(self.settings)).eval()
        sampling = Sampling(steps=self.settings.steps)
        for scale, group in groupby(drawings, key=lambda drawing: drawing.sample.scale):
            same = list(group)
            for start in range(0, len(same), sampling.batch):
                batch = same[start : start + sampling.batch]
                crops = np.stack([art_pixels(drawing.sample.people[0].references[0]) for drawing in batch])
                attached = self.world.attach(encoder, crops, self.settings.word, scale or 1.0)
                prompts, seeds = [d.text for d in batch], [d.seed for d in batch]
                for rgb in self.world.generate(prompts, seeds, [attached], sampling):
                    yield Image.fromarray(enlarge(rgb))


def encoder_file(settings: SmallWorldSettings) -> Path:
    return settings.encoder or SMALL_WORLD / f"{settings.word}_encoder.safetensors"


@dataclass
class WorldRecogniser:
    """The small world's recogniser, which was trained apart from everything that draws."""

    judge: Recogniser
    corners: dict[Path, tuple[int, int]]
    key: str = "world"
    title: str = "the small world's recogniser"
    independent: bool = True
    decides: bool = False
    state: str = "world 2"

    def __call__(self, path: Path) -> Tensor:
        art = art_pixels(path)
        seen = crop(art, self.corners[path]) if path in self.corners else art
        return self.judge.embed(seen[None])

    def same(self, references: Tensor, face: Tensor) -> bool:
        return False


@dataclass
class WorldPromptScorer:
    """What the prompt decided, as the small world's judge of prompts sees it."""

    judge: PromptJudge
    asked: dict[Path, Picture]
    key: str = "prompt"
    title: str = "the small world's judge of prompts"
    independent: bool = True
    state: str = "world 2"
    measures: tuple[Measure, ...] = (PROMPT,)

    def __call__(self, sample: Sample) -> Scores:
        asked = self.asked[sample.picture]
        answers, wanted = self.judge.answers(art_pixels(sample.picture)[None], [asked]), prompt_labels(asked)
        return {"prompt": sum(int(answers[name]) == wanted[name] for name in wanted) / len(wanted)}


@dataclass
class WorldVisionScorer:
    """CLIP-I by the vision model that the encoder itself sees with."""

    world: World
    corners: dict[Path, tuple[int, int]]
    key: str = "vision"
    title: str = "the small world's vision model"
    independent: bool = False
    state: str = "world 2"
    measures: tuple[Measure, ...] = (VISION,)

    def __call__(self, sample: Sample) -> Scores:
        paths = [sample.picture, *sample.people[0].references]
        arts = [art_pixels(path) for path in paths]
        crops = [
            crop(art, self.corners[path]) if path in self.corners else art
            for path, art in zip(paths, arts, strict=True)
        ]
        found = self.world.features(np.stack(crops))[:, 0]  # class tokens
        return {"clip_i": picture_similarity(found[0], found[1:])}


def world_task(settings: SmallWorldSettings, output: Output) -> Task:
    """The small world, ready to be evaluated by its own judges: those of photographs find no face in its
    drawings."""
    world, planned = load_world(), plan_world(settings, output.folder)
    samples = [drawing.sample for drawing in planned.drawings]
    scorers: list[Scorer] = [
        IdentityScorer(WorldRecogniser(load_recogniser(settings.word), planned.corners), everybody(samples)),
        WorldPromptScorer(load_prompt_scorer(), planned.asked),
        WorldVisionScorer(world, planned.corners),
    ]
    return Task(samples, scorers, told(settings), planned.drawings, WorldDrawer(settings, world))


def told(settings: SmallWorldSettings) -> dict[str, Any]:
    """What decides how the pictures look, beside their names."""
    files = {"encoder": encoder_file(settings), "unet": SMALL_WORLD / "unet.safetensors"}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return {"steps": settings.steps, "guidance": Sampling.guidance, **digests}
