"""Drafts of a subject beside what steers the model itself: a ControlNet, a LoRA."""

from __future__ import annotations

from draft import Draft
from parts import SAMPLING, Context, apply, draw, encode, on_sdxl, prompt, show

SOMEBODY = 7


def pose(context: Context) -> Draft:
    draft = context.draft(
        "avatar_pose",
        "A subject in a pose",
        "The subject decides *who* is in the picture, and a **ControlNet** where they stand. Neither "
        "knows of the other: **Apply Subject** changes the model and the prompt's word, **Apply ControlNet** "
        "the conditioning.\n\n"
        "- **Demo Pose** draws the pose picture: change `x`, `y` and `gaze`. A second one in `behind` makes "
        "a picture of two.\n"
        "- The prompt does not say where the person stands. Where prompt and pose disagree, `strength` and "
        "`end_percent` of Apply ControlNet say how far the pose goes.\n"
        "- `avatars_pose.safetensors` comes with the pack, for the small world.\n"
        + on_sdxl(
            more="An OpenPose ControlNet goes into Load ControlNet Model, a pose detector's picture in place "
            "of Demo Pose. "
        ),
    )
    group = draft.group("1. A world and a reference")
    world = group.add("NestedAttentionDemoWorld", person=SOMEBODY)
    group.add("PreviewImage", "The reference", images=world["person"])
    group = draft.group("2. The subject")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    group = draft.group("3. A pose")
    posed = group.add("NestedAttentionDemoPose", x=22, y=8, gaze="left")
    group.add("PreviewImage", "The pose", images=posed.out)
    draft.row()
    group = draft.group("4. The prompt, held in the pose")
    text = "a photo of a person wearing a yellow raincoat at the beach"
    positive = prompt(group, applied["CLIP"], text, "Prompt: the word person is the subject")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    group.column()
    control = group.add("ControlNetLoader", control_net_name="avatars_pose.safetensors")
    held = group.add(
        "ControlNetApplyAdvanced",
        positive=positive.out,
        negative=negative.out,
        control_net=control.out,
        image=posed.out,
        vae=world["VAE"],
    )
    group = draft.group("5. Sampling")
    empty = group.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    latent = group.add(
        "KSampler",
        model=applied["MODEL"],
        positive=held["positive"],
        negative=held["negative"],
        latent_image=empty.out,
        **SAMPLING,
    )
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("6. The picture")
    show(group, picture.out, "pose")
    return draft


def style_lora(context: Context) -> Draft:
    draft = context.draft(
        "avatar_style_lora",
        "A subject in the style of a LoRA",
        "A **LoRA** changes how the model draws, the subject who is drawn. **Load LoRA** stands before "
        "**Apply Subject** here; after it would give the same picture.\n\n"
        "- `avatars_ink.safetensors` comes with the pack, for the small world: ink and wash on paper. It has "
        "no trigger word; `strength_model` says how much of it.\n"
        "- The encoder has never seen the style: what it says of the person is drawn as the model now "
        "draws.\n" + on_sdxl(more="Any SDXL LoRA goes into Load LoRA. "),
    )
    group = draft.group("1. A world and a reference")
    world = group.add("NestedAttentionDemoWorld", person=SOMEBODY)
    group.add("PreviewImage", "The reference", images=world["person"])
    group = draft.group("2. Another style")
    styled = group.add(
        "LoraLoader", model=world["MODEL"], clip=world["CLIP"], lora_name="avatars_ink.safetensors"
    )
    group = draft.group("3. The subject")
    encoder, subject = encode(group, world, world["person"])
    applied = apply(group, styled["MODEL"], styled["CLIP"], encoder, subject)
    text = "a photo of a person in the middle wearing a green hoodie in a forest"
    draw(draft, world, applied, text, 4)
    return draft
