"""What a recipe makes of a sample: the target picture, the reference picture, and the caption; or why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import NestedAttentionError
from ...pictures.align import align_faces
from ...pictures.faces import ffhq_square
from ...pictures.isolate import Isolation, isolate_subjects
from ...pictures.pyramid import face_detector
from ...pictures.square import Square, cut
from ...prompt import Tokenize, find_word, short, word_spans
from .pictures import Size, bucket_of, bucket_sizes, decode, fit
from .settings import PrepareSettings
from .sources import Sample

REFERENCE = 512
"""Pixels a side of references that are cut out. The vision models read 224 or 336."""

EXPECTED_REASONS: Mapping[str, str] = {
    "no caption": "write one in a .txt file of the picture's name, or in the source's column",
    "no word": "write the word, or list what stands for it in `replaces`",
    "not a picture": "save it again, or take it out",
    "too small": "take a larger one, or lower `smallest`",
    "no face": "use `pets` or `identities` for what has no face, or take another picture",
    "other weight": "save NAME.weight.png as large as NAME.png, or take it out",
    "no mask": "save it with transparency, or its mask beside it as NAME.mask.png; or switch `isolate` off",
}
"""Why a sample is left out → what to do."""


class Rejected(Exception):
    """A sample that a recipe cannot use. reason: one of EXPECTED_REASONS; detail: of this sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Look:
    """What a look at a picture that can be used has found. size: the bucket of its target; face: the square
    that is its reference, where a face is."""

    size: Size
    face: Square | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample as a recipe sees it, before the frozen models."""

    target: Tensor  # (3, h, w) in [0, 1]
    reference: Tensor  # (3, H, W) in [0, 1]
    told: tuple[int, ...]  # the six numbers of SDXL's size conditioning
    weight: Tensor | None  # (h, w) in [0, 1], of each place in the loss; None: all alike


@dataclass(frozen=True)
class Recipe:
    """A recipe with its settings."""

    settings: PrepareSettings

    @cached_property
    def sizes(self) -> list[Size]:
        settings = self.settings
        if settings.sizes is not None:
            return list(settings.sizes)
        return bucket_sizes(settings.resolution, settings.step, square=settings.square)

    def caption(self, text: str | None, tokenize: Tokenize) -> tuple[str, list[int]]:
        """A caption with the training word in the subject's place, and the positions of its last token: of
        every occurrence, or of the one that stands in angle brackets.

        Raises Rejected for a caption that is missing, or in which nothing stands for the subject.
        """
        if text is None or not text.strip():
            raise Rejected("no caption", "there is no text for it")
        word, text = self.settings.word, " ".join(text.split())
        names = "|".join(re.escape(name) for name in (word, *self.settings.replaces))
        before, *marked = re.split(rf"<(?:{names})>", text, maxsplit=1, flags=re.IGNORECASE)
        which = None
        if marked:
            which, text = len(list(word_spans(before, word))), f"{before}{word}{marked[0]}"
        for other in self.settings.replaces:
            if next(word_spans(text, word), None) is None:
                for start, end in reversed(list(word_spans(text, other))):
                    text = f"{text[:start]}{word}{text[end:]}"
        try:
            return text, find_word(tokenize, text, word, which)
        except NestedAttentionError as error:
            listed = ", ".join((word, *self.settings.replaces))
            raise Rejected("no word", f"none of {listed} in {short(text, 200)!r} ({error})") from error

    def look(self, sample: Sample) -> Look:
        """What is found once, and kept: a face takes a second. Raises Rejected for a picture that cannot be
        used."""
        picture, alpha = _picture(sample.picture())
        if min(picture.shape[:2]) < self.settings.smallest:
            raise Rejected(
                "too small", f"{picture.shape[1]} × {picture.shape[0]}, under {self.settings.smallest} pixels"
            )
        face = self._face(picture) if self.shows_face(sample) else None
        if face is None:  # whether there is another reference; a face that was found can be cut
            self._reference(sample, picture, alpha, None)
        self._weight(sample, picture)
        return Look(bucket_of((picture.shape[0], picture.shape[1]), self.sizes), face)

    def shows_face(self, sample: Sample) -> bool:
        """Whether a sample's reference is the face in its picture."""
        settings = self.settings
        faces = settings.recipe == "faces" or (
            settings.recipe == "identities" and settings.reference == "face"
        )
        return faces and "reference" not in sample.more

    def prepare(self, sample: Sample, look: Look) -> Prepared:
        """The pictures of a sample, after the look at it."""
        picture, alpha = _picture(sample.picture())
        target, told = fit(picture, look.size)
        weight = self._weight(sample, picture)
        return Prepared(
            target=target,
            reference=self._reference(sample, picture, alpha, look.face),
            told=self.settings.size_conditioning or tuple(self.settings.enlarged * each for each in told),
            weight=None if weight is None else fit(weight, look.size)[0].mean(dim=0),
        )

    def _weight(self, sample: Sample, picture: Tensor) -> Tensor | None:
        """(H, W, 3)"""
        if "weight" not in sample.more:
            return None
        weight, _ = _picture(sample.more["weight"]())
        if weight.shape != picture.shape:
            ours, theirs = (f"{each.shape[1]} × {each.shape[0]}" for each in (weight, picture))
            raise Rejected("other weight", f"the weight is {ours}, the picture {theirs}")
        return weight

    def _reference(
        self, sample: Sample, picture: Tensor, alpha: Tensor | None, face: Square | None
    ) -> Tensor:
        """(3, H, W)"""
        if face is not None:
            return cut(picture, face, REFERENCE).movedim(-1, 0)
        if "reference" in sample.more:
            picture, alpha = _picture(sample.more["reference"]())
        if self.settings.isolate:
            picture = _isolated(sample, picture, alpha)
        return picture.movedim(-1, 0)

    def _face(self, picture: Tensor) -> Square:
        try:
            ((face,),) = align_faces(picture[None], face_detector(), size=REFERENCE).taken
        except NestedAttentionError as error:
            raise Rejected("no face", str(error).partition(": ")[2]) from error
        return ffhq_square(face)


def _picture(content: bytes) -> tuple[Tensor, Tensor | None]:
    try:
        return decode(content)
    except NestedAttentionError as error:
        raise Rejected("not a picture", str(error)) from error


def _isolated(sample: Sample, picture: Tensor, alpha: Tensor | None) -> Tensor:
    if "mask" in sample.more:
        alpha = _picture(sample.more["mask"]())[0].mean(dim=-1)
    if alpha is None:
        raise Rejected("no mask", "it is not transparent, and there is no mask beside it")
    try:
        images, _ = isolate_subjects(picture[None], alpha[None], Isolation(size=REFERENCE))
    except NestedAttentionError as error:
        raise Rejected("no mask", str(error)) from error
    return images[0]


def blank_picture() -> Tensor:
    """What a dropped reference shows: nothing, in the middle of all values. (3, H, W)"""
    return torch.full((3, REFERENCE, REFERENCE), 0.5)
