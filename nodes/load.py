"""Load Subject Encoder: where encoder files are looked for, and the node that reads one, with its vision
model if wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..nested_attention.card import EncoderCard, describe
from ..nested_attention.checkpoint import read_card
from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy import STATE, load_encoder_for_comfy, load_vision, told
from ..nested_attention.paths import ADAPTERS, PACK, SMALL_WORLD
from ..nested_attention.prompt import short
from ..nested_attention.storage.files import file_state
from ..nested_attention.storage.registry import weights_for
from .common import SubjectEncoderType, naming, refusal, schema

FOLDER = "nested_attention"
"""Name of the model folder, in ComfyUI/models and in extra_model_paths.yaml."""

BUNDLED = {
    f"avatars/{kind}_{what}.safetensors": path / f"{kind}{name}.safetensors"
    for what, path, name in (("encoder", SMALL_WORLD, "_encoder"), ("adapter", ADAPTERS, ""))
    for kind in ("person", "pet")
}
"""The encoders that come with the pack."""

BUNDLED_CARD = EncoderCard(licence="Apache-2.0", base_model="the small world")

ORIGIN = "nested_attention_origin"
"""What the editor keeps with the node, for those who open the workflow without the file."""

AS_STORED = "as stored"
NO_VISION = "none"


def register_folder() -> None:
    """Make `models/nested_attention` a model folder, beside those that extra_model_paths.yaml gave it."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    # A folder that ComfyUI does not know starts without extensions, and would list every file in it.
    folder_paths.folder_names_and_paths[FOLDER] = (paths, folder_paths.supported_pt_extensions)


register_folder()


def encoder_path(name: str) -> Path:
    """The file of an encoder's name. Raises NestedAttentionError if there is none."""
    _check_text("encoder_name", name)
    found = folder_paths.get_full_path(FOLDER, name)
    if found is not None:
        return Path(found)
    bundled = BUNDLED.get(name)
    if bundled is not None and bundled.is_file():
        return bundled
    folders = [str(bundled.parent)] if bundled else folder_paths.get_folder_paths(FOLDER)
    advice = "Put the file there, press R in the editor and choose it again"
    if bundled:
        advice = "Install the pack again: the file comes with it"
    elif (known := weights_for(FOLDER, name)) is not None:
        advice += (
            f". It is {known.page} (licence: {known.licence}); `python -m nested_attention.cli "
            f"download {known.name}` in {PACK} fetches it"
        )
    raise NestedAttentionError(
        f"Load Subject Encoder: there is no subject encoder {short(name)!r} in {' or '.join(folders)}. "
        f"{advice}"
    )


def encoder_card(name: str) -> EncoderCard:
    """What is known of an encoder: what its file says, else what comes with the pack about it."""
    path = encoder_path(name)
    if path == BUNDLED.get(name):
        return BUNDLED_CARD
    card, known = read_card(path), weights_for(FOLDER, name)
    if known is not None and card == EncoderCard():
        return EncoderCard(licence=known.licence, source=known.page)
    return card


def vision_path(name: str) -> Path:
    """The file of a vision model's name. Raises NestedAttentionError if there is none."""
    _check_text("clip_vision_name", name)
    found = folder_paths.get_full_path("clip_vision", name)
    if found is None:
        folders = " or ".join(folder_paths.get_folder_paths("clip_vision"))
        raise NestedAttentionError(
            f"Load Subject Encoder: there is no CLIP vision model {short(name)!r} in {folders}. Put the file "
            "there, press R in the editor and choose it again"
        )
    return Path(found)


def _check_text(label: str, name: object) -> None:
    if not isinstance(name, str):  # from a workflow in API format, which may hold anything
        raise NestedAttentionError(
            f"Load Subject Encoder: {label} is {name!r:.40}; expected the name of a file, as text"
        )


class LoadEncoder(io.ComfyNode):
    """NestedAttentionLoadEncoder"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadEncoder",
            "Load Subject Encoder",
            description=(
                "Loads a subject encoder: the model that turns a reference picture into a subject. Files "
                "belong in ComfyUI/models/nested_attention (.safetensors or .bin); those of the small "
                "world come with the pack. The layout is recognised from the tensors in the file."
            ),
            search_aliases=[
                "ipadapter",
                "ip-adapter",
                "personalization",
                "nested attention",
            ],
            advanced=("features", "norm", "ignore_unexpected"),
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=[*BUNDLED, *folder_paths.get_filename_list(FOLDER)],
                    tooltip="A file in ComfyUI/models/nested_attention, or the small world's (avatars/…).",
                ),
                io.Combo.Input(
                    "features",
                    options=[AS_STORED, "last_hidden_state", "penultimate_hidden_states"],
                    default=AS_STORED,
                    optional=True,
                    tooltip=(
                        "Which output of the CLIP vision model the encoder reads. Leave it as stored, "
                        "unless you know that a file made elsewhere was trained on the other one."
                    ),
                ),
                io.Combo.Input(
                    "norm",
                    options=[AS_STORED, "inner", "head"],
                    default=AS_STORED,
                    optional=True,
                    tooltip=(
                        "Whether the length of the subject's value is matched over all heads together "
                        "(inner) or head by head. Leave it as stored, unless you know better of a file made "
                        "elsewhere."
                    ),
                ),
                io.Combo.Input(
                    "clip_vision_name",
                    options=[NO_VISION, *folder_paths.get_filename_list("clip_vision")],
                    default=NO_VISION,
                    optional=True,
                    tooltip=(
                        "The CLIP vision model the encoder was trained with, from "
                        "ComfyUI/models/clip_vision; for SDXL's encoders it is CLIP ViT-H. It is checked "
                        "against the encoder and comes out beside it. None: connect Load CLIP Vision, or "
                        "Demo World, to Encode Subject instead."
                    ),
                ),
                io.Boolean.Input(
                    "ignore_unexpected",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Load a file of a known layout although it has further weights, without them. They "
                        "may change what the encoder computes, so such a file is refused otherwise."
                    ),
                ),
            ],
            outputs=[
                SubjectEncoderType.Output(
                    "encoder",
                    display_name="encoder",
                    tooltip="For Encode Subject and Apply Subject, both of which need the same one.",
                ),
                io.ClipVision.Output(
                    "CLIP_VISION",
                    tooltip="The vision model chosen here, for Encode Subject; nothing if none is chosen.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, encoder_name: str | None = None) -> bool | str:
        return refusal(encoder_path, encoder_name)

    @classmethod
    def fingerprint_inputs(
        cls, encoder_name: str | None = None, clip_vision_name: str | None = NO_VISION, **settings: Any
    ) -> Any:
        if encoder_name is None or clip_vision_name is None:  # from another node, whose output says it all
            return "linked"
        paths = [encoder_path(encoder_name)]
        if clip_vision_name != NO_VISION:
            paths.append(vision_path(clip_vision_name))
        files = [(str(path), file_state(path.stat())) for path in paths]
        return encoder_name, clip_vision_name, files, sorted(settings.items())

    @classmethod
    def execute(
        cls,
        encoder_name: str,
        features: str = AS_STORED,
        norm: str = AS_STORED,
        clip_vision_name: str = NO_VISION,
        ignore_unexpected: bool = False,
    ) -> io.NodeOutput:
        chosen = {"features": features, "norm": norm}
        overrides: dict[str, Any] = {name: value for name, value in chosen.items() if value != AS_STORED}
        overrides["ignore_unexpected"] = ignore_unexpected
        with naming("Load Subject Encoder"):
            encoder = load_encoder_for_comfy(encoder_path(encoder_name), **overrides)
            card = encoder_card(encoder_name)
            origin = {"file": encoder_name, "licence": card.licence, "source": card.source}
            shown = {**told(STATE, *describe(encoder.config, card)), **told(ORIGIN, origin)}
            if clip_vision_name == NO_VISION:
                return io.NodeOutput(encoder, None, ui=shown)
            return io.NodeOutput(encoder, load_vision(vision_path(clip_vision_name), encoder), ui=shown)
