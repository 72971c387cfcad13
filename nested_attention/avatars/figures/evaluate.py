"""The small world under `nested-attention evaluate`: its drawings, and its own judges behind the same
interface."""

from __future__ import annotations

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
from ...storage.files import digest_of, replacing
from ..drawing.picture import ENLARGE, Picture, crop, enlarge, render
from ..drawing.pose import window
from ..drawing.prompts import prompt, sample_picture
from ..drawing.references import held_out, sample_crop
from ..models.scorers import PromptScorer as PromptJudge
from ..models.scorers import Recogniser, load_prompt_scorer, load_recogniser, prompt_labels
from ..models.world import PARTS, Sampling, World, load_world

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


def _seen(path: Path, corners: dict[Path, tuple[int, int]]) -> np.ndarray:
    """What a judge looks at: the subject's window, or all of a reference (28, 28, 3) uint8."""
    art = art_pixels(path)
    return crop(art, corners[path]) if path in corners else art


def state_of(name: str) -> str:
    """Of a judge, by the name of its file: with other weights it answers otherwise."""
    return f"world 2 {digest_of(SMALL_WORLD / f'{name}.safetensors')}"


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
    state: str
    key: str = "world"
    title: str = "the small world's recogniser"
    independent: bool = True
    decides: bool = False

    def __call__(self, path: Path) -> Tensor:
        return self.judge.embed(_seen(path, self.corners)[None])

    def same(self, references: Tensor, face: Tensor) -> bool:
        return False


@dataclass
class WorldPromptScorer:
    """What the prompt decided, as the small world's judge of prompts sees it."""

    judge: PromptJudge
    asked: dict[Path, Picture]
    state: str
    key: str = "prompt"
    title: str = "the small world's judge of prompts"
    independent: bool = True
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
    state: str
    key: str = "vision"
    title: str = "the small world's vision model"
    independent: bool = False
    measures: tuple[Measure, ...] = (VISION,)

    def __call__(self, sample: Sample) -> Scores:
        paths = [sample.picture, *sample.people[0].references]
        crops = np.stack([_seen(path, self.corners) for path in paths])
        found = self.world.features(crops)[:, 0]  # class tokens
        return {"clip_i": picture_similarity(found[0], found[1:])}


def world_task(settings: SmallWorldSettings, output: Output) -> Task:
    """The small world, ready to be evaluated by its own judges: those of photographs find no face in its
    drawings."""
    world, planned = load_world(), plan_world(settings, output.folder)
    samples = [drawing.sample for drawing in planned.drawings]
    judge = f"scorer_{settings.word}"
    recogniser = WorldRecogniser(load_recogniser(settings.word), planned.corners, state_of(judge))
    scorers: list[Scorer] = [
        IdentityScorer(recogniser, everybody(samples)),
        WorldPromptScorer(load_prompt_scorer(), planned.asked, state_of("scorer_prompt")),
        WorldVisionScorer(world, planned.corners, state_of("vision")),
    ]
    return Task(samples, scorers, told(settings), planned.drawings, WorldDrawer(settings, world))


def told(settings: SmallWorldSettings) -> dict[str, Any]:
    """What decides how the pictures look, beside their names."""
    files = {
        "encoder": encoder_file(settings),
        **{part: SMALL_WORLD / f"{part}.safetensors" for part in PARTS},
    }
    digests = {name: digest_of(path) for name, path in files.items()}
    return {"steps": settings.steps, "guidance": Sampling.guidance, **digests}
