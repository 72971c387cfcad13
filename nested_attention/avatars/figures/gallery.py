"""The pictures of docs/gallery.md: what subjects do, and what settings do, drawn by the small world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...hosts.diffusers import AppliedSubject, Recorder, encode_subject, personalize
from ...inspection.draw import (
    Cell,
    enlarged,
    query_pictures,
    sheet,
    token_pictures,
    value_pictures,
    word_pictures,
)
from ...inspection.maps import Selection
from ...inspection.recording import Watch
from ...subject import Subject
from ..drawing.canvas import SIZE
from ..drawing.covers import COVERS
from ..drawing.pose import width_of
from ..drawing.references import held_out, reference_picture
from ..models.pipeline import world_pipeline
from ..models.world import Sampling
from .judges import Judges
from .references import hiding_crop

BOTH = "a photo of a person on the left and a pet on the right at the beach"
ALONE = "a photo of a person in the middle wearing a yellow raincoat at the beach"
PERSON, OTHER, PET = 7, 11, 3
LAMBDAS, ALPHAS, WEIGHTS = (1.0, 1.5, 2.0, 3.0), (1.0, 2.0, 3.0), (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRED = ("the person", "the pet", "the picture", "where the words land")
SIDE = 128
"""Pixels of a picture under a map: eight a cell of the finest layers."""


class Gallery:
    """Draws with the small world's pipeline."""

    def __init__(self, judges: Judges) -> None:
        self.encoders = judges.encoders
        self.pipeline: Any = world_pipeline(judges.world)
        self.pipeline.set_progress_bar_config(disable=True)

    def reference(self, word: str, seed: int) -> np.ndarray:
        """(112, 112, 3) uint8"""
        return reference_picture(held_out(word, seed))

    def subject(self, word: str, pictures: Sequence[np.ndarray]) -> Subject:
        given = torch.from_numpy(np.stack(pictures)).float() / 255
        return encode_subject(self.encoders[word], self.pipeline.image_encoder, given)

    def applied(self, word: str, subject: Subject, **settings: Any) -> AppliedSubject:
        return AppliedSubject(subject, self.encoders[word], **settings)

    def draw(
        self, text: str, subjects: Sequence[AppliedSubject], recorder: Recorder | None = None, seed: int = 1
    ) -> np.ndarray:
        """(128, 128, 3) uint8, of two subjects (128, 192, 3)"""
        width = width_of(max(1, len(subjects)))
        with personalize(self.pipeline, subjects, recorder=recorder):
            (picture,) = self.pipeline(
                text, num_inference_steps=Sampling().steps, guidance_scale=Sampling().guidance, height=SIZE,
                width=width, output_type="np", generator=torch.Generator().manual_seed(seed),
            ).images  # fmt: skip
        return enlarged(np.rint(picture * 255).astype(np.uint8), SIDE * width // SIZE)


def make(judges: Judges, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Writes all pictures of the gallery into a folder."""
    gallery = Gallery(judges)
    folder.mkdir(parents=True, exist_ok=True)
    for part in (_analyses, _settings, _mixing, _several, _pairs):
        for name, picture in part(gallery).items():
            Image.fromarray(picture).save(folder / f"{name}.png", optimize=True)
            say(f"{folder / name}.png")


def _analyses(gallery: Gallery) -> dict[str, np.ndarray]:
    """The four analyses, of one picture of a person and a pet."""
    person, pet = gallery.reference("person", PERSON), gallery.reference("pet", PET)
    subjects = [
        gallery.applied("person", gallery.subject("person", [person])),
        gallery.applied("pet", gallery.subject("pet", [pet])),
    ]
    recorder = Recorder(Watch())
    picture = gallery.draw(BOTH, subjects, recorder)
    seen, everything = recorder.observation(), Selection()
    row = [
        Cell(person, ("the person",)),
        Cell(pet, ("the pet",)),
        Cell(picture, ("the picture",)),
        Cell(word_pictures(seen, [picture], everything)[0], ("where the words land",)),
        Cell(word_pictures(seen, [picture], everything, change=True)[0], ("the size of the change",)),
    ]
    return {
        "words": sheet([row]),
        "values": value_pictures(seen, [picture], everything)[0],
        "tokens": token_pictures(seen, [picture], ())[0],
        "queries": query_pictures(seen),
    }


def _settings(gallery: Gallery) -> dict[str, np.ndarray]:
    """λ and α."""
    picture = gallery.reference("person", PERSON)
    subject = gallery.subject("person", [picture])
    rows = [[Cell(picture, ("the person",)), Cell(gallery.draw(ALONE, []), ("without a subject",))]]
    for alpha in ALPHAS:
        rows.append(
            [
                Cell(
                    gallery.draw(
                        ALONE, [gallery.applied("person", subject, attention_scale=scale, alpha=alpha)]
                    ),
                    (f"lambda {scale:g}, alpha {alpha:g}",),  # the font has no Greek
                )
                for scale in LAMBDAS
            ]
        )
    return {"lambda_and_alpha": sheet(rows)}


def _mixing(gallery: Gallery) -> dict[str, np.ndarray]:
    """Two people mixed by weights, and what each place of the even mixture drew from whom."""
    pictures = [gallery.reference("person", seed) for seed in (PERSON, OTHER)]
    one, other = (gallery.subject("person", [picture]) for picture in pictures)
    recorder = Recorder(Watch())
    drawn = [
        gallery.draw(
            ALONE, [gallery.applied("person", one.mix(other, weight))], recorder if weight == 0.5 else None
        )
        for weight in WEIGHTS
    ]
    cells = [
        Cell(picture, (f"{1 - weight:.0%} one, {weight:.0%} another",))
        for picture, weight in zip(drawn, WEIGHTS, strict=True)
    ]
    people = [Cell(picture, (name,)) for picture, name in zip(pictures, ("one", "another"), strict=True)]
    places = token_pictures(recorder.observation(), [drawn[2]], (), strongest=2)[0]
    return {"mixing": sheet([people, cells]), "mixing_tokens": places}


def _several(gallery: Gallery) -> dict[str, np.ndarray]:
    """One person from pictures that each hide a part of the head, one by one and together (Figure 13)."""
    identity = held_out("person", OTHER)
    pictures = {name: enlarged(hiding_crop(identity, name), 112) for name in COVERS}
    choices = [*([picture] for picture in pictures.values()), [*pictures.values()]]
    given = [Cell(picture, (name,)) for name, picture in pictures.items()]
    bare = Cell(gallery.reference("person", OTHER), ("not given: bare",))
    found = [
        Cell(
            gallery.draw(ALONE, [gallery.applied("person", gallery.subject("person", chosen))]),
            (f"drawn from {'all three' if len(chosen) > 1 else 'the one above'}",),
        )
        for chosen in choices
    ]
    return {"several_references": sheet([[*given, bare], found])}


def _pairs(gallery: Gallery) -> dict[str, np.ndarray]:
    """People with pets."""
    rows = []
    for person, pet in ((PERSON, PET), (OTHER, 8), (23, 15)):
        pictures = gallery.reference("person", person), gallery.reference("pet", pet)
        subjects = [
            gallery.applied(word, gallery.subject(word, [picture]))
            for word, picture in zip(("person", "pet"), pictures, strict=True)
        ]
        recorder = Recorder(Watch())
        drawn = gallery.draw(BOTH, subjects, recorder, seed=person)
        words = word_pictures(recorder.observation(), [drawn], Selection())[0]
        shown = zip((*pictures, drawn, words), PAIRED, strict=True)
        rows.append([Cell(picture, (told,)) for picture, told in shown])
    return {"person_and_pet": sheet(rows)}
