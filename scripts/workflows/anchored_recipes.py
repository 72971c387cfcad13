"""Drafts with decoupled adapters, anchored to a word: IP-Adapter's files on SDXL, the small world's own."""

from __future__ import annotations

from typing import NamedTuple

from draft import Draft, Node
from parts import BROAD, TOGETHER, Context, apply, demo_world, on_sdxl, prompt, sample, show
from sdxl_recipes import CHECKPOINT, HUB, SAMPLING, VISION

ADAPTERS = {kind: f"avatars/{kind}_adapter.safetensors" for kind in ("person", "pet")}


def _file(name: str) -> dict[str, str]:
    url = f"{HUB}/h94/IP-Adapter/resolve/main/sdxl_models/{name}"
    return {"name": name, "url": url, "directory": "nested_attention"}


PLUS = _file("ip-adapter-plus_sdxl_vit-h.safetensors")
PLUS_FACE = _file("ip-adapter-plus-face_sdxl_vit-h.safetensors")


class Kind(NamedTuple):
    """A subject on SDXL: its adapter, and the node that prepares its photograph."""

    word: str
    adapter: dict[str, str]
    photograph: str
    prepare: str
    output: str


PERSON = Kind("person", PLUS_FACE, "A photograph of the person", "NestedAttentionAlignFace", "face")
PET = Kind("dog", PLUS, "A photograph of the dog", "NestedAttentionIsolateSubject", "subject")


def _note(opening: str, kinds: tuple[Kind, ...], more: str) -> str:
    adapters = dict.fromkeys(kind.adapter["name"] for kind in kinds)
    page = f"{HUB}/h94/IP-Adapter/tree/main/sdxl_models"
    return (
        f"{opening}\n\n"
        f"{('Three', 'Four')[len(adapters) - 1]} files, each in its folder of `ComfyUI/models`:\n\n"
        "| file | folder |\n|---|---|\n"
        f"| [sd_xl_base_1.0.safetensors]({HUB}/stabilityai/stable-diffusion-xl-base-1.0) | `checkpoints` |\n"
        f"| `model.safetensors` of [CLIP ViT-H]({HUB}/h94/IP-Adapter/tree/main/models/image_encoder) as "
        f"`{VISION['name']}` | `clip_vision` |\n"
        + "".join(f"| [{name}]({page}) | `nested_attention` |\n" for name in adapters)
        + "\nThe adapters are **IP-Adapter**'s (Apache-2.0: pictures may be sold). They were trained to be "
        "added in the whole picture; **Apply Subject** *anchors* them to the word, without a mask. This is "
        "not the paper's trained encoder, and we have not tried the released files: they are tested as "
        "synthetic files of their layout.\n\n"
        + more
        + "- Too strong, or burnt? Lower **weight** to 0.8, then 0.6. Too weak? 1.2, or **attention_scale** "
        "2, which makes the place larger.\n"
        "- **injection** `everywhere` is IP-Adapter itself, for comparison."
    )


def _subject(draft: Draft, number: int, kind: Kind, vision: Node) -> tuple[Node, Node]:
    group = draft.group(f"{number}. The {kind.word}")
    photograph = group.add("LoadImage", kind.photograph, image="example.png")
    prepared = group.add(kind.prepare, image=photograph["IMAGE"])
    group.column()
    encoder = group.add("NestedAttentionLoadEncoder", encoder_name=kind.adapter["name"])
    subject = group.add(
        "NestedAttentionEncodeSubject",
        encoder=encoder["encoder"],
        clip_vision=vision.out,
        image=prepared[kind.output],
    )
    return encoder, subject


def _on_sdxl(draft: Draft, kinds: tuple[Kind, ...], text: str) -> Draft:
    draft.models = [CHECKPOINT, VISION, *{kind.adapter["name"]: kind.adapter for kind in kinds}.values()]
    group = draft.group("1. Models")
    checkpoint = group.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    vision = group.add("CLIPVisionLoader", clip_name=VISION["name"])
    made = [_subject(draft, number, kind, vision) for number, kind in enumerate(kinds, 2)]
    number = len(kinds) + 2
    group = draft.group(
        f"{number}. Their words carry them" if len(kinds) > 1 else f"{number}. Its word carries it"
    )
    applied = checkpoint
    for kind, (encoder, subject) in zip(kinds, made, strict=True):
        applied = apply(group, applied["MODEL"], applied["CLIP"], encoder, subject, word=kind.word)
    group = draft.group(f"{number + 1}. Prompt and sampling")
    words = " and ".join(kind.word for kind in kinds)
    positive = prompt(group, applied["CLIP"], text, f"Prompt with {words}")
    unwanted = "monochrome, lowres, worst quality, low quality"
    negative = prompt(group, applied["CLIP"], unwanted, "Negative prompt")
    empty = group.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    group.column()
    latent = sample(group, applied["MODEL"], positive.out, negative.out, empty.out, **SAMPLING)
    picture = group.add("VAEDecode", samples=latent.out, vae=checkpoint["VAE"])
    group = draft.group(f"{number + 2}. The picture")
    group.add("SaveImage", images=picture.out, filename_prefix=f"nested_attention/{draft.name}")
    return draft


def sdxl_person(context: Context) -> Draft:
    note = _note(
        "**IP-Adapter Plus Face**, anchored to the word *person*: the photograph's person, in any prompt. "
        "*Align Face* cuts the face out of the photograph.",
        (PERSON,),
        "- Another word for the person? Type it into **word** as well, such as *woman*.\n",
    )
    draft = context.draft("sdxl_anchored_person", "A person on SDXL, with IP-Adapter's file", note)
    text = "a portrait photo of a person as an astronaut in a space station, soft light"
    return _on_sdxl(draft, (PERSON,), text)


def sdxl_pet(context: Context) -> Draft:
    note = _note(
        "**IP-Adapter Plus**, anchored to the word *dog*: it was trained on pictures of anything, pets "
        "included. *Isolate Subject* puts the animal on white; connect a mask to it where it is not sure.",
        (PET,),
        "- A cat, or a chair? Change the word in the prompt and in **word**.\n",
    )
    draft = context.draft("sdxl_anchored_pet", "A pet on SDXL, with IP-Adapter's file", note)
    return _on_sdxl(draft, (PET,), "a photo of a dog in a red raincoat on a beach at sunset")


def sdxl_person_and_pet(context: Context) -> Draft:
    note = _note(
        "Two adapters chained, each anchored to its word: a person and a dog in one picture, without a mask.",
        (PERSON, PET),
        "- Do they mix? Give each a mask (**region**), or set **region_mode** to `auto` on both.\n",
    )
    draft = context.draft(
        "sdxl_anchored_person_and_pet", "A person and a pet on SDXL, with IP-Adapter's files", note
    )
    return _on_sdxl(draft, (PERSON, PET), "a photo of a person sitting beside a dog in a park, autumn light")


def person_and_pet(context: Context) -> Draft:
    draft = context.draft(
        "avatar_anchored",
        "A person and a pet, with adapters that are added",
        "The same graph as with nested encoders, with **adapters trained as IP-Adapter's are**: what they "
        "say of a picture is added to the text's attention. **Apply Subject** tells them by their files and "
        "*anchors* them: each adds where its word is attended, so a person and a pet share a picture without "
        "a mask.\n\n"
        "- **injection** `everywhere` is what IP-Adapter does: watch the person take the pet's colours, and "
        "the background change.\n"
        "- **weight** is how much is added, 1 as the adapter was trained.\n"
        + on_sdxl("both references", f"{BROAD} and `batch_size` 1", steps=True, pet=True),
    )
    world, group = demo_world(draft, figures=2)
    group.add("PreviewImage", "The pet", images=world["pet"])
    applied = world
    for number, kind in enumerate(ADAPTERS, 2):
        group = draft.group(f"{number}. The {kind}")
        title = f"An adapter for a {kind}"
        encoder = group.add("NestedAttentionLoadEncoder", title, encoder_name=ADAPTERS[kind])
        subject = group.add(
            "NestedAttentionEncodeSubject",
            encoder=encoder["encoder"],
            clip_vision=world["CLIP_VISION"],
            image=world[kind],
        )
        group.column()
        applied = apply(group, applied["MODEL"], applied["CLIP"], encoder, subject)
    group = draft.group("4. Prompt and sampling")
    text = "a photo of a person on the left with a scarf and a pet on the right in the snow"
    positive = prompt(group, applied["CLIP"], text, "Prompt with person and pet")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", **TOGETHER, batch_size=4)
    group.column()
    latent = sample(group, applied["MODEL"], positive.out, negative.out, empty.out)
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("5. The picture")
    show(group, picture.out, world["scale"], "anchored")
    return draft
