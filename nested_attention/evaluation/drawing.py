"""The pictures that an evaluation draws: every prompt, subject, λ and seed, by diffusers on any SDXL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..checkpoint import load_subject_encoder
from ..encoder import SubjectEncoder
from ..errors import NestedAttentionError
from ..hosts.diffusers import AppliedSubject, encode_subject, personalize
from ..pictures.align import align_faces
from ..pictures.files import read_picture
from ..pictures.square import Square, cut
from ..storage.files import sha256_of
from ..subject import Subject
from ..training.frozen import DTYPES, default_device, load_pipeline
from .recognisers import FaceFinder
from .samples import Person, Sample
from .settings import DrawSettings, EvaluatedSubject, filled, places

CROP = 512
"""Pixels a side of a face that is cut out of a reference: Align Face's default."""


@dataclass(frozen=True)
class Drawing:
    """A picture to be drawn. sample: how it will be scored, λ included. text: its prompt as the model gets
    it, with a placeholder for each subject."""

    sample: Sample
    text: str
    seed: int


class Drawer(Protocol):
    """Draws pictures, one after the other, in their order."""

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Image.Image]: ...


def plan(settings: DrawSettings, pictures: Path, words: Sequence[str]) -> list[Drawing]:
    """Everything that is to be drawn, each group of subjects at one λ together. words: for each subject the
    word that its encoder was trained on."""
    people = [
        Person(subject.name, subject.references, subject.truths, subject.face)
        for subject in settings.subjects
    ]
    prompts = list(enumerate(settings.prompts, start=1))
    found = []
    for scale, count, first in product(
        settings.attention_scales, range(1, len(people) + 1), range(len(people))
    ):
        chosen = [(first + step) % len(people) for step in range(count)]
        cast = tuple(people[index] for index in chosen)
        who = "-".join(person.name for person in cast)
        for (number, prompt), seed in product(prompts, settings.seeds):
            if places(prompt) != count:
                continue
            name = f"prompt{number:02}_{who}_scale{scale:g}_seed{seed}"
            prompt_read = filled(prompt, [words[index] for index in chosen])
            text = filled(prompt, [f"<{person.name}>" for person in cast])
            picture = pictures / f"{name}.png"
            found.append(
                Drawing(Sample(name, picture, cast, prompt_read, scale=scale, text=text), text, seed)
            )
    return found


@dataclass
class SdxlDrawer:
    """diffusers' pipeline of SDXL with the subjects attached. Loads it when a picture is asked for."""

    settings: DrawSettings
    vision: Any  # the encoder's CLIP vision model
    find: FaceFinder
    _encoders: dict[Path, SubjectEncoder] = field(default_factory=dict)
    _subjects: dict[str, Subject] = field(default_factory=dict)

    def words(self) -> list[str]:
        """For each subject the word that its encoder was trained on."""
        return [self._encoder(subject).config.word for subject in self.settings.subjects]

    def __call__(self, drawings: Sequence[Drawing]) -> Iterator[Image.Image]:
        pipeline = self._pipeline()
        self.vision.to(pipeline.device)
        settings = self.settings
        for (people, scale), group in groupby(drawings, lambda one: (one.sample.people, one.sample.scale)):
            with personalize(pipeline, [self._applied(person, scale) for person in people]):
                for drawing in group:
                    # On the CPU, so that a seed means the same noise on every machine.
                    generator = torch.Generator("cpu").manual_seed(drawing.seed)
                    yield pipeline(
                        drawing.text,
                        negative_prompt=settings.negative,
                        width=settings.width,
                        height=settings.height,
                        num_inference_steps=settings.steps,
                        guidance_scale=settings.guidance,
                        generator=generator,
                    ).images[0]

    def _pipeline(self) -> Any:
        model, device = self.settings.model, default_device()
        dtype = DTYPES[model.precision] if device.type == "cuda" else torch.float32
        return load_pipeline(model, dtype, device)

    def _applied(self, person: Person, scale: float | None) -> AppliedSubject:
        settings = next(one for one in self.settings.subjects if one.name == person.name)
        encoder = self._encoder(settings)
        if person.name not in self._subjects:
            pictures = torch.stack([self._reference(settings, path) for path in settings.references])
            self._subjects[person.name] = encode_subject(encoder, self.vision, pictures)
        return AppliedSubject(
            self._subjects[person.name], encoder, name=person.name, attention_scale=scale or 1.0
        )

    def _encoder(self, subject: EvaluatedSubject) -> SubjectEncoder:
        path = subject.encoder or self.settings.encoder
        if path not in self._encoders:
            encoder = load_subject_encoder(path).eval().requires_grad_(False)
            self._encoders[path] = encoder.to(default_device())
        return self._encoders[path]

    def _reference(self, subject: EvaluatedSubject, path: Path) -> Tensor:
        """(512, 512, 3): the face, as Align Face cuts it out, or the middle of the whole picture."""
        picture = read_picture(path)
        if not (self.settings.align and subject.face):
            return cut(picture, Square.in_middle(picture), CROP)
        try:
            return align_faces(picture[None], lambda _: self.find(path), size=CROP).crops[0]
        except NestedAttentionError as error:
            raise NestedAttentionError(f"{path}, a reference of {subject.name}: {error}") from error


def told_of(settings: DrawSettings) -> dict[str, Any]:
    """What decides how the pictures look, beside their names."""
    encoders = {s.name: s.encoder or settings.encoder for s in settings.subjects}
    digests = {path: _digest(path) for path in set(encoders.values())}  # large files, of many subjects
    return {
        "model": [settings.model.base, settings.model.vision, settings.model.vae, settings.model.precision],
        "encoder": {name: digests[path] for name, path in encoders.items()},
        "face": {s.name: s.face for s in settings.subjects},
        "references": {s.name: [_digest(path) for path in s.references] for s in settings.subjects},
        "prompts": {f"prompt {number}": text for number, text in enumerate(settings.prompts, start=1)},
        "negative": settings.negative,
        "size": [settings.width, settings.height],
        "steps": settings.steps,
        "guidance": settings.guidance,
        "align": settings.align,
    }


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return sha256_of(file)
    except OSError as error:
        raise NestedAttentionError(f"{path} cannot be read ({error.strerror}); check the path") from error
