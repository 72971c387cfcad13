"""Sheet: what λ, prompts and seeds make of a subject, on one labelled picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy.graph import SHEET
from ..nested_attention.hosts.comfy.state import STATE, told, word_state
from ..nested_attention.pictures.check import check_pictures
from ..nested_attention.pictures.sheet import Layout, labelled_sheet
from ..nested_attention.prompt import is_blank, short
from ..nested_attention.settings import SubjectSettings
from ..nested_attention.subject_batch import SubjectBatch
from ..nested_attention.typed import read_numbers
from .common import SubjectEncoderType, SubjectType, naming, schema

MOST = 200
"""Pictures of a sheet."""


class MakeSheet(io.ComfyNode):
    """NestedAttentionSheet"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Sheet",
            SHEET.title,
            description=(
                "Draws a subject with several prompts, values of λ and seeds, and puts all pictures on one "
                "labelled sheet: a column for each λ, the first without the subject, and a row for each "
                "prompt and seed. It stands in place of Apply Subject, the prompts, the sampler and VAE "
                "Decode."
            ),
            search_aliases=["xy plot", "grid", "compare", "contact sheet", "x/y", "nested attention"],
            advanced=("sampler_name", "scheduler", "name"),
            inputs=[
                io.Model.Input("model", tooltip="The model, with other subjects or LoRAs on it if you like."),
                io.Clip.Input("clip", tooltip="The CLIP that belongs to the model."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                SubjectEncoderType.Input("encoder", tooltip="The encoder that made the subject."),
                SubjectType.Input("subject", tooltip="From Encode Subject, Mix Subjects or Load Subject."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a photo of a person at the beach\na cartoon of a person in the snow",
                    tooltip="A prompt a line, each with the subject's word.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", tooltip="The negative prompt of all."
                ),
                io.String.Input(
                    "attention_scales",
                    default="1, 2",
                    tooltip="Values of λ, from 0.05 to 10, as 1, 1.5, 2: a column each.",
                ),
                io.Boolean.Input(
                    "without",
                    default=True,
                    tooltip="Whether the first column shows the same pictures without the subject.",
                ),
                io.String.Input(
                    "seeds",
                    default="0",
                    tooltip="Seeds, as 0, 1, 2: a row for each prompt with each of them.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps of the sampler."),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance, as in KSampler."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.KSampler.SAMPLERS),
                    tooltip="The sampler, as in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    tooltip="The schedule, as in KSampler.",
                ),
                io.Int.Input(
                    "width",
                    default=1024,
                    min=64,
                    max=8192,
                    step=8,
                    tooltip="Pixels; for Demo World 128, or 192 for two figures.",
                ),
                io.Int.Input(
                    "height", default=1024, min=64, max=8192, step=8, tooltip="Pixels; 128 for Demo World."
                ),
                io.Image.Input(
                    "reference", optional=True, tooltip="A picture of the subject for the sheet's corner."
                ),
                io.String.Input(
                    "word",
                    default="",
                    optional=True,
                    tooltip="The subject's word in the prompts. Empty: the encoder's.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    optional=True,
                    tooltip="A name for the subject, so that <name> in a prompt means it. Empty: the word.",
                ),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="sheet", tooltip="All pictures with their labels."),
                io.Image.Output(
                    "pictures", display_name="pictures", tooltip="The pictures as a batch, row by row."
                ),
            ],
            enable_expand=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        encoder: Any,
        subject: Any,
        prompts: str,
        negative: str,
        attention_scales: str,
        without: bool,
        seeds: str,
        width: int,
        height: int,
        reference: Any = None,
        word: str = "",
        name: str = "",
        **sampler: Any,
    ) -> io.NodeOutput:
        texts = [line.strip() for line in prompts.splitlines() if line.strip()]
        scales = numbers_of(attention_scales, "attention_scales", float, "1, 1.5, 2")
        numbers = numbers_of(seeds, "seeds", int, "0, 1, 2")
        if not texts:
            raise NestedAttentionError(
                "Subject Sheet: there is no prompt; write one a line, with the subject's word"
            )
        columns = ["without the subject"] * without + [f"attention_scale {scale:g}" for scale in scales]
        count = len(texts) * len(numbers) * len(columns)
        if count > MOST:
            raise NestedAttentionError(
                f"Subject Sheet: {len(texts)} prompts × {len(numbers)} seeds × {len(columns)} columns are "
                f"{count} pictures; expected {MOST} at most. Take out prompts, seeds or values of λ"
            )
        if isinstance(subject, SubjectBatch):
            raise NestedAttentionError(
                f"Subject Sheet: the subject is a batch of {len(subject.subjects)}, one for each picture, "
                "and a sheet shows one subject. Encode its pictures as one subject, or make a sheet of each"
            )
        labels = [f"{text} · seed {seed}" if len(numbers) > 1 else text for text in texts for seed in numbers]
        chosen, called = (None if is_blank(one) else one for one in (word, name))
        with naming(SHEET.title):  # before anything is drawn for it
            Layout.of(labels, columns, height, width, corner=reference is not None)
            settings = SubjectSettings(word=chosen, name=called).trained_as(encoder.config)
        graph = GraphBuilder()

        def applied(scale: float, strength: float) -> Any:
            return graph.node(
                "NestedAttentionApplySubject",
                model=model,
                clip=clip,
                encoder=encoder,
                subject=subject,
                word=word,
                name=name,
                attention_scale=scale,
                alpha=encoder.config.alpha or 0.0,
                strength=strength,
                start_percent=0.0,
                end_percent=1.0,
                when_missing="error",
            )

        def encoded(by: Any, text: str) -> Any:
            return graph.node("CLIPTextEncode", clip=by.out(1), text=text).out(0)

        subjects = [applied(1.0, 0.0)] * without + [applied(scale, 1.0) for scale in scales]
        # A prompt is encoded once for all λ. The CLIP of strength 0 does not insist on the subject's word.
        speaking = subjects[:1] * without + subjects[-1:] * len(scales)
        empty = graph.node("EmptyLatentImage", width=width, height=height, batch_size=1).out(0)
        against = {id(by): encoded(by, negative) for by in speaking}
        latents = []
        for text in texts:
            positive = {id(by): encoded(by, text) for by in speaking}
            for seed in numbers:
                for by, one in zip(speaking, subjects, strict=True):
                    drawn = graph.node(
                        "KSampler",
                        model=one.out(0),
                        positive=positive[id(by)],
                        negative=against[id(by)],
                        latent_image=empty,
                        seed=seed,
                        denoise=1.0,
                        **sampler,
                    )
                    latents.append(drawn.out(0))
        pictures = graph.node("VAEDecode", samples=_joined(graph, latents), vae=vae).out(0)
        sheet = graph.node(
            "NestedAttentionArrangeSheet",
            pictures=pictures,
            rows="\n".join(labels),
            columns="\n".join(columns),
            **({} if reference is None else {"corner": reference}),
        )
        state = [
            word_state(settings, chosen is not None),
            f"encoder: {encoder.source} · {count} picture{'s' * (count > 1)}",
        ]
        return io.NodeOutput(sheet.out(0), pictures, expand=graph.finalize(), ui=told(STATE, *state))


class ArrangeSheet(io.ComfyNode):
    """NestedAttentionArrangeSheet"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ArrangeSheet",
            "Arrange Sheet",
            description=(
                "Puts a batch of pictures on one sheet, with labels for its rows and columns. Subject Sheet "
                "uses it; use it for sheets of your own."
            ),
            search_aliases=["grid", "contact sheet", "label images", "xy plot", "nested attention"],
            inputs=[
                io.Image.Input("pictures", tooltip="A batch of pictures, row by row."),
                io.String.Input(
                    "rows", multiline=True, default="", tooltip="A label for each row, one a line."
                ),
                io.String.Input(
                    "columns", multiline=True, default="", tooltip="A label for each column, one a line."
                ),
                io.Image.Input(
                    "corner", optional=True, tooltip="A picture for the sheet's upper left corner."
                ),
            ],
            outputs=[io.Image.Output("sheet", display_name="sheet", tooltip="The sheet, as one picture.")],
        )

    @classmethod
    def execute(cls, pictures: Any, rows: str, columns: str, corner: Any = None) -> io.NodeOutput:
        node = "Arrange Sheet"
        batch = check_pictures(pictures, node)
        shown = None if corner is None else check_pictures(corner, node)[0]
        with naming(node):
            sheet = labelled_sheet(batch, rows.splitlines(), columns.splitlines(), shown)
        return io.NodeOutput(sheet[None])


def numbers_of(text: str, what: str, kind: type[int] | type[float], example: str) -> list[Any]:
    """Numbers as typed. Raises NestedAttentionError for anything else, for none, and for values that Apply
    Subject or KSampler would refuse."""
    low, high = (0.05, 10.0) if kind is float else (0, 2**64 - 1)
    numbers = read_numbers(text, kind)
    if not numbers or not all(low <= number <= high for number in numbers):
        raise NestedAttentionError(
            f"Subject Sheet: {what} is {short(text)!r}; expected numbers from {low} to {high}, such as "
            f"{example}"
        )
    return numbers


def _joined(graph: GraphBuilder, latents: Sequence[Any]) -> Any:
    """One batch of all. By halves: ComfyUI keeps what every node puts out, and a chain would keep n²/2."""
    if len(latents) == 1:
        return latents[0]
    middle = len(latents) // 2
    halves = _joined(graph, latents[:middle]), _joined(graph, latents[middle:])
    return graph.node("LatentBatch", samples1=halves[0], samples2=halves[1]).out(0)
