"""What the recipes are put together from: the same few nodes, wired and worded in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from draft import Draft, Group, Node, Slot
from formats import Definitions

PERSON = "avatars/person_encoder.safetensors"
SAVED = "avatars/somebody.safetensors"
PET = "avatars/pet_encoder.safetensors"
SAMPLING = {"seed": 0, "steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}


@dataclass(frozen=True)
class Context:
    definitions: Definitions
    version: str
    core_version: str

    def draft(self, name: str, heading: str, note: str) -> Draft:
        return Draft(name, heading, note, self.definitions, self.version, self.core_version)


def on_sdxl(pictures: str = "the reference", more: str = "") -> str:
    """The line of a note that says how the workflow is run on SDXL."""
    return (
        "- **On SDXL**: Load Checkpoint, with Load CLIP Vision, in place of Demo World, your encoder in Load "
        f"Subject Encoder, and Load Image in place of {pictures}. {more}Draw at 1024 × 1024 (Empty Latent "
        "Image) in 30 steps at cfg 5, and leave out the node that shows art pixels larger."
    )


def prompt(group: Group, clip: Slot, text: str, title: str = "Prompt") -> Node:
    return group.add("CLIPTextEncode", title, clip=clip, text=text)


def show(group: Group, picture: Slot, prefix: str) -> None:
    larger = group.add(
        "ImageScaleBy",
        "Show the art pixels larger",
        image=picture,
        upscale_method="nearest-exact",
        scale_by=4.0,
    )
    group.add("SaveImage", images=larger.out, filename_prefix=f"nested_attention/{prefix}")


def demo_world(draft: Draft) -> tuple[Node, Group]:
    group = draft.group("1. A world and a reference")
    world = group.add("NestedAttentionDemoWorld", person=7, pet=3)
    group.add("PreviewImage", "The reference", images=world["person"])
    return world, group


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
    positive: Node,
    negative: Node,
    latent: Slot,
    title: str | None = None,
    **more: object,
) -> Node:
    return group.add(
        "KSampler",
        title,
        model=model,
        positive=positive.out,
        negative=negative.out,
        latent_image=latent,
        **{**SAMPLING, **more},
    )


def draw(
    draft: Draft,
    world: Node,
    applied: Node,
    text: str,
    batch: int,
    number: int = 4,
    word: str = "person",
) -> None:
    """The last two groups of the plainest workflows: prompt and sampling, picture."""
    group = draft.group(f"{number}. Prompt and sampling")
    positive = prompt(group, applied["CLIP"], text, f"Prompt: the word {word} is the subject")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    latent = group.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
    group.column()
    latent = sample(group, applied["MODEL"], positive, negative, latent.out)
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group(f"{number + 1}. The picture")
    show(group, picture.out, draft.name.removeprefix("avatar_"))
