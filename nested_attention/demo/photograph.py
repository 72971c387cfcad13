"""`nested-attention draw`: whoever is on a photograph, in a picture of a prompt, with diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import NestedAttentionError
from ..hosts.diffusers import AppliedSubject, Recorder, encode_subject, personalize
from ..pictures.files import read_picture
from ..pictures.prepare import Prepare, Prepared, prepare_pictures
from ..pictures.pyramid import face_detector
from ..pictures.suspect import means_animal
from ..storage.files import replacing
from .models import load_models, sampling

ENLARGE = 16
"""Pixels a side of a saved picture for each of the small world's."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn, and with what.

    photographs: of one subject. checkpoint, encoder, vision, device: `load_models`. word: of the prompt;
    None: the encoder's. prepare: `prepare_pictures`. steps, guidance, size: `sampling`.
    """

    prompt: str
    photographs: tuple[Path, ...]
    checkpoint: str | None = None
    encoder: str | None = None
    vision: str | None = None
    word: str | None = None
    prepare: Prepare = "auto"
    attention_scale: float = 1.0
    strength: float = 1.0
    negative: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float = 5.0
    size: int | None = None
    device: str | None = None


def draw_photograph(drawing: Drawing, out: Path) -> list[str]:
    """Draws one picture, saves it, and returns what to print. Raises NestedAttentionError for a file that it
    cannot be saved as, before anything is loaded, and as `drawn`."""
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise NestedAttentionError(
            f"--out is {out}; expected a picture's file name, with an ending such as .png, .jpg or .webp"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    image, prepared = drawn(drawing)
    small = drawing.checkpoint is None
    if small:
        image = image.resize((image.width * ENLARGE, image.height * ENLARGE), Image.Resampling.NEAREST)
    with replacing(out) as temporary:
        image.save(temporary)
    lines = [f"{path.name}: {taken}" for path, taken in zip(drawing.photographs, prepared.taken, strict=True)]
    if small and "face" in prepared.taken:
        lines.append(
            "The small world draws pixel figures and has never seen a photograph: nobody will recognise the "
            "person. For photographs name a checkpoint of SDXL with --checkpoint"
        )
    return [*lines, *prepared.doubts, f"The picture: {out.resolve()}"]


def drawn(drawing: Drawing, recorder: Recorder | None = None) -> tuple[Image.Image, Prepared]:
    """The picture, and what was taken of the photographs. recorder: keeps maps of what the subject does.

    Raises NestedAttentionError for a photograph that cannot be read or shows no face where one is asked for,
    and as `load_models`, `sampling` and `personalize`.
    """
    photographs = [read_picture(path) for path in drawing.photographs]
    checkpoint = drawing.checkpoint
    options = sampling(
        checkpoint,
        drawing.prompt,
        steps=drawing.steps,
        guidance=drawing.guidance,
        size=drawing.size,
        seed=drawing.seed,
    )
    models = load_models(
        checkpoint, drawing.encoder, drawing.vision, prompt=drawing.prompt, device=drawing.device
    )
    word = drawing.word or models.encoder.config.word
    prepared = prepare_pictures(
        photographs, drawing.prepare, face_detector(),
        animal=means_animal(models.encoder.config.word, word), drawings=checkpoint is None,
    )  # fmt: skip
    subject = encode_subject(models.encoder, models.vision, prepared.pictures)
    applied = AppliedSubject(
        subject=subject,
        encoder=models.encoder,
        word=word,
        attention_scale=drawing.attention_scale,
        strength=drawing.strength,
    )
    texts: dict[str, Any] = {"prompt": drawing.prompt, "negative_prompt": drawing.negative}
    with personalize(models.pipeline, [applied], recorder=recorder):
        return models.pipeline(**texts, **options).images[0], prepared
