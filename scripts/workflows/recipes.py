"""The workflows that come with the pack, as drafts: `python scripts/workflows draft NAME` writes the file."""

from __future__ import annotations

from collections.abc import Callable

import anchored_recipes
import sdxl_recipes
import start_recipes
from draft import HEADER, Draft
from extra_recipes import pose, style_lora
from formats import Graph
from inspect_recipes import inspect
from parts import (
    ALONE,
    BROAD,
    HALF,
    SQUARE,
    TOGETHER,
    Context,
    apply,
    demo_world,
    draw,
    encode,
    on_sdxl,
    personalize,
    prompt,
    sample,
    show,
)
from subgraph import into_subgraph
from subject_recipes import load_subject, mixing, pet_isolated, saved_subject, two_people


def img2img(context: Context) -> Draft:
    draft = context.draft(
        "avatar_img2img",
        "Another style, the same picture and the same person",
        "The first sampler draws a photo; the second starts from it (its latent, `denoise` below 1) with a "
        "prompt for another style. The subject is attached to the word in both prompts, so it stays the "
        "same person.\n\n- `denoise` of the second sampler: lower keeps more of the first picture, higher "
        "takes more of the style.\n- For a picture of your own, put **Load Image** and **VAE Encode** in "
        "place of the first sampler.\n"
        "- Styles of the small world: `photo`, `cartoon`, `mosaic`.\n" + on_sdxl(size=SQUARE),
    )
    world, group = demo_world(draft)
    group.column()
    applied = personalize(group, world["MODEL"], world["CLIP"], world["person"])
    group = draft.group("2. A picture, and another style")
    where = "of a person in the middle wearing a yellow raincoat in the desert"
    first = prompt(group, applied["CLIP"], f"a photo {where}", "The picture")
    second = prompt(group, applied["CLIP"], f"a mosaic {where}", "The style wanted")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", **ALONE, batch_size=1)
    group.column()
    photo = sample(group, applied["MODEL"], first.out, negative.out, empty.out, "Draw the photo")
    restyled = sample(
        group, applied["MODEL"], second.out, negative.out, photo.out, "Draw over it", denoise=0.7
    )
    group.column()
    before = group.add("VAEDecode", "The photo", samples=photo.out, vae=world["VAE"])
    after = group.add("VAEDecode", "The mosaic", samples=restyled.out, vae=world["VAE"])
    both = group.add("ImageBatch", "Before and after", image1=before.out, image2=after.out)
    group = draft.group("3. The pictures")
    show(group, both.out, world["scale"], "img2img")
    return draft


def inpaint(context: Context) -> Draft:
    draft = context.draft(
        "avatar_inpaint",
        "A person put into a picture that exists",
        "The first sampler draws some person and a pet in a forest, without any subject. The second draws "
        "only inside the mask (**Set Latent Noise Mask**), with the subject attached: the person of the "
        "reference appears there, and the rest stays as it is.\n\n"
        "- The mask is the left half of the picture; draw one of your own in the mask editor of Load "
        "Image.\n- The prompt of the second pass describes the whole picture, so that what is drawn fits "
        "in.\n- For a picture of your own, put **Load Image** and **VAE Encode** in place of the first "
        "sampler.\n" + on_sdxl(size=BROAD) + " The mask is stretched to the picture.",
    )
    world, group = demo_world(draft, figures=2)
    nowhere = group.add("SolidMask", "Nowhere", value=0.0, **TOGETHER)
    left = group.add("SolidMask", "As large as the left half", value=1.0, **HALF)
    group.column()
    applied = personalize(group, world["MODEL"], world["CLIP"], world["person"])
    group = draft.group("2. The picture there is, and the person in it")
    beside = "and a pet on the right in a forest"
    text = f"a photo of a person on the left {beside}"
    plain = prompt(group, world["CLIP"], text, "The picture there is")
    text = f"a photo of a person on the left smiling with a scarf {beside}"
    positive = prompt(group, applied["CLIP"], text, "Prompt with the word person")
    negative = prompt(group, world["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", **TOGETHER, batch_size=1)
    mask = group.add(
        "MaskComposite", "The left half", destination=nowhere.out, source=left.out, x=0, y=0, operation="add"
    )
    group.column()
    there = sample(group, world["MODEL"], plain.out, negative.out, empty.out, "Draw the picture")
    masked = group.add("SetLatentNoiseMask", samples=there.out, mask=mask.out)
    drawn = sample(
        group, applied["MODEL"], positive.out, negative.out, masked.out, "Draw inside the mask", seed=1
    )
    group.column()
    before = group.add("VAEDecode", "Before", samples=there.out, vae=world["VAE"])
    after = group.add("VAEDecode", "After", samples=drawn.out, vae=world["VAE"])
    both = group.add("ImageBatch", "Before and after", image1=before.out, image2=after.out)
    group = draft.group("3. The pictures")
    show(group, both.out, world["scale"], "inpaint")
    return draft


def grid(context: Context) -> Draft:
    draft = context.draft(
        "avatar_grid",
        "Many pictures of one person on a sheet",
        "**Subject Sheet** draws every prompt with every value of λ (`attention_scale`) and every seed, from "
        "the same noise in each row, and puts all on one labelled sheet. The first column is without the "
        "person; then λ is 1, 2 and 3: more identity, less prompt.\n\n"
        "- It stands in place of Apply Subject, the text encoders, the sampler and VAE Decode.\n"
        "- The subject is encoded once, and its keys and values are computed once: λ costs nothing new.\n"
        "- More people or LoRAs: chain Apply Subject and Load LoRA before it.\n"
        + on_sdxl(steps=True)
        + " Set width and height of Subject Sheet to 1024.",
    )
    world, _ = demo_world(draft)
    group = draft.group("2. The person")
    encoder, subject = encode(group, world, world["person"])
    group = draft.group("3. The sheet")
    drawn = group.add(
        "NestedAttentionSheet",
        model=world["MODEL"],
        clip=world["CLIP"],
        vae=world["VAE"],
        encoder=encoder["encoder"],
        subject=subject.out,
        prompts=(
            "a photo of a person in the middle wearing a yellow raincoat with headphones at the beach\n"
            "a cartoon of a person in the middle surprised wearing a red shirt in the snow"
        ),
        attention_scales="1, 2, 3",
        seeds="0, 1",
        cfg=5.0,
        scheduler="normal",
        **ALONE,
        reference=world["person"],
    )
    group = draft.group("4. The picture")
    group.add("SaveImage", images=drawn["sheet"], filename_prefix="nested_attention/grid")
    return draft


SUBGRAPH_GROUP = "2. The person, in a subgraph"


def subgraph(context: Context) -> Draft:
    draft = context.draft(
        "avatar_subgraph",
        "The subject's nodes as one",
        "**Personalise** is a subgraph: MODEL, CLIP, CLIP_VISION and a picture go in, MODEL and CLIP come "
        "out, and the word, λ and the encoder are on it. The icon in its title bar opens it and shows the "
        "three nodes "
        "inside; copy it to use it again, for a second subject.\n\n" + on_sdxl(steps=True),
    )
    world, _ = demo_world(draft)
    group = draft.group(SUBGRAPH_GROUP)
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    draw(draft, world, applied, "a photo of a person in the middle with a scarf in space", 3)
    return draft


RECIPES: dict[str, Callable[[Context], Draft]] = {
    "avatar_start": start_recipes.start,
    "avatar_start_two": start_recipes.start_two,
    "avatar_several_pictures": start_recipes.several_pictures,
    "avatar_variation": start_recipes.variation,
    "avatar_person": start_recipes.step_by_step,
    "avatar_person_and_pet": start_recipes.step_by_step_two,
    "avatar_img2img": img2img,
    "avatar_inpaint": inpaint,
    "avatar_subgraph": subgraph,
    "avatar_mixing": mixing,
    "avatar_saved_subject": saved_subject,
    "avatar_load_subject": load_subject,
    "avatar_two_people": two_people,
    "avatar_pet_isolated": pet_isolated,
    "avatar_pose": pose,
    "avatar_style_lora": style_lora,
    "avatar_grid": grid,
    "avatar_anchored": anchored_recipes.person_and_pet,
    "avatar_inspect": inspect,
    "sdxl_start": sdxl_recipes.start,
    "sdxl_person": sdxl_recipes.step_by_step,
    "sdxl_align_face": sdxl_recipes.align_face,
    "sdxl_small_face": sdxl_recipes.small_face,
    "sdxl_hires_fix": sdxl_recipes.hires_fix,
    "sdxl_anchored_person": anchored_recipes.sdxl_person,
    "sdxl_anchored_pet": anchored_recipes.sdxl_pet,
    "sdxl_anchored_person_and_pet": anchored_recipes.sdxl_person_and_pet,
}


EXPOSED = (
    ("NestedAttentionLoadEncoder", "encoder_name"),
    ("NestedAttentionApplySubject", "attention_scale"),
)
"""Widgets that stand on the subgraph too."""


def draw_up(name: str, context: Context) -> Graph:
    """The editor's file of a recipe."""
    editor = RECIPES[name](context).editor()
    if name != "avatar_subgraph":
        return editor
    inside = {
        node["id"]
        for node in editor["nodes"]
        if node["type"].startswith("NestedAttention") and node["type"] != "NestedAttentionDemoWorld"
    }
    place = next(node["pos"] for node in editor["nodes"] if node["type"] == "NestedAttentionLoadEncoder")
    graph = into_subgraph(editor, "Personalise", inside, name, place, EXPOSED)
    frame = next(group["bounding"] for group in graph["groups"] if group["title"] == SUBGRAPH_GROUP)
    frame[3] = (
        HEADER + next(node["size"][1] for node in graph["nodes"] if node.get("title") == "Personalise") + 120
    )
    return graph
