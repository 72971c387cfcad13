"""Observe Subjects and View Subject Maps: see what subjects do in a picture."""

from __future__ import annotations

from typing import Any, Literal

from comfy_api.latest import io

from ..nested_attention.hosts.comfy import maps_ui, observe_subjects, view_maps
from ..nested_attention.inspection.recording import Watch
from .common import naming, schema

MapsType = io.Custom("NESTED_ATTENTION_MAPS")


class Observe(io.ComfyNode):
    """NestedAttentionObserve"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Observe",
            "Observe Subjects",
            description=(
                "Keeps maps of what subjects do while a picture is sampled, for View Subject Maps: where "
                "each word lands, how much it changes, and which of the subject's tokens each place takes. "
                "Put it behind the last Apply Subject, before any sampler or guider. Pictures stay the same, "
                "bit for bit."
            ),
            search_aliases=["attention map", "attention heatmap", "DAAM", "inspect", "nested attention"],
            advanced=("start_percent", "end_percent", "tokens", "megabytes"),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the last Apply Subject."),
                io.Boolean.Input(
                    "observe",
                    default=False,
                    tooltip=(
                        "Whether maps are kept. Off, the MODEL is passed on as it is, and nothing is done."
                    ),
                ),
                io.Combo.Input(
                    "layers",
                    options=["decoder", "all"],
                    default="decoder",
                    tooltip=(
                        "Which cross-attention layers are observed. decoder: the first layer of each of its "
                        "transformers, where attention follows the layout best. all: every layer, which "
                        "takes longer."
                    ),
                ),
                io.Boolean.Input(
                    "preview",
                    default=False,
                    tooltip=(
                        "Whether this node shows where the words land while the picture is sampled. Waits "
                        "for the GPU once a step."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="The part of the steps from which on they are observed: 0 is the first step.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="The part of the steps up to which they are observed: 1 is after the last step.",
                ),
                io.Int.Input(
                    "tokens",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="How many of the subject's tokens are kept for each place, the strongest.",
                ),
                io.Int.Input(
                    "megabytes",
                    default=128,
                    min=1,
                    max=8192,
                    tooltip=(
                        "How much memory the maps may take while sampling. If they would take more, steps "
                        "are averaged together and tokens are kept for larger places."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="For the sampler or guider."),
                MapsType.Output(
                    "maps", display_name="maps", tooltip="What is observed, for View Subject Maps."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        observe: bool,
        layers: Literal["decoder", "all"],
        preview: bool,
        start_percent: float,
        end_percent: float,
        tokens: int,
        megabytes: int,
    ) -> io.NodeOutput:
        with naming("Observe Subjects"):
            watch = Watch(
                layers=layers, start=start_percent, end=end_percent, tokens=tokens, megabytes=megabytes
            )
            return io.NodeOutput(*observe_subjects(model, watch, on=observe, preview=preview))


class ViewMaps(io.ComfyNode):
    """NestedAttentionViewMaps"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ViewMaps",
            "View Subject Maps",
            description=(
                "Shows what Observe Subjects kept. Point at a place of the picture: the node shows how much "
                "it attends to the word, which of the subject's tokens it took, and where in the reference "
                "pictures they come from. Click to mark a place. Looking at other places samples nothing "
                "again."
            ),
            search_aliases=["attention map", "attention heatmap", "DAAM", "inspect", "nested attention"],
            advanced=("only_layers", "only_steps"),
            inputs=[
                MapsType.Input("maps", tooltip="From Observe Subjects."),
                io.Image.Input("image", tooltip="The pictures that were sampled, from VAE Decode."),
                io.String.Input(
                    "points",
                    default="",
                    tooltip=(
                        "The places for the tokens picture, as x, y in parts of the width and height: "
                        "0.5, 0.25; 0.7, 0.6. A click in the picture below writes them. Empty: where each "
                        "word lands most."
                    ),
                ),
                io.String.Input(
                    "only_layers",
                    default="",
                    optional=True,
                    tooltip=(
                        "Whose maps are averaged in the pictures word, change and values: a part of the "
                        "layers' names, such as up_blocks.1, or a grid, such as 32x32. Empty: all."
                    ),
                ),
                io.String.Input(
                    "only_steps",
                    default="",
                    optional=True,
                    tooltip=(
                        "Which steps' maps are averaged in the pictures word, change and values: 5, or 1-10. "
                        "Empty: all."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "word",
                    display_name="word",
                    tooltip="How much each place attends to each subject's word, over the pictures.",
                ),
                io.Image.Output(
                    "change",
                    display_name="change",
                    tooltip="How much each subject changes each place, over the pictures.",
                ),
                io.Image.Output(
                    "values",
                    display_name="values",
                    tooltip="Each place's value for the word as a colour, without nesting and with it.",
                ),
                io.Image.Output(
                    "tokens",
                    display_name="tokens",
                    tooltip=(
                        "The strongest tokens of the marked places, and where in the references they looked."
                    ),
                ),
                io.Image.Output(
                    "queries",
                    display_name="queries",
                    tooltip="Where the encoder's most used queries looked in the reference pictures.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, maps: Any, image: Any, points: str, only_layers: str = "", only_steps: str = ""
    ) -> io.NodeOutput:
        with naming("View Subject Maps"):
            document, *pictures = view_maps(maps, image, points=points, layers=only_layers, steps=only_steps)
        return io.NodeOutput(*pictures, ui=maps_ui(document))
