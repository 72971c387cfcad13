"""Likeness: is it the same person?"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..nested_attention.hosts.comfy import STATE, told
from ..nested_attention.paths import FACE_RECOGNISER
from ..nested_attention.pictures.check import check_pictures
from ..nested_attention.pictures.pyramid import face_detector
from ..nested_attention.pictures.recognise import compare, load_face_recogniser
from .common import naming, schema


class MeasureLikeness(io.ComfyNode):
    """NestedAttentionLikeness"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Likeness",
            "Likeness",
            description=(
                "Says whether a picture shows the person of a photograph, and how far their faces are apart. "
                "The face recogniser comes with the pack: nothing to install, nothing to download. It is not "
                "the vision model that the encoder sees with, so that it judges independently. For people "
                "only."
            ),
            search_aliases=[
                "face similarity",
                "face recognition",
                "compare faces",
                "identity score",
                "face distance",
                "same person",
            ],
            inputs=[
                io.Image.Input(
                    "reference",
                    tooltip=(
                        "A photograph of the person, whose largest face counts. Several of one person as a "
                        "batch: the nearest one counts."
                    ),
                ),
                io.Image.Input(
                    "image",
                    tooltip=(
                        "The picture, or a batch of pictures. Where it shows several people, the face that "
                        "is nearest to the reference counts."
                    ),
                ),
            ],
            outputs=[
                io.Float.Output(
                    "distance",
                    display_name="distance",
                    tooltip=(
                        "How far the faces are apart: 0 is the same face, two people are about 0.8 apart. "
                        "The mean of a batch; infinite if a picture shows no face."
                    ),
                ),
                io.Boolean.Output(
                    "same_person",
                    display_name="same person",
                    tooltip="Whether the distance is below 0.6, in every picture of a batch.",
                ),
                io.String.Output(
                    "verdict",
                    display_name="verdict",
                    tooltip="The same in words, with a line for each picture.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reference: Any, image: Any) -> io.NodeOutput:
        node = "Likeness"
        references, pictures = check_pictures(reference, node).cpu(), check_pictures(image, node).cpu()
        with naming(node):
            found = compare(references, pictures, face_detector(), load_face_recogniser(FACE_RECOGNISER))
        lines = [
            one.verdict if len(found) == 1 else f"picture {number} of {len(found)}: {one.verdict}"
            for number, one in enumerate(found, start=1)
        ]
        distance = sum(one.distance for one in found) / len(found)
        same = all(one.same_person for one in found)
        return io.NodeOutput(distance, same, "\n".join(lines), ui=told(STATE, *lines))
