"""Encode Subject: reference pictures become a subject."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy import (
    check_pictures,
    encode_batch,
    encode_subject,
    prepare_references,
    warn_of_photographs,
)
from ..nested_attention.hosts.comfy.encoding.pictures import ENCODE_SUBJECT
from ..nested_attention.pictures.prepare import PREPARE, Prepare
from .common import SubjectEncoderType, SubjectType, naming, schema

TOGETHER, EACH = "one subject from all pictures", "one subject a picture"
AVERAGE = "one subject from the pictures' average"


class EncodeSubject(io.ComfyNode):
    """NestedAttentionEncodeSubject"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "EncodeSubject",
            ENCODE_SUBJECT,
            description=(
                "Turns one or several reference pictures of a subject into a SUBJECT. Crop them to the "
                "subject first, or let prepare do it: the encoder sees a square around the middle of each "
                "picture."
            ),
            search_aliases=["reference image", "nested attention"],
            inputs=[
                SubjectEncoderType.Input("encoder", tooltip="From Load Subject Encoder."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip=(
                        "The CLIP vision model the encoder was trained with: CLIP ViT-H for SDXL encoders, "
                        "the one of Demo World for the small world's."
                    ),
                ),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The reference picture. A batch (Batch Images) is several pictures of one subject, "
                        "which count equally unless weights are given."
                    ),
                ),
                io.String.Input(
                    "weights",
                    default="",
                    optional=True,
                    tooltip=(
                        "How much each picture of a batch counts, as one number a picture: with 1, 0.5, 2 "
                        "the third counts four times as much as the second, and 0 leaves a picture out. "
                        "Empty: all count equally."
                    ),
                ),
                io.Combo.Input(
                    "batch",
                    options=[TOGETHER, EACH, AVERAGE],
                    default=TOGETHER,
                    optional=True,
                    tooltip=(
                        "What several pictures are: of one subject, or each of a subject of its own, which "
                        "Apply Subject gives to the pictures of the latent batch in order, from the first "
                        "again where there are more (also in AnimateDiff's context windows). The average is "
                        "IPAdapter's: the mean of what the vision model sees, as small as one picture's "
                        "subject."
                    ),
                ),
                io.Combo.Input(
                    "prepare",
                    options=list(PREPARE),
                    default="none",
                    optional=True,
                    tooltip=(
                        "What is taken of each picture. None: the square around its middle. Face: the "
                        "largest face, upright, as Align Face does. Isolate: the subject on white, as "
                        "Isolate Subject does without a mask. Auto: a face if there is one, else what can "
                        "be isolated."
                    ),
                ),
            ],
            outputs=[
                SubjectType.Output(
                    "subject",
                    display_name="subject",
                    tooltip="The subject, for Apply Subject with the same encoder.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        encoder: Any,
        clip_vision: Any,
        image: Any,
        weights: str = "",
        batch: str = TOGETHER,
        prepare: Prepare = "none",
    ) -> io.NodeOutput:
        shown = None
        if prepare != "none":
            with naming(ENCODE_SUBJECT):
                image = prepare_references(encoder, [image], prepare, ENCODE_SUBJECT).pictures
            shown = ui.PreviewImage(image, cls=cls)
        else:
            warn_of_photographs(encoder, check_pictures(image).cpu(), ENCODE_SUBJECT)
        if batch != EACH:
            average = batch == AVERAGE
            subject = encode_subject(encoder, clip_vision, image, weights, average=average)
            return io.NodeOutput(subject, ui=shown)
        if weights.strip():
            raise NestedAttentionError(
                f"{ENCODE_SUBJECT}: weights are given ({weights.strip()!r}), and batch is {EACH!r}: a "
                "picture that is a subject of its own has no other to be weighed against. Leave weights "
                f"empty, or set batch to {TOGETHER!r}"
            )
        return io.NodeOutput(encode_batch(encoder, clip_vision, image), ui=shown)
