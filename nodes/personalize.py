"""Person or Pet in Picture: the whole way from photographs to MODEL and CLIP in one node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy import (
    STATE,
    applied_state,
    apply_subject,
    connection,
    encode_subject,
    prepare_references,
    told,
)
from ..nested_attention.hosts.comfy.graph import PERSONALIZE
from ..nested_attention.pictures.prepare import PREPARE, Prepare, Prepared
from ..nested_attention.prompt import is_blank
from ..nested_attention.settings import SubjectSettings
from .common import SubjectType, naming, refusal, schema
from .presets import check_preset, find_encoder, find_vision, loaded, preset_options, preset_state, word_of

NAME = PERSONALIZE.title

LIKENESS: dict[str, dict[str, Any]] = {
    "subtle": {"attention_scale": 0.6, "start": 0.1},
    "balanced": {},
    "strong": {"attention_scale": 2.0},
    "layout first": {"attention_scale": 1.5, "start": 0.2},
}
"""Choices by what Apply Subject calls λ and start_percent. α is the encoder's, blocks are all, throughout."""


class Personalize(io.ComfyNode):
    """NestedAttentionPersonalize"""

    def __init__(self) -> None:
        super().__init__()
        self._loaded = loaded()  # kept for as long as ComfyUI keeps the node

    @classmethod
    def define_schema(cls) -> io.Schema:
        picture = "Another photograph of the same subject, of any size."
        return schema(
            "Personalize",
            NAME,
            description=(
                "Puts this person or this pet into the picture: photographs in, MODEL and CLIP out. It "
                "finds the encoder, takes the face or the pet out of each photograph, and attaches the "
                "subject to a word of the prompt. Encode the prompt with the CLIP that comes out. For "
                "several subjects, chain one node for each. It does what Load Subject Encoder, Encode "
                "Subject and Apply Subject do one by one."
            ),
            search_aliases=[
                "face",
                "identity",
                "person",
                "pet",
                "consistent character",
                "reference image",
                "likeness",
                "ip-adapter",
                "ipadapter",
                "face id",
                "same face",
                "dog",
                "cat",
                "character",
                "photo",
                "instantid",
                "pulid",
                "photomaker",
                "personalization",
                "subject",
                "nested attention",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="From Load Checkpoint (SDXL), Demo World, or another of these."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint, or of another of these."),
                io.Image.Input(
                    "image",
                    tooltip="A photograph of the subject, of any size; a batch is several of the same one.",
                ),
                io.Combo.Input(
                    "preset",
                    options=preset_options(),
                    default="person",
                    tooltip=(
                        "Which encoder reads the photographs. Person and pet take the first that fits the "
                        "MODEL: yours in ComfyUI/models/nested_attention, the small world's, or else an "
                        "IP-Adapter file. Its CLIP vision model is found in ComfyUI/models/clip_vision."
                    ),
                ),
                io.String.Input(
                    "word",
                    default="",
                    optional=True,
                    tooltip=(
                        "The word of the prompt that becomes the subject, such as woman or dog. Empty: the "
                        "word the encoder was trained on, which the node shows when it has run."
                    ),
                ),
                io.Combo.Input(
                    "likeness",
                    options=list(LIKENESS),
                    default="balanced",
                    optional=True,
                    tooltip=(
                        "How much the subject decides. Subtle: more of the prompt. Balanced: as the encoder "
                        "was trained. Strong: more of the subject. Layout first: the prompt alone lays the "
                        "picture out, then the subject comes."
                    ),
                ),
                io.Combo.Input(
                    "prepare",
                    options=list(PREPARE),
                    default="auto",
                    optional=True,
                    tooltip=(
                        "What is taken of each photograph. Auto: the largest face, upright, if there is one, "
                        "else the subject on white if it can be told from the background. Face: "
                        "that, or an error. Isolate: the subject on white, with a warning where that is not "
                        "certain. None: the square around the middle."
                    ),
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip=(
                        "A name for the subject, for several of one kind: <alice> in the prompt then means "
                        "it. Empty: the word is the name."
                    ),
                ),
                io.Image.Input("image_2", optional=True, tooltip=picture),
                io.Image.Input("image_3", optional=True, tooltip=picture),
                io.Image.Input("image_4", optional=True, tooltip=picture),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="For the sampler, or for the next of these nodes."),
                io.Clip.Output("CLIP", tooltip="For the text encoders, or for the next of these nodes."),
                SubjectType.Output(
                    "subject",
                    display_name="subject",
                    tooltip="The subject, for Save Subject or Mix Subjects.",
                ),
                io.Image.Output("taken", display_name="taken", tooltip="What was taken of each photograph."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None) -> bool | str:
        return refusal(check_preset, preset)

    @classmethod
    def fingerprint_inputs(cls, preset: str | None = None, **_: Any) -> Any:
        linked = preset is None  # from another node, whose output says it all
        return ["linked" if linked else preset_state(preset), *connection()]

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        image: Any,
        preset: str,
        word: str = "",
        likeness: str = "balanced",
        prepare: Prepare = "auto",
        name: str = "",
        image_2: Any = None,
        image_3: Any = None,
        image_4: Any = None,
    ) -> io.NodeOutput:
        images = [one for one in (image, image_2, image_3, image_4) if one is not None]
        with naming(NAME):
            encoder = find_encoder(preset, model)
            chosen = word_of(preset, encoder) if is_blank(word) else word
            settings = SubjectSettings(
                word=chosen, name=None if is_blank(name) else name, **_choice(likeness)
            )
            kind = "pet" if preset == "pet" else chosen or ""
            prepared = prepare_references(encoder, images, prepare, NAME, word=kind)
            subject = encode_subject(encoder, find_vision(encoder), prepared.pictures, node=NAME)
            model, clip = apply_subject(model, clip, encoder, subject, settings, PERSONALIZE)
        state = [_said(prepared), *applied_state(model, encoder, chosen is not None)]
        preview = ui.PreviewImage(prepared.pictures, cls=cls).as_dict()
        return io.NodeOutput(model, clip, subject, prepared.pictures, ui={**preview, **told(STATE, *state)})


def _choice(likeness: str) -> dict[str, Any]:
    if likeness not in LIKENESS:
        raise NestedAttentionError(f"likeness is {likeness!r:.40}; expected one of {', '.join(LIKENESS)}")
    return LIKENESS[likeness]


def _said(prepared: Prepared) -> str:
    """What was taken of the pictures, such as `2 pictures: face found; nothing to isolate: used as it is`."""
    words = {"face": "face found", "isolated": "isolated", "as it is": "used as it is"}
    lacking = {"face": "no face found", "subject": "nothing to isolate"}
    told = [
        ", ".join(lacking[one] for one in missed) + ": " * bool(missed) + words[taken]
        for taken, missed in zip(prepared.taken, prepared.missed, strict=True)
    ]
    return f"{len(told)} picture{'s' if len(told) > 1 else ''}: {'; '.join(told)}"
