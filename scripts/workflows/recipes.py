"""The workflows that come with the pack, as drafts: `python scripts/workflows draft NAME` writes the file."""

from __future__ import annotations

from collections.abc import Callable

import anchored_recipes
from draft import Draft, into_subgraph
from extra_recipes import pose, style_lora
from formats import Graph
from inspect_recipes import inspect
from parts import Context, apply, demo_world, draw, encode, on_sdxl, prompt, sample, show
from sdxl_recipes import align_face
from subject_recipes import load_subject, mixing, pet_isolated, saved_subject, two_people


def several_pictures(context: Context) -> Draft:
    draft = context.draft(
        "avatar_several_pictures",
        "Several pictures of one subject",
        "**Encode Subject** takes a batch: every picture in it is of the same subject, and all count "
        "equally. "
        "Here it is the reference, its mirror image and a closer crop, joined by **Batch Images**.\n\n"
        "- With photographs of your own, put **Load Image** in place of the reference and batch as many "
        "as you "
        "have: other light, other angles, other expressions.\n"
        "- More pictures cost memory and a little time for each, and nothing in the prompt.\n"
        "- Pictures of *different* people in one batch make a mixture of them.\n"
        + on_sdxl("the reference, its mirror image and the crop"),
    )
    world, group = demo_world(draft)
    group = draft.group("2. More pictures of the same person")
    mirror = group.add("ImageFlip", "Mirrored", image=world["person"], flip_method="y-axis: horizontally")
    crop = group.add("ImageCrop", "Closer", image=world["person"], width=64, height=64, x=8, y=8)
    back = group.add(
        "ImageScale",
        "Back to the size of the others",
        image=crop.out,
        upscale_method="nearest-exact",
        width=80,
        height=80,
        crop="disabled",
    )
    group.column()
    two = group.add("ImageBatch", image1=world["person"], image2=mirror.out)
    three = group.add("ImageBatch", image1=two.out, image2=back.out)
    group.add("PreviewImage", "All three", images=three.out)
    group = draft.group("3. One subject of all of them")
    encoder, subject = encode(group, world, three.out)
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    draw(draft, world, applied, "a photo of a person in the middle wearing a yellow raincoat in the snow", 4)
    return draft


def img2img(context: Context) -> Draft:
    draft = context.draft(
        "avatar_img2img",
        "Another style, the same picture and the same person",
        "The first sampler draws a photo; the second starts from it (**VAE Encode**, `denoise` below 1) "
        "with a "
        "prompt for another style. The subject is attached to the word in both prompts, so it stays the same "
        "person.\n\n"
        "- `denoise` of the second sampler: lower keeps more of the first picture, higher takes more of the "
        "style.\n"
        "- For a picture of your own, put **Load Image** in place of the first sampler.\n"
        "- Styles of the small world: `photo`, `cartoon`, `mosaic`.\n" + on_sdxl(),
    )
    world, _ = demo_world(draft)
    group = draft.group("2. The person")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    group = draft.group("3. A picture to start from")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    first = prompt(
        group,
        applied["CLIP"],
        "a photo of a person in the middle wearing a yellow raincoat in the desert",
        "Photo",
    )
    empty = group.add("EmptyLatentImage", width=128, height=128, batch_size=2)
    group.column()
    photo = sample(group, applied["MODEL"], first, negative, empty.out, "Draw the photo")
    photo = group.add("VAEDecode", samples=photo.out, vae=world["VAE"])
    group.add("PreviewImage", "The photo", images=photo.out)
    group = draft.group("4. Another style")
    second = prompt(
        group,
        applied["CLIP"],
        "a mosaic of a person in the middle wearing a yellow raincoat in the desert",
        "The style wanted",
    )
    latent = group.add("VAEEncode", pixels=photo.out, vae=world["VAE"])
    restyled = sample(group, applied["MODEL"], second, negative, latent.out, "Draw over it", denoise=0.7)
    picture = group.add("VAEDecode", samples=restyled.out, vae=world["VAE"])
    group = draft.group("5. The picture")
    show(group, picture.out, "img2img")
    return draft


def inpaint(context: Context) -> Draft:
    draft = context.draft(
        "avatar_inpaint",
        "A person put into a picture that exists",
        "The first sampler draws a pet in a forest, without any subject. The second draws only inside the "
        "mask "
        "(**Set Latent Noise Mask**), with the subject attached, and leaves the rest as it is.\n\n"
        "- The mask is the left half of the picture; draw one of your own with **Load Image (as Mask)** "
        "or the "
        "mask editor.\n"
        "- The prompt of the second pass describes the whole picture, so that what is drawn fits in.\n"
        "- For a picture of your own, put **Load Image** in place of the first sampler.\n"
        + on_sdxl(more="The mask may stay. "),
    )
    world, _ = demo_world(draft)
    group = draft.group("2. The person")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    group = draft.group("3. A picture without the person")
    plain = prompt(group, world["CLIP"], "a photo of a pet on the right in a forest", "The picture there is")
    negative = prompt(group, world["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", width=128, height=128, batch_size=2)
    group.column()
    drawn = sample(group, world["MODEL"], plain, negative, empty.out, "Draw it")
    drawn = group.add("VAEDecode", samples=drawn.out, vae=world["VAE"])
    group.add("PreviewImage", "The picture there is", images=drawn.out)
    draft.row()
    group = draft.group("4. Where the person goes")
    everywhere = group.add("SolidMask", "Nowhere", value=0.0, width=128, height=128)
    left = group.add("SolidMask", "As large as the left half", value=1.0, width=64, height=128)
    group.column()
    mask = group.add(
        "MaskComposite",
        "The left half",
        destination=everywhere.out,
        source=left.out,
        x=0,
        y=0,
        operation="add",
    )
    group.add("MaskPreview", mask=mask.out)
    group = draft.group("5. Draw the person there")
    positive = prompt(
        group,
        applied["CLIP"],
        "a photo of a person on the left wearing a red scarf and a pet on the right in a forest",
        "Prompt: the word person is the subject",
    )
    latent = group.add("VAEEncode", pixels=drawn.out, vae=world["VAE"])
    masked = group.add("SetLatentNoiseMask", samples=latent.out, mask=mask.out)
    group.column()
    drawn = sample(group, applied["MODEL"], positive, negative, masked.out, "Draw inside the mask", seed=1)
    picture = group.add("VAEDecode", samples=drawn.out, vae=world["VAE"])
    group = draft.group("6. The picture")
    show(group, picture.out, "inpaint")
    return draft


def hires_fix(context: Context) -> Draft:
    draft = context.draft(
        "avatar_hires_fix",
        "Larger, in two passes",
        "The first pass fixes the composition at the size the model knows; the latent is then enlarged "
        "(**Upscale Latent By**) and sampled again with `denoise` below 1. The same MODEL and prompts "
        "serve both "
        "passes, and so the same subject does.\n\n"
        "- If a later pass is meant to go without the subject, give it a prompt without the word and the "
        "MODEL "
        "from before **Apply Subject**.\n"
        "- The small world knows pixels of one size and draws a face into a face when the second pass is "
        "free to: `denoise` is low here. On SDXL 0.5 is usual.\n" + on_sdxl(),
    )
    world, _ = demo_world(draft)
    group = draft.group("2. The person")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    group = draft.group("3. First pass")
    positive = prompt(
        group,
        applied["CLIP"],
        "a photo of a person in the middle wearing a red scarf at the beach",
        "Prompt: the word person is the subject",
    )
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", width=128, height=128, batch_size=2)
    group.column()
    first = sample(group, applied["MODEL"], positive, negative, empty.out, "Small")
    group = draft.group("4. Second pass")
    larger = group.add("LatentUpscaleBy", samples=first.out, upscale_method="nearest-exact", scale_by=1.5)
    second = sample(group, applied["MODEL"], positive, negative, larger.out, "Large", denoise=0.2)
    picture = group.add("VAEDecode", samples=second.out, vae=world["VAE"])
    group = draft.group("5. The picture")
    show(group, picture.out, "hires_fix")
    return draft


def variation(context: Context) -> Draft:
    draft = context.draft(
        "avatar_variation",
        "The same person as another word",
        "**Apply Subject** has a `name` here, *alice*. In the prompt, `<alice>` stands for the person, and "
        "`<alice:child>` attaches the same person to the word **child**: the text says what kind of "
        "person it "
        "is, the reference says who.\n\n"
        "- Change the word after the colon: `<alice:woman>`, `<alice:boy>`, `<alice:girl>`.\n"
        "- The upper picture says `<alice>`, the lower one `<alice:child>`; noise and all settings are "
        "the same.\n" + on_sdxl(),
    )
    world, _ = demo_world(draft)
    group = draft.group("2. The person, called alice")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject, name="alice")
    group = draft.group("3. Two prompts")
    texts = [
        prompt(group, applied["CLIP"], f"a photo of a {who} in the middle in a forest", title)
        for who, title in (("<alice>", "As the encoder knows people"), ("<alice:child>", "As a child"))
    ]
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    group = draft.group("4. The same noise for both")
    pictures = []
    for text in texts:
        drawn = sample(group, applied["MODEL"], text, negative, empty.out)
        pictures.append(group.add("VAEDecode", samples=drawn.out, vae=world["VAE"]).out)
    group = draft.group("5. The pictures")
    both = group.add("ImageBatch", image1=pictures[0], image2=pictures[1])
    show(group, both.out, "variation")
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
        + on_sdxl(more="Set width and height of Subject Sheet to 1024. "),
    )
    world, group = demo_world(draft)
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
            "a cartoon of a person in the middle wearing a red shirt in the snow"
        ),
        attention_scales="1, 2, 3",
        seeds="0, 1",
        cfg=3.0,
        scheduler="normal",
        width=128,
        height=128,
        reference=world["person"],
    )
    group = draft.group("4. The picture")
    group.add("SaveImage", images=drawn["sheet"], filename_prefix="nested_attention/grid")
    return draft


def subgraph(context: Context) -> Draft:
    draft = context.draft(
        "avatar_subgraph",
        "The subject's nodes as one",
        "**Personalise** is a subgraph: MODEL, CLIP, CLIP_VISION and a picture go in, MODEL and "
        "CLIP come out. "
        "The icon in its title bar opens it and shows the three nodes inside; copy it to use it again, for a "
        "second subject.\n\n" + on_sdxl(),
    )
    world, _ = demo_world(draft)
    group = draft.group("2. The person, in a subgraph")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    draw(draft, world, applied, "a photo of a person in the middle wearing a red scarf in space", 4, number=3)
    return draft


RECIPES: dict[str, Callable[[Context], Draft]] = {
    "avatar_several_pictures": several_pictures,
    "avatar_img2img": img2img,
    "avatar_inpaint": inpaint,
    "avatar_hires_fix": hires_fix,
    "avatar_variation": variation,
    "avatar_grid": grid,
    "avatar_subgraph": subgraph,
    "avatar_mixing": mixing,
    "avatar_saved_subject": saved_subject,
    "avatar_load_subject": load_subject,
    "avatar_two_people": two_people,
    "avatar_pet_isolated": pet_isolated,
    "avatar_pose": pose,
    "avatar_style_lora": style_lora,
    "avatar_anchored": anchored_recipes.person_and_pet,
    "avatar_inspect": inspect,
    "sdxl_align_face": align_face,
    "sdxl_anchored_person": anchored_recipes.sdxl_person,
    "sdxl_anchored_pet": anchored_recipes.sdxl_pet,
    "sdxl_anchored_person_and_pet": anchored_recipes.sdxl_person_and_pet,
}


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
    return into_subgraph(editor, "Personalise", inside, name, place)
