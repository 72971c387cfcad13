"""Apply Subject and Mark Prompt: a word of the prompt becomes the subject."""

from __future__ import annotations

from typing import Any, Final, Literal

from comfy_api.latest import io

from ..nested_attention.hosts.comfy import (
    STATE,
    applied_state,
    apply_subject,
    connection,
    mark_prompt,
    told,
)
from ..nested_attention.hosts.comfy.graph import APPLY_SUBJECT, SHEET
from ..nested_attention.hosts.comfy.notices import expanded_from
from ..nested_attention.prompt import is_blank
from ..nested_attention.settings import SubjectSettings
from .common import SubjectEncoderType, SubjectType, naming, schema

AS_TRAINED: Final = "as trained"


class ApplySubject(io.ComfyNode):
    """NestedAttentionApplySubject"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ApplySubject",
            APPLY_SUBJECT.title,
            description=(
                "Attaches a subject to one word of the prompt. Works like a LoRA loader: MODEL and CLIP in, "
                "MODEL and CLIP out; chain it once per subject. Encode the prompt with the CLIP that comes "
                "out, with any text node: wherever the word stands, the subject appears."
            ),
            search_aliases=[
                "instantid",
                "pulid",
                "ip-adapter",
                "photomaker",
                "personalization",
                "nested attention",
            ],
            advanced=(
                *("start_percent", "end_percent", "when_missing", "apply_to_negative"),
                *("bounded", "bound_self_attention", "blocks", "injection", "weight"),
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model the encoder was trained for: SDXL, or Demo World's."
                ),
                io.Clip.Input(
                    "clip", tooltip="The CLIP of the same checkpoint, with LoRAs and CLIP skip or without."
                ),
                SubjectEncoderType.Input("encoder", tooltip="The encoder that made the subject."),
                SubjectType.Input("subject", tooltip="From Encode Subject, Mix Subjects or Load Subject."),
                io.String.Input(
                    "word",
                    default="",
                    tooltip=(
                        "The word of the prompt that carries the subject, such as person, woman or dog. "
                        "Empty: the word the encoder was trained on. It must occur in the positive prompt, "
                        "as a word of its own."
                    ),
                ),
                io.Float.Input(
                    "attention_scale",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "λ: how much attention the word gets. 1 leaves it as the prompt has it; 1.5 to 3 "
                        "strengthens the likeness at the cost of the rest of the prompt; below 1 weakens it."
                    ),
                ),
                io.Float.Input(
                    "alpha",
                    default=2.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "α: length of the subject's value, as a multiple of that of the word it replaces. 2 "
                        "is the paper's choice and what encoders are trained with. 0 leaves the length as "
                        "the encoder made it."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How far the word becomes the subject: 1 fully, 0 not at all (the picture is then "
                        "exactly the one without this node)."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "When in the sampling the subject begins to count: 0 is the first step. A sampling "
                        "with a denoise below 1 begins later."
                    ),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When in the sampling the subject ceases to count: 1 is after the last step.",
                ),
                io.Combo.Input(
                    "when_missing",
                    options=["error", "warn"],
                    default="error",
                    tooltip=(
                        "What to do if no prompt carries the subject: stop with an error, or warn and go on "
                        "without it (for passes with prompts of their own, such as a face detailer's)."
                    ),
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip=(
                        "A name for the subject, so that <name> in the prompt means it wherever the word "
                        "would be ambiguous: <alice> hugging a person. <alice:child> attaches it to the "
                        "word child. Empty: the word itself is the name."
                    ),
                ),
                io.Boolean.Input(
                    "apply_to_negative",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Whether the word carries the subject in a negative prompt too. Off, as in the "
                        "paper, unless you want the picture driven away from the subject."
                    ),
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip=(
                        "Where in the picture the subject counts, at any size; soft edges are kept. A batch "
                        "of masks goes with the pictures of the latent batch, in order. Not connected: "
                        "everywhere."
                    ),
                ),
                io.Combo.Input(
                    "region_mode",
                    options=["mask", "auto", "none"],
                    default="mask",
                    optional=True,
                    tooltip=(
                        "mask: the region is the mask, or everywhere if none is connected. auto: without a "
                        "mask, the region is found in the first steps, where the word draws more attention "
                        "than the words of the other subjects set to auto. none: no region, even if a mask "
                        "is connected."
                    ),
                ),
                io.Boolean.Input(
                    "bounded",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Whether the word itself is kept to the region, so that nothing of it appears "
                        "elsewhere. For two people in one picture: on. Does nothing without a region."
                    ),
                ),
                io.Boolean.Input(
                    "bound_self_attention",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Whether this region and those of other subjects see nothing of each other in "
                        "self-attention, which carries looks from one person to another. On at one of the "
                        "subjects is enough. Does nothing unless two subjects have regions; costs time and "
                        "memory, the more the larger the picture."
                    ),
                ),
                io.String.Input(
                    "blocks",
                    default="all",
                    optional=True,
                    tooltip=(
                        "Strength by block of the model, as factors from 0 to 1: 'all:0, up:1' is the "
                        "decoder alone, 'down:0.5' halves the encoder. Blocks are all, down, mid, up, and "
                        "finer up.0, up.0.1; the most specific name decides, and what is not named keeps 1."
                    ),
                ),
                io.Combo.Input(
                    "injection",
                    options=[AS_TRAINED, "nested", "anchored", "everywhere"],
                    default=AS_TRAINED,
                    optional=True,
                    tooltip=(
                        "How the subject gets into the picture. nested: as the word's value, for encoders "
                        "trained that way. anchored: added to the text where the word is attended, for "
                        "IP-Adapter's files. everywhere: added in the whole picture, or region, as "
                        "IP-Adapter does. as trained: nested or anchored, as the encoder's file says."
                    ),
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.05,
                    max=5.0,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "How much is added where a subject is anchored or everywhere: IP-Adapter's weight. "
                        "1 is what adapters are trained with. Does nothing for a nested subject."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="For the sampler, or for the next Apply Subject."),
                io.Clip.Output(
                    "CLIP", tooltip="For the prompt's text encode node, or for the next Apply Subject."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return "\n".join(connection())

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        encoder: Any,
        subject: Any,
        word: str,
        attention_scale: float,
        alpha: float,
        strength: float,
        start_percent: float,
        end_percent: float,
        when_missing: Literal["error", "warn"],
        name: str = "",
        apply_to_negative: bool = False,
        region: Any = None,
        region_mode: Literal["mask", "auto", "none"] = "mask",
        bounded: bool = False,
        bound_self_attention: bool = False,
        blocks: str = "all",
        injection: Literal["as trained", "nested", "anchored", "everywhere"] = AS_TRAINED,
        weight: float = 1.0,
    ) -> io.NodeOutput:
        by = SHEET if expanded_from() == "NestedAttentionSheet" else APPLY_SUBJECT
        with naming(by.title):
            settings = SubjectSettings(
                word=None if is_blank(word) else word,
                name=None if is_blank(name) else name,
                attention_scale=attention_scale,
                alpha=alpha or None,
                strength=strength,
                start=start_percent,
                end=end_percent,
                region=region,
                region_mode=region_mode,
                bounded=bounded,
                bound_self_attention=bound_self_attention,
                blocks=blocks,
                when_missing=when_missing,
                apply_to_negative=apply_to_negative,
                injection="trained" if injection == AS_TRAINED else injection,
                weight=weight,
            )
            model, clip = apply_subject(model, clip, encoder, subject, settings, by)
        shown = told(STATE, *applied_state(model, encoder, not is_blank(word)))
        return io.NodeOutput(model, clip, ui=None if by is SHEET else shown)  # the sheet has its own


class MarkPrompt(io.ComfyNode):
    """NestedAttentionMarkPrompt"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MarkPrompt",
            "Mark Prompt",
            description=(
                "Tells a conditioning which of its words carry subjects. Only needed after text nodes that "
                "build their conditioning in ways the CLIP cannot see; ordinary text encode nodes need "
                "nothing."
            ),
            search_aliases=["nested attention"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="A conditioning encoded from the text below."),
                io.Clip.Input("clip", tooltip="The CLIP that comes out of the last Apply Subject."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="The text the conditioning was encoded from, word for word.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("CONDITIONING", tooltip="The same, with its subjects' words marked.")
            ],
        )

    @classmethod
    def execute(cls, conditioning: Any, clip: Any, text: str) -> io.NodeOutput:
        return io.NodeOutput(mark_prompt(conditioning, clip, text))
