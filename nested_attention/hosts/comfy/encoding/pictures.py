"""Reference pictures → a subject, with ComfyUI's CLIP vision models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ....inspection.looks import looks, reference
from ....pictures.check import check_pictures
from ....pictures.faces import FaceDetector
from ....pictures.pyramid import face_detector
from ....pictures.suspect import suspicions
from ....prompt import short
from ....subject import Reference, Subject
from ....typed import read_numbers
from ..notices import warn
from .memory import SubjectEncoderHandle
from .vision import SMALL_WORLD_WIDTH, vision_name

PHOTOGRAPHS = 512
"""Width of the vision models that have seen photographs, at least."""

ENCODE_SUBJECT = "Encode Subject"
"""The node that messages name unless another does its work."""

MOST_TOKENS = 65_536
"""Of a subject, or of all of a batch: 64 pictures with the paper's encoder, 22 GB of keys and values."""

MANY = 4e9
"""Bytes of keys and values above which a user is told what so many pictures take."""


def encode_subject(
    handle: SubjectEncoderHandle,
    clip_vision: Any,
    image: Tensor,
    weights: Sequence[float] | str | None = None,
    *,
    average: bool = False,
    node: str = ENCODE_SUBJECT,
) -> Subject:
    """A subject from an IMAGE batch (pictures, height, width, channels): several pictures are of one subject.

    weights: one number ≥ 0 a picture, by which they are mixed, as numbers or as typed (`read_weights`); equal
    if left out. average: `Subject.from_images`. Pictures are cropped to a square around their middle, as the
    vision model reads them. Raises NestedAttentionError, naming the node, for pictures that cannot be read
    (`check_pictures`), weights that do not fit them and a vision model of another width than the encoder's;
    warns of pictures that show no subject of the encoder's kind (`suspicions`).
    """
    pictures = check_pictures(image, node)
    if isinstance(weights, str):
        weights = read_weights(weights, len(pictures), node)
    counted = len(pictures) if weights is None else sum(weight > 0 for weight in weights)
    check_number(handle, 1 if average else counted, node)
    features = _features(handle, clip_vision, pictures, node)
    for told in suspicions(pictures.cpu(), handle.config.word, _detector(handle)):
        warn(f"{node}: {told}")
    device = handle.load()
    try:
        # A subject outlives the node's inference mode, and is saved, mixed and projected outside of it.
        with torch.inference_mode(False), torch.no_grad():
            subject = Subject.from_images(
                handle.encoder, features.to(device, torch.float32, copy=True), weights, average=average
            )
            return replace(
                subject,
                tokens=subject.tokens.cpu(),
                token_bias=subject.token_bias.cpu(),
                references=() if average else _references(handle, features, pictures, weights),
            )
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{node}: {error}") from error


def check_number(handle: SubjectEncoderHandle, pictures: int, node: str = ENCODE_SUBJECT) -> None:
    """Raises NestedAttentionError for more pictures than a computer holds keys and values of; warns of many.
    An animated picture, or a video, is a picture a frame."""
    tokens = pictures * handle.config.num_queries
    size = 4 * tokens * sum(site.inner_dim for site in handle.config.sites)  # both in half precision
    told = f"{pictures} pictures are {tokens:,} tokens, whose keys and values take {size / 1e9:.1f} GB"
    advice = (
        f"An animated picture counts as one a frame: take a few, or the average (batch of {ENCODE_SUBJECT})"
    )
    if tokens > MOST_TOKENS:
        raise NestedAttentionError(f"{node}: {told}; expected {MOST_TOKENS:,} tokens at most. {advice}")
    if pictures > 1 and size > MANY:
        warn(f"{node}: {told}. {advice}")


def _references(
    handle: SubjectEncoderHandle, features: Tensor, pictures: Tensor, weights: Sequence[float] | None
) -> tuple[Reference, ...]:
    """Of the pictures that count. Where the encoder looked is computed when somebody asks."""
    kept = features.detach().to("cpu", torch.float32, copy=True)
    pooled = handle.config.features == "image_embeds"

    def look(number: int) -> Tensor:
        device = handle.load()
        return looks(handle.encoder, kept[number].to(device))

    return tuple(
        reference(picture, None if pooled else partial(look, number))
        for number, picture in enumerate(pictures)
        if weights is None or weights[number] > 0
    )


def _detector(handle: SubjectEncoderHandle) -> FaceDetector | None:
    """Finds faces for encoders of people or animals that see photographs. The small world's see drawings,
    where it finds none, and IP-Adapter's files do not say what they are for."""
    config = handle.config
    return face_detector() if config.vision_dim >= PHOTOGRAPHS and config.injection == "nested" else None


def read_weights(text: str, pictures: int, node: str = ENCODE_SUBJECT) -> tuple[float, ...] | None:
    """What a user typed for the pictures' weights, such as `1, 0.5, 2`: one number ≥ 0 a picture.

    None, for equal weights, if nothing was typed. Raises NestedAttentionError, naming the node, for
    anything else and for another count.
    """
    weights = read_numbers(text, float)
    if weights == []:
        return None
    advice = f"expected one number of 0 or more a picture, {pictures} in all, such as {_example(pictures)}"
    if weights is None:
        raise NestedAttentionError(f"{node}: the weights are {short(text)!r}; {advice}")
    if len(weights) != pictures:
        raise NestedAttentionError(
            f"{node}: there are {len(weights)} weights and {pictures} pictures in the batch; {advice}"
        )
    if min(weights) < 0 or not any(weights):
        raise NestedAttentionError(
            f"{node}: the weights are {short(text)!r}; {advice}, at least one of them above 0"
        )
    return tuple(weights)


def _example(pictures: int) -> str:
    return repr(", ".join(("1", "0.5", "2", *["1"] * pictures)[: min(pictures, 5)]))


def _features(handle: SubjectEncoderHandle, clip_vision: Any, pictures: Tensor, node: str) -> Tensor:
    """(pictures, patches, vision_dim)"""
    config = handle.config
    needed = (
        f"the subject encoder {handle.source} reads {config.features} of width {config.vision_dim} from the "
        f"CLIP vision model it was trained with. Load that one: {vision_name(config)}"
    )
    if clip_vision is None:
        raise NestedAttentionError(
            f"{node}: there is no CLIP vision model. Choose one in Load Subject Encoder, or connect "
            f"Load CLIP Vision: {needed}"
        )
    try:
        features = clip_vision.encode_image(pictures)[config.features]
    except (AttributeError, KeyError, TypeError) as error:
        raise NestedAttentionError(
            f"{node}: the CLIP vision model {type(clip_vision).__name__} gives no {config.features} "
            f"({error}); {needed}"
        ) from error
    if config.features == "image_embeds":
        features = features[:, None]  # one vector a picture
    if features.dim() != 3 or features.shape[-1] != config.vision_dim:
        drawings = features.shape[-1] == SMALL_WORLD_WIDTH
        raise NestedAttentionError(
            f"{node}: the CLIP vision model gives {config.features} of width {features.shape[-1]}; "
            f"{needed}"
            + (". Or take an encoder of the small world, whose vision model this is: avatars/…" * drawings)
        )
    return features
