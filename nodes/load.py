"""Load Subject Encoder: where encoder files are looked for, and the node that reads one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy import load_encoder_for_comfy
from .common import SubjectEncoderType, schema

FOLDER = "nested_attention"
"""Name of the model folder, in ComfyUI/models and in extra_model_paths.yaml."""

SMALL_WORLD = Path(__file__).resolve().parent.parent / "weights" / "avatars"
"""The models that come with the pack."""

BUNDLED = {
    f"avatars/{kind}_encoder.safetensors": SMALL_WORLD / f"{kind}_encoder.safetensors"
    for kind in ("person", "pet")
}

AS_STORED = "as stored"


def register_folder() -> None:
    """Make `models/nested_attention` a model folder, beside those that extra_model_paths.yaml gave it."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    # A folder that ComfyUI does not know starts without extensions, and would list every file in it.
    folder_paths.folder_names_and_paths[FOLDER] = (paths, folder_paths.supported_pt_extensions)


register_folder()


def encoder_path(name: str) -> Path:
    """The file of an encoder's name. Raises NestedAttentionError if there is none."""
    found = folder_paths.get_full_path(FOLDER, name)
    if found is not None:
        return Path(found)
    bundled = BUNDLED.get(name)
    if bundled is not None and bundled.is_file():
        return bundled
    folders = [str(bundled.parent)] if bundled else folder_paths.get_folder_paths(FOLDER)
    advice = (
        "Install the pack again: the file comes with it"
        if bundled
        else "Put the file there, press R in the editor and choose it again"
    )
    raise NestedAttentionError(
        f"Load Subject Encoder: there is no subject encoder {name!r} in {' or '.join(folders)}. {advice}"
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
                "belong in ComfyUI/models/nested_attention (.safetensors or .bin); those of the small demo "
                "world come with the pack. The layout is recognised from the tensors in the file."
            ),
            search_aliases=["nested attention", "ip-adapter", "identity", "face", "personalization"],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=[*BUNDLED, *folder_paths.get_filename_list(FOLDER)],
                    tooltip="A file in ComfyUI/models/nested_attention, or the demo world's (avatars/…).",
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
            ],
            outputs=[
                SubjectEncoderType.Output(
                    "encoder",
                    display_name="encoder",
                    tooltip="For Encode Subject and Apply Subject, both of which need the same one.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, encoder_name: str | None = None) -> bool | str:
        if encoder_name is None:  # comes from another node, and is known when that one has run
            return True
        try:
            encoder_path(encoder_name)
        except NestedAttentionError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, encoder_name: str, **settings: str) -> Any:
        status = encoder_path(encoder_name).stat()
        return encoder_name, status.st_mtime_ns, status.st_size, sorted(settings.items())

    @classmethod
    def execute(cls, encoder_name: str, features: str = AS_STORED, norm: str = AS_STORED) -> io.NodeOutput:
        chosen = {"features": features, "norm": norm}
        overrides = {name: value for name, value in chosen.items() if value != AS_STORED}
        try:
            return io.NodeOutput(load_encoder_for_comfy(encoder_path(encoder_name), **overrides))
        except NestedAttentionError as error:
            message = str(error)
            prefix = "" if message.startswith("Load Subject Encoder") else "Load Subject Encoder: "
            raise NestedAttentionError(prefix + message) from error
