"""What the recipes are put together from: the same few nodes, wired and worded in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from draft import Draft, Group, Node, Slot
from formats import Definitions

PERSON = "avatars/person_encoder.safetensors"
SAVED = "avatars/somebody.safetensors"
PET = "avatars/pet_encoder.safetensors"
SAMPLING = {"seed": 0, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple"}
SOMEBODY, SOMEBODY_ELSE = 7, 10
"""Two people of the small world who are easily told apart."""

ALONE, TOGETHER = {"width": 128, "height": 128}, {"width": 192, "height": 128}
HALF = {"width": 96, "height": 128}
"""The size of a picture of one figure in the small world, of two, and of half of that."""


@dataclass(frozen=True)
class Context:
    definitions: Definitions
    version: str
    core_version: str

    def draft(self, name: str, heading: str, note: str) -> Draft:
        return Draft(name, heading, note, self.definitions, self.version, self.core_version)


def on_sdxl(
    picture: str = "the reference",
    size: str = "",
    *,
    steps: bool = False,
    pet: bool = False,
    prepare: str = "set `prepare` there to *auto*",
) -> str:
    """The line of a note that says how the workflow is run on SDXL. size: what Empty Latent Image is set to,
    where the workflow has one. steps: whether it has Load Subject Encoder and Encode Subject. pet: whether
    its Apply Subject, or one of them, is for a pet. prepare: how a photograph is cropped, where it has
    Encode Subject."""
    latent = f" Set Empty Latent Image to {size}." if size else ""
    encoder = (
        "your encoder and its CLIP vision model in Load Subject Encoder; connect that model to Encode "
        f"Subject, {prepare}, and connect"
    )
    word = (
        " With IP-Adapter's files, type `pet` into `word` of the pet's Apply Subject: without it their "
        "word is `person`."
    )
    return (
        "- **On SDXL**: choose your checkpoint in `base` of Demo World, and "
        f"{encoder if steps else 'connect'} **Load Image** in place of {picture}.{latent} 30 steps are usual."
        f"{word if pet else ''}"
    )


SQUARE, BROAD = "1024 × 1024", "1216 × 832"
"""Sizes of SDXL's pictures of one figure and of two, for `on_sdxl`."""


def demo_world(draft: Draft, title: str = "1. A world and a reference", **which: int) -> tuple[Node, Group]:
    group = draft.group(title)
    return group.add("NestedAttentionDemoWorld", **{"person": SOMEBODY, "pet": 3, **which}), group


def personalize(group: Group, model: Slot, clip: Slot, image: Slot, **more: object) -> Node:
    title = more.pop("title", None)
    given = {"model": model, "clip": clip, "image": image, **more}
    return group.add("NestedAttentionPersonalize", title, **given)  # type: ignore[arg-type]


def prompt(group: Group, clip: Slot, text: str, title: str = "Prompt") -> Node:
    return group.add("CLIPTextEncode", title, clip=clip, text=text)


def show(group: Group, picture: Slot, scale: Slot, prefix: str) -> None:
    larger = group.add(
        "ImageScaleBy", "Larger", image=picture, upscale_method="nearest-exact", scale_by=scale
    )
    group.add("SaveImage", images=larger.out, filename_prefix=f"nested_attention/{prefix}")


def encode(group: Group, world: Node, picture: Slot, encoder_name: str = PERSON) -> tuple[Node, Node]:
    encoder = group.add("NestedAttentionLoadEncoder", encoder_name=encoder_name)
    subject = group.add(
        "NestedAttentionEncodeSubject",
        encoder=encoder["encoder"],
        clip_vision=world["CLIP_VISION"],
        image=picture,
    )
    return encoder, subject


def apply(group: Group, model: Slot, clip: Slot, encoder: Node, subject: Node, **settings: object) -> Node:
    title = settings.pop("title", None)
    return group.add(
        "NestedAttentionApplySubject",
        title,  # type: ignore[arg-type]
        model=model,
        clip=clip,
        encoder=encoder["encoder"],
        subject=subject.out,
        **settings,
    )


def sample(
    group: Group,
    model: Slot,
    positive: Slot,
    negative: Slot,
    latent: Slot,
    title: str | None = None,
    **more: object,
) -> Node:
    return group.add(
        "KSampler",
        title,
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        **{**SAMPLING, **more},
    )


def draw(
    draft: Draft,
    world: Node,
    applied: Node,
    text: str,
    number: int = 3,
    word: str = "person",
    empty: dict[str, int] | None = None,
) -> None:
    """The last two groups of the plainest workflows: prompt and sampling, picture. empty: of Empty Latent
    Image, in place of the world's own latent."""
    group = draft.group(f"{number}. Prompt and sampling")
    title = f"Prompt with {word}" if " " in word else f"Prompt with the word {word}"
    positive = prompt(group, applied["CLIP"], text, title)
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    start = group.add("EmptyLatentImage", **empty).out if empty else world["latent"]
    group.column()
    latent = sample(group, applied["MODEL"], positive.out, negative.out, start)
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group(f"{number + 1}. The picture")
    show(group, picture.out, world["scale"], draft.name.removeprefix("avatar_"))
