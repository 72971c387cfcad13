"""What `nested-attention evaluate` is told: what is drawn, or read, and who judges it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import NestedAttentionError
from ..training.frozen import BaseModel
from ..training.reading import Place, at_least
from .recognisers import Pixels

LAMBDAS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""The paper's (Fig. 10)."""

_PLACE = re.compile(r"\{(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class RecogniserSettings:
    """A face recogniser of one's own: an ONNX file of ArcFace's kind. pixels: the values it reads. threshold:
    the cosine from which two faces are one person; null: figures that need one are left out."""

    file: Path
    name: str | None = None
    pixels: Pixels = "-1 to 1"
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScorerSettings:
    """Who judges.

    packaged: the face recogniser and the detector that come with the pack. recognisers: others, in addition.
    clip, dino: folders of transformers, or names on the model hub. aesthetic: the file of a predictor of
    LAION's, which needs the `clip` it belongs to. vision: the encoder's own vision model, for pictures that
    were not drawn here; a `clip` that sees with it is marked as not independent.
    """

    packaged: bool = True
    recognisers: tuple[RecogniserSettings, ...] = ()
    clip: Place | None = None
    dino: Place | None = None
    aesthetic: Path | None = None
    vision: Place | None = None

    @property
    def of_faces(self) -> bool:
        """Whether anybody judges by faces."""
        return self.packaged or bool(self.recognisers)

    def __post_init__(self) -> None:
        if self.aesthetic is not None and self.clip is None:
            raise NestedAttentionError(
                f"aesthetic is {self.aesthetic} and clip is missing; expected the CLIP that the predictor "
                "belongs to (ViT-L/14 for LAION's), which makes the descriptors it reads"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluatedSubject:
    """A held-out subject. references: what the encoder is shown. truths: other pictures of the same subject.
    face: false for a pet, which face recognisers leave out. encoder: if not the `encoder` of all."""

    name: str
    references: tuple[Path, ...]
    truths: tuple[Path, ...] = ()
    face: bool = True
    encoder: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
            raise NestedAttentionError(
                f"name is {self.name!r}; expected a letter, then letters, digits, - and _"
            )
        if not self.references:
            raise NestedAttentionError(f"references of {self.name!r} is empty; expected at least one picture")


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """Pictures that are drawn here, by diffusers: every prompt, subject, λ and seed.

    prompts: with {1} where the subject goes, and {2} and so on for more. A prompt with n places is drawn for
    every subject together with the n − 1 that follow in the list. align: faces are cut out of the references
    as Align Face does; false: references are used whole.
    """

    model: BaseModel
    encoder: Path
    subjects: tuple[EvaluatedSubject, ...]
    prompts: tuple[str, ...]
    attention_scales: tuple[float, ...] = LAMBDAS
    seeds: tuple[int, ...] = (0,)
    negative: str = ""
    width: int = 1024
    height: int = 1024
    steps: int = 30
    guidance: float = 5.0
    align: bool = True

    def __post_init__(self) -> None:
        check_grid(self.attention_scales, self.seeds)
        names = [subject.name for subject in self.subjects]
        if not names or len({name.casefold() for name in names}) < len(names):  # names of files, too
            raise NestedAttentionError(
                f"subjects are {names}; expected one or more, each of its own name, capitals or not"
            )
        if not self.prompts:
            raise NestedAttentionError("prompts is empty; expected one or more, such as 'a photo of a {1}'")
        for prompt in self.prompts:
            count = places(prompt)
            if count > len(names):
                raise NestedAttentionError(
                    f"the prompt {prompt!r} has {count} places for {len(names)} subjects; expected at most "
                    "as many places as subjects"
                )


@dataclass(frozen=True, kw_only=True)
class SmallWorldSettings:
    """Pictures of the small world that comes with the pack: subjects and prompts that no stage of its
    training has seen. encoder: another one for the same world; null: the one that ships."""

    word: Literal["person", "pet"] = "person"
    subjects: int = 8
    prompts: int = 4
    attention_scales: tuple[float, ...] = LAMBDAS
    seeds: tuple[int, ...] = (0,)
    steps: int = 20
    encoder: Path | None = None

    def __post_init__(self) -> None:
        check_grid(self.attention_scales, self.seeds)
        at_least(self, 1, "subjects", "prompts", "steps")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """One evaluation. output: a folder, which a later run goes on with. Exactly one of draw, small_world and
    images says where pictures come from. images: a folder as MultiID-Bench lays it out."""

    output: Path
    title: str = "Evaluation"
    draw: DrawSettings | None = None
    small_world: SmallWorldSettings | None = None
    images: Path | None = None
    scorers: ScorerSettings = ScorerSettings()

    def __post_init__(self) -> None:
        given = [name for name in ("draw", "small_world", "images") if getattr(self, name) is not None]
        if len(given) > 1:
            raise NestedAttentionError(f"{' and '.join(given)} are given; expected one of them")


def check_grid(attention_scales: tuple[float, ...], seeds: tuple[int, ...]) -> None:
    for name, values in (("attention_scales", attention_scales), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise NestedAttentionError(f"{name} is {list(values)}; expected one or more different numbers")
    if min(attention_scales) <= 0:
        raise NestedAttentionError(f"attention_scales is {list(attention_scales)}; expected numbers above 0")


def places(prompt: str) -> int:
    """How many subjects a prompt has places for. Raises NestedAttentionError unless they are {1}, {2}, …"""
    found = sorted({int(number) for number in _PLACE.findall(prompt)})
    if not found or found != list(range(1, len(found) + 1)):
        raise NestedAttentionError(
            f"the prompt {prompt!r} has the places {found}; expected {{1}} where the subject goes, and {{2}} "
            "and so on for more"
        )
    return len(found)


def filled(prompt: str, words: list[str]) -> str:
    """A prompt with something in each of its places."""
    return _PLACE.sub(lambda place: words[int(place.group(1)) - 1], prompt)
