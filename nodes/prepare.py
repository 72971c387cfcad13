"""Align Face and Isolate Subject: from a photograph to what Encode Subject should see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..nested_attention.hosts.comfy.notices import warn
from ..nested_attention.pictures.align import align_faces
from ..nested_attention.pictures.background import estimate_subjects
from ..nested_attention.pictures.check import check_masks, check_pictures
from ..nested_attention.pictures.draw import draw_faces
from ..nested_attention.pictures.faces import WHICH, FaceDetector, Which, upright_square
from ..nested_attention.pictures.insight import InsightFaceDetector
from ..nested_attention.pictures.isolate import BACKGROUNDS, Isolation, isolate_subjects
from ..nested_attention.pictures.pyramid import face_detector
from ..nested_attention.pictures.square import PADDINGS, Padding
from .common import naming, schema


class AlignFace(io.ComfyNode):
    """NestedAttentionAlignFace"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AlignFace",
            "Align Face",
            description=(
                "Finds the faces in a picture and cuts one out, upright, in the middle and at the size "
                "person encoders are trained with (FFHQ's alignment). The face detector comes with the "
                "pack: nothing to install, nothing to download, and free for commercial use."
            ),
            search_aliases=["face crop", "face detection", "ffhq", "crop face", "insightface", "portrait"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="One photograph or a batch. Each gives a crop; one without a face is an error.",
                ),
                io.Combo.Input(
                    "which",
                    options=list(WHICH),
                    default="largest",
                    tooltip=(
                        "Which face, where a picture has several. By index: the one with the number the "
                        "second output shows. All: every face of every picture, as a batch."
                    ),
                ),
                io.Int.Input(
                    "index",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="For which = by index: 1 is the largest face, 2 the next. Otherwise not used.",
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Pixels a side of the crop. Encode Subject shrinks it to what it reads.",
                ),
                io.Combo.Input(
                    "padding",
                    options=list(PADDINGS),
                    default="edge",
                    optional=True,
                    tooltip=(
                        "What fills the crop where it reaches over the picture's border: the picture "
                        "mirrored, its edge drawn out, or white."
                    ),
                ),
                io.Combo.Input(
                    "detector",
                    options=["auto", "built-in", "insightface"],
                    default="auto",
                    optional=True,
                    tooltip=(
                        "Auto is the built-in one (BlazeFace, Apache-2.0). insightface works if you have "
                        "installed it and its buffalo_l lies in ComfyUI/models/insightface/models; its "
                        "models are for non-commercial research only."
                    ),
                ),
                io.Float.Input(
                    "min_score",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "How sure the detector has to be. 0 is its own choice (0.7 for the built-in one, "
                        "0.5 for insightface). Lower it if a face is missed, raise it if something else "
                        "is taken for one."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "face", display_name="face", tooltip="The aligned crops, for Encode Subject."
                ),
                io.Image.Output(
                    "found",
                    display_name="found",
                    tooltip=(
                        "The pictures with all faces drawn and numbered: green those that were taken, "
                        "yellow the others."
                    ),
                ),
                io.Int.Output(
                    "count",
                    display_name="count",
                    tooltip="How many faces were found in all pictures together.",
                ),
                io.Int.Output(
                    "x",
                    display_name="x",
                    tooltip="Left edge of the upright square around the first face taken, in pixels.",
                ),
                io.Int.Output("y", display_name="y", tooltip="Upper edge of that square."),
                io.Int.Output(
                    "side",
                    display_name="side",
                    tooltip="Side of that square, for Image Crop, and to lay a redrawn face back.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        which: Which,
        index: int,
        size: int,
        padding: str = "edge",
        detector: str = "auto",
        min_score: float = 0.0,
    ) -> io.NodeOutput:
        pictures = check_pictures(image, "Align Face").cpu()
        with naming("Align Face"):
            beyond: Padding = PADDINGS[padding]
            detect = _detector(detector, min_score)
            faces = align_faces(pictures, detect, which=which, index=index, size=size, padding=beyond)
        count = sum(len(found) for found in faces.found)
        place = upright_square(faces.taken[0][0], pictures.shape[2], pictures.shape[1])
        return io.NodeOutput(
            faces.crops, draw_faces(pictures, faces), count, *place, ui=ui.PreviewImage(faces.crops, cls=cls)
        )


def _detector(name: str, min_score: float) -> FaceDetector:
    if name == "insightface":
        root = Path(folder_paths.models_dir) / "insightface"
        return InsightFaceDetector(root, min_score) if min_score else InsightFaceDetector(root)
    return face_detector(min_score) if min_score else face_detector()


class IsolateSubject(io.ComfyNode):
    """NestedAttentionIsolateSubject"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "IsolateSubject",
            "Isolate Subject",
            description=(
                "Puts a subject on a plain background, in the middle of a square. For pets and objects: the "
                "paper finds that a pet goes better with a person when it is cut out on white. Without a "
                "mask, what differs from the picture's border is the subject, and the node says if that is "
                "not certain."
            ),
            search_aliases=[
                "remove background",
                "crop by mask",
                "segment",
                "cut out",
                "white background",
                "pet",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture, or a batch of pictures."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White where the subject is, of any size; several pieces count as one subject. "
                        "One for each picture, one for all of them, or several for one picture. Not "
                        "connected: it is estimated from the picture's border, for plain backgrounds."
                    ),
                    optional=True,
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="white",
                    tooltip="What surrounds the subject. White is what the paper uses for pets.",
                ),
                io.Float.Input(
                    "padding",
                    default=0.1,
                    min=0.0,
                    max=4.0,
                    step=0.01,
                    tooltip="Room on each side of the subject, as a part of its longer side.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Pixels of the picture by which the mask is widened; below 0, narrowed.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=512.0,
                    step=0.5,
                    tooltip="Pixels of the picture over which the mask's edge is softened.",
                ),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip=(
                        "For masks that show the surroundings, such as Load Image's of a cut-out with a "
                        "transparent background."
                    ),
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Pixels a side of the result.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "subject", display_name="subject", tooltip="The isolated subject, for Encode Subject."
                ),
                io.Mask.Output("mask_out", display_name="mask", tooltip="Its mask, cropped in the same way."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        background: str,
        padding: float,
        grow: int,
        feather: float,
        invert: bool,
        size: int,
        mask: Any = None,
    ) -> io.NodeOutput:
        node = "Isolate Subject"
        pictures = check_pictures(image, node).cpu()
        with naming(node):
            if mask is None:
                masks, doubts = estimate_subjects(pictures)
                for doubt in doubts:
                    warn(f"{node}: {doubt}")
                invert = False
            else:
                masks = check_masks(mask, node).cpu()
            how = Isolation(
                background=background, padding=padding, grow=grow, feather=feather, invert=invert, size=size
            )
            images, alphas = isolate_subjects(pictures, masks, how)
        return io.NodeOutput(images, alphas, ui=ui.PreviewImage(images, cls=cls))
