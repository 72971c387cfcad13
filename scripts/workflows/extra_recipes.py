"""Drafts of a subject beside what steers the model itself: a ControlNet, a LoRA."""

from __future__ import annotations

from draft import Draft
from parts import Context, demo_world, draw, on_sdxl, personalize, prompt, sample, show


def pose(context: Context) -> Draft:
    draft = context.draft(
        "avatar_pose",
        "A subject in a pose",
        "The subject decides *who* is in the picture, and a **ControlNet** where they stand. Neither "
        "knows of the other: **Person or Pet in Picture** changes the model and the prompt's word, **Apply "
        "ControlNet** the conditioning.\n\n"
        "- **Demo Pose** draws the pose picture: change `x`, `y` and `gaze`. For a picture of two, connect a "
        "second one to `behind`, and set `figures` to 2 in both and in **Demo World**.\n"
        "- The prompt does not say where the person stands. Where prompt and pose disagree, `strength` and "
        "`end_percent` of Apply ControlNet say how far the pose goes.\n"
        "- `avatars_pose.safetensors` comes with the pack, for the small world.\n"
        + on_sdxl()
        + " An OpenPose ControlNet goes into Load ControlNet Model, a pose detector's picture in place of "
        "Demo Pose.",
    )
    world, group = demo_world(draft, "1. A world and a pose")
    posed = group.add("NestedAttentionDemoPose", x=21, y=8, gaze="left")
    group.add("PreviewImage", "The pose", images=posed.out)
    group = draft.group("2. The subject")
    applied = personalize(group, world["MODEL"], world["CLIP"], world["person"])
    group = draft.group("3. The prompt, held in the pose")
    text = "a photo of a person wearing a yellow raincoat at the beach"
    positive = prompt(group, applied["CLIP"], text, "Prompt with the word person")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    control = group.add("ControlNetLoader", control_net_name="avatars_pose.safetensors")
    held = group.add(
        "ControlNetApplyAdvanced",
        positive=positive.out,
        negative=negative.out,
        control_net=control.out,
        image=posed.out,
        vae=world["VAE"],
    )
    group.column()
    latent = sample(group, applied["MODEL"], held["positive"], held["negative"], world["latent"])
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("4. The picture")
    show(group, picture.out, world["scale"], "pose")
    return draft


def style_lora(context: Context) -> Draft:
    draft = context.draft(
        "avatar_style_lora",
        "A subject in the style of a LoRA",
        "A **LoRA** changes how the model draws, the subject who is drawn. **Load LoRA** stands before "
        "the subject's node here; after it would give the same picture.\n\n"
        "- `avatars_ink.safetensors` comes with the pack, for the small world: ink and wash on paper. It has "
        "no trigger word; `strength_model` says how much of it.\n"
        "- The encoder has never seen the style: what it says of the person is drawn as the model now "
        "draws.\n" + on_sdxl() + " Any SDXL LoRA goes into Load LoRA.",
    )
    world, group = demo_world(draft, "1. A world, in another style")
    styled = group.add(
        "LoraLoader", model=world["MODEL"], clip=world["CLIP"], lora_name="avatars_ink.safetensors"
    )
    group = draft.group("2. The subject")
    applied = personalize(group, styled["MODEL"], styled["CLIP"], world["person"])
    text = "a photo of a person in the middle wearing a green hoodie in a forest"
    draw(draft, world, applied, text)
    return draft
