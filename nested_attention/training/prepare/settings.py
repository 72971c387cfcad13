"""What `nested-attention prepare` is told: where pictures come from, what is made of them, where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...encoder import FeatureLayer
from ...errors import NestedAttentionError
from ...prompt import check_word
from ..frozen import BaseModel
from ..reading import at_least


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where pictures and captions are.

    kind: `folder`: pictures with captions in `.txt` files beside them, at any depth; `parquet`: one file, or
    a folder of them, with columns `picture` (bytes, or a struct with `bytes`), `caption`, and where needed
    `subject`, `reference`, `mask` and `weight`; `webdataset`: `.tar` files, members grouped by name:
    pictures, `.txt`, and where needed `.subject.txt`, `.reference.png`, `.mask.png` and `.weight.png` (a
    folder names the last three alike).
    """

    kind: Literal["folder", "parquet", "webdataset"] = "folder"
    path: Path


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """Pictures that the base model draws itself: the paper's pets are SDXL's own, on white.

    prompts: a text file, a prompt a line; they are the captions. each: pictures a prompt. folder: where they
    are kept, so that none is drawn twice.
    """

    prompts: Path
    folder: Path
    each: int = 1
    size: int = 1024
    steps: int = 30
    guidance: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "each", "size", "steps")


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """One prepared data set.

    recipe: what is the reference, and what the target. `faces`: the aligned face, and the whole photograph
    (the paper's). `pets`: the picture itself for both (the paper's). `identities`: several pictures of one
    subject, one of which is the reference and another the target; which of a picture is shown as a reference,
    `reference` says. `synthetic`: `pets`, of pictures that the base model draws by `generate`. A source that
    has reference pictures of its own is used as it is, whatever the recipe.

    reference: of `identities`: the aligned `face`, or the whole `picture`. isolate: a reference is cut out
    along its mask (or its transparency) and put on white; a picture without one is rejected. A `weight`
    picture, in grey and as large as its target, says how much each place counts in the loss: white fully.
    word: stands for the subject in the captions, and is what the encoder is trained on. replaces: words that
    captions have in its place; in a caption with several, angle brackets mark the subject's: `a man beside a
    <man>`. domain: what is trained for, as the encoder's file will say. resolution: side of a square of as
    many pixels as the targets have; with `square: false` targets keep their shape, in buckets whose sides
    are multiples of `step`. sizes: the buckets, each a height and a width, in place of those. enlarged: how
    many times its own size SDXL is told of a picture. size_conditioning: six numbers that SDXL is told of
    every picture, in place of the true ones. held_out: how many subjects are kept for validation. shard:
    examples a file. batch: pictures encoded at once. workers: threads that read pictures and look for faces,
    a core each.
    """

    model: BaseModel
    output: Path
    recipe: Literal["faces", "pets", "identities", "synthetic"]
    source: SourceSettings | None = None
    generate: GenerateSettings | None = None
    reference: Literal["face", "picture"] = "picture"
    isolate: bool = False
    word: str = "person"
    replaces: tuple[str, ...] = ()
    domain: str = "people"
    features: FeatureLayer = "last_hidden_state"
    resolution: int = 1024
    square: bool = False
    step: int = 64
    sizes: tuple[tuple[int, int], ...] | None = None
    smallest: int = 256
    enlarged: int = 1
    size_conditioning: tuple[int, int, int, int, int, int] | None = None
    held_out: int = 16
    shard: int = 256
    batch: int = 8
    workers: int = 4

    def __post_init__(self) -> None:
        if (self.generate is None) == (self.recipe == "synthetic"):
            raise NestedAttentionError(
                f"recipe is {self.recipe!r} and generate is "
                f"{'missing' if self.generate is None else 'given'}; expected `generate` with the recipe "
                "`synthetic`, and with no other"
            )
        if (self.source is None) == (self.recipe != "synthetic"):
            raise NestedAttentionError(
                f"recipe is {self.recipe!r} and source is {'missing' if self.source is None else 'given'}; "
                "expected `source`, but with the recipe `synthetic`, which draws its pictures"
            )
        at_least(self, 1, "resolution", "step", "enlarged", "shard", "batch", "workers", "smallest")
        at_least(self, 0, "held_out")
        if self.sizes is None and self.resolution % self.step:
            raise NestedAttentionError(
                f"resolution is {self.resolution}, which is no multiple of step, {self.step}"
            )
        if self.sizes is not None and not (self.sizes and min(map(min, self.sizes)) >= 1):
            raise NestedAttentionError(
                f"sizes is {[list(each) for each in self.sizes]}; expected heights and widths of at least 1, "
                "as in [[1024, 1024], [832, 1216]], or null"
            )
        for word in (self.word, *self.replaces):
            check_word(word, "a word for the subject")
