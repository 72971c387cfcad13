"""Photographs of any size → what a subject encoder was trained with, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ....pictures.check import check_pictures
from ....pictures.prepare import Prepare, Prepared, prepare_pictures
from ....pictures.pyramid import face_detector
from ....pictures.suspect import means_animal, photographs
from ..notices import warn
from .memory import SubjectEncoderHandle
from .pictures import PHOTOGRAPHS


def prepare_references(
    handle: SubjectEncoderHandle,
    images: Sequence[Any],
    how: Prepare,
    node: str,
    *,
    word: str = "",
) -> Prepared:
    """IMAGE batches, each of its own size → the pictures of one subject, prepared for its encoder.

    how: see `prepare_pictures`. word: of the subject, which may mean an animal where the encoder's does not.
    Warns on the running node where it is not certain that the right thing was taken. Raises
    NestedAttentionError, naming the node, for what is no picture.
    """
    pictures = [picture.cpu() for image in images for picture in check_pictures(image, node)]
    drawings = handle.config.vision_dim < PHOTOGRAPHS
    animal = means_animal(handle.config.word, word)
    prepared = prepare_pictures(pictures, how, face_detector(), animal=animal, drawings=drawings)
    if drawings and "face" in prepared.taken:
        warn(
            f"{node}: the picture shows a real face, and {handle.source} was trained with drawings of the "
            "small world, so the picture will not resemble this person. Photographs need an encoder for SDXL"
        )
    else:
        warn_of_photographs(handle, prepared.pictures, node)
    for doubt in prepared.doubts:
        warn(f"{node}: {doubt}")
    return prepared


def warn_of_photographs(handle: SubjectEncoderHandle, pictures: Tensor, node: str) -> None:
    """Warns on the running node of photographs (`suspect.photographs`) for an encoder of drawings."""
    if handle.config.vision_dim >= PHOTOGRAPHS:
        return
    found = photographs(pictures)
    if found is not None:
        warn(
            f"{node}: {found}, and {handle.source} was trained with drawings of the small world, so what is "
            "drawn will not resemble it. Photographs need an encoder for SDXL"
        )
