"""Encode Subject: reference pictures become a subject."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..nested_attention.hosts.comfy import encode_batch, encode_subject
from .common import SubjectEncoderType, SubjectType, schema

TOGETHER, EACH = "one subject from all pictures", "one subject a picture"


class EncodeSubject(io.ComfyNode):
    """NestedAttentionEncodeSubject"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "EncodeSubject",
            "Encode Subject",
            description=(
                "Turns one or several reference pictures of a subject into a SUBJECT. Crop them to the "
                "subject first: the encoder sees a square around the middle of each picture."
            ),
            search_aliases=["reference image", "face id", "nested attention"],
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
                        "which count equally."
                    ),
                ),
                io.Combo.Input(
                    "batch",
                    options=[TOGETHER, EACH],
                    default=TOGETHER,
                    optional=True,
                    tooltip=(
                        "What several pictures are: of one subject, or each of a subject of its own, which "
                        "Apply Subject gives to the pictures of the latent batch in order, from the first "
                        "again where there are more (also in AnimateDiff's context windows)."
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
    def execute(cls, encoder: Any, clip_vision: Any, image: Any, batch: str = TOGETHER) -> io.NodeOutput:
        encode = encode_batch if batch == EACH else encode_subject
        return io.NodeOutput(encode(encoder, clip_vision, image))
