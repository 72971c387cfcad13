"""Mix, Save and Load Subject: subjects as things one keeps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.hosts.comfy import STATE, check_pictures, told
from ..nested_attention.paths import WEIGHTS
from ..nested_attention.storage.files import file_state, open_regular
from ..nested_attention.storage.store import find_subject, list_subjects, save_subject
from ..nested_attention.storage.thumbnail import make_thumbnail, neutral_icon
from ..nested_attention.subject import Subject, read_subject
from .common import SubjectType, naming, refusal, schema

BUNDLED = {"avatars/somebody.safetensors": WEIGHTS / "subjects" / "somebody.safetensors"}
"""The saved subject that comes with the pack: a drawn person, for the encoder of the small world."""

LOADED = "nested_attention_subject"
"""The key of a subject's name in what the node hands the editor; web/subjects.js shows whom it stands for."""


def stores() -> dict[str, Path]:
    """Where saved subjects are looked for; asked each time, because options of ComfyUI may move them."""
    return {
        "input": Path(folder_paths.get_input_directory()),
        "output": Path(folder_paths.get_output_directory()),
    }


class MixSubjects(io.ComfyNode):
    """NestedAttentionMixSubjects"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MixSubjects",
            "Mix Subjects",
            description=(
                "One subject out of two of the same encoder: more pictures of one person, or a blend of two "
                "people. Chain it for more than two."
            ),
            search_aliases=["blend faces", "merge subjects", "combine embeds", "nested attention"],
            inputs=[
                SubjectType.Input(
                    "subject_1", tooltip="A subject, from Encode Subject, Mix Subjects or Load Subject."
                ),
                SubjectType.Input(
                    "subject_2", tooltip="Another subject, made with the same encoder as the first."
                ),
                io.Float.Input(
                    "weight",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How much the second subject counts: at 0 it is left out, at 1 the first one is, and "
                        "at 0.5 every picture of both counts as much as every other, as if they had been "
                        "encoded together."
                    ),
                ),
            ],
            outputs=[
                SubjectType.Output(
                    "subject", display_name="subject", tooltip="The mixed subject, for Apply Subject."
                )
            ],
        )

    @classmethod
    def execute(cls, subject_1: Any, subject_2: Any, weight: float) -> io.NodeOutput:
        with naming("Mix Subjects"):
            return io.NodeOutput(subject_1.mix(subject_2, weight))


class SaveSubject(io.ComfyNode):
    """NestedAttentionSaveSubject"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SaveSubject",
            "Save Subject",
            description=(
                "Keeps a subject as a small file in ComfyUI's output folder, for Load Subject. Neither the "
                "reference pictures nor their names are kept; a picture is in the file only if you connect a "
                "thumbnail. A saved person is personal data: treat the file as you would the photograph."
            ),
            search_aliases=["save embeds", "save face", "nested attention"],
            inputs=[
                SubjectType.Input("subject", tooltip="The subject to keep."),
                io.String.Input(
                    "filename_prefix",
                    default="subjects/subject",
                    tooltip=(
                        "How the file's name begins, with folders of the output folder before it if you "
                        "like; a number follows. %year%, %month%, %day%, %hour%, %minute% and %second% are "
                        "filled in."
                    ),
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip=(
                        "A picture to recognise the subject by, kept in the file at 128 pixels. Leave it "
                        "unconnected and a neutral icon stands for it."
                    ),
                ),
            ],
            outputs=[SubjectType.Output("saved", display_name="subject", tooltip="The same subject.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, subject: Any, filename_prefix: str, thumbnail: Any = None) -> io.NodeOutput:
        with naming("Save Subject"):
            small = (
                None if thumbnail is None else make_thumbnail(check_pictures(thumbnail, "Save Subject")[0])
            )
            save_subject(subject, filename_prefix, stores()["output"], thumbnail=small)
        picture = neutral_icon() if small is None else small
        # Shown on the node, from a temporary file without the workflow in it.
        return io.NodeOutput(subject, ui=ui.PreviewImage(picture[None] / 255))  # (1, height, width, 3)


class LoadSubject(io.ComfyNode):
    """NestedAttentionLoadSubject"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadSubject",
            "Load Subject",
            description=(
                "A subject that was kept with Save Subject, from ComfyUI's output or input folder. It works "
                "with the encoder that made it, and needs neither the picture nor CLIP vision any more."
            ),
            search_aliases=["consistent character", "load face", "load embeds", "nested attention"],
            inputs=[
                io.Combo.Input(
                    "subject_name",
                    options=[*BUNDLED, *list_subjects(stores())],
                    tooltip=(
                        "A saved subject, or the small world's (avatars/…). Press R in the editor after "
                        "saving or copying one."
                    ),
                )
            ],
            outputs=[
                SubjectType.Output(
                    "subject",
                    display_name="subject",
                    tooltip="The subject, for Apply Subject with the encoder that made it.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, subject_name: str | None = None) -> bool | str:
        return refusal(_find, subject_name)

    @classmethod
    def fingerprint_inputs(cls, subject_name: str | None = None) -> Any:
        if subject_name is None:  # from another node, whose output says it all
            return "linked"
        return subject_name, file_state(_find(subject_name).stat())

    @classmethod
    def execute(cls, subject_name: str) -> io.NodeOutput:
        subject, _, lines = _read(subject_name)
        # No picture: the editor would show it beside that of a subject chosen since.
        return io.NodeOutput(subject, ui={**told(LOADED, subject_name), **told(STATE, *lines)})


def look_at(subject_name: object) -> tuple[list[str], Tensor]:
    """What the node says of a subject, and its thumbnail or the icon that stands for one, (height, width, 3)
    uint8. Raises NestedAttentionError, naming Load Subject, for a name that stands for none."""
    _, thumbnail, lines = _read(subject_name)
    return lines, neutral_icon() if thumbnail is None else thumbnail


def _read(name: object) -> tuple[Subject, Tensor | None, list[str]]:
    """A subject, its thumbnail if it has one, and where it comes from."""
    with naming("Load Subject"):
        path = _find(name)
        subject, thumbnail = read_subject(path)
        return subject, thumbnail, _provenance(subject, path)


def _provenance(subject: Subject, path: Path) -> list[str]:
    """Where a subject comes from, in lines."""
    of = "1 picture" if subject.images == 1 else f"{subject.images} pictures"
    with open_regular(path) as opened:  # or it has been removed since it was read
        file = os.fstat(opened.fileno())
    saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.st_mtime))
    return [
        f"word: {subject.word} · from {of}",
        f"encoder {subject.fingerprint[:8]} · {len(subject.tokens)} tokens",
        f"saved {saved} · {max(1, file.st_size // 1024)} kB",
    ]


def _find(name: Any) -> Path:
    with naming("Load Subject"):
        try:
            return find_subject(name, stores())
        except NestedAttentionError:
            bundled = BUNDLED.get(name) if isinstance(name, str) else None
            if bundled is None or not bundled.is_file():
                raise
            return bundled
