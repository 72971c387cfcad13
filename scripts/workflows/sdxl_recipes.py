"""Drafts on SDXL: they need files that the user has to fetch, and say so."""

from __future__ import annotations

from draft import Draft
from parts import Context, apply, prompt, sample

HUB = "https://huggingface.co"
CHECKPOINT, VISION, ENCODER = FILES = (
    {
        "name": "sd_xl_base_1.0.safetensors",
        "url": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
        "directory": "checkpoints",
    },
    {
        "name": "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
        "url": f"{HUB}/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors",
        "directory": "clip_vision",
    },
    {
        "name": "nested_attention_person.safetensors",
        "url": f"{HUB}/orpatashnik/NestedAttentionEncoder/resolve/main/"
        "personalization_encoder/model.safetensors",
        "directory": "nested_attention",
    },
)
"""As the editor's list of missing models wants them."""

SAMPLING = {"steps": 30, "cfg": 5.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


def align_face(context: Context) -> Draft:
    draft = context.draft(
        "sdxl_align_face",
        "A person from any photograph, on SDXL",
        "**Align Face** finds the face in a photograph and cuts it out upright, as person encoders are "
        "trained with. Choose a photograph in *Load Image*; it need not be cropped.\n\n"
        "Three files, each in its folder of `ComfyUI/models`:\n\n"
        "| file | folder |\n|---|---|\n"
        f"| [sd_xl_base_1.0.safetensors]({HUB}/stabilityai/stable-diffusion-xl-base-1.0) | `checkpoints` |\n"
        f"| [CLIP ViT-H]({HUB}/h94/IP-Adapter/tree/main/models/image_encoder) as "
        f"`{VISION['name']}` | `clip_vision` |\n"
        f"| [the paper's person encoder]({HUB}/orpatashnik/NestedAttentionEncoder) as "
        f"`{ENCODER['name']}` | `nested_attention` |\n\n"
        "The encoder's licence is **CC BY-NC-SA 4.0**: not for commercial use. Its layout is recognised from "
        "what is publicly known and has not been checked against the released file. The face detector comes "
        "with the pack, for commercial use too.\n\n"
        "- Several faces? *All faces* shows them with their numbers. Set `which` to *by index* and `index` "
        "to the number, or take the leftmost, rightmost or most central one.\n"
        "- No face found? Crop closer, or lower `min_score` to 0.5.\n"
        "- Several photographs of one person: join them with **Batch Images** before Align Face.",
    )
    draft.models = list(FILES)
    group = draft.group("1. Models and a photograph")
    checkpoint = group.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    vision = group.add("CLIPVisionLoader", clip_name=VISION["name"])
    encoder = group.add("NestedAttentionLoadEncoder", encoder_name=ENCODER["name"])
    photograph = group.add("LoadImage", "A photograph of the person", image="example.png")
    group = draft.group("2. The face, upright")
    aligned = group.add("NestedAttentionAlignFace", image=photograph["IMAGE"])
    group.add("PreviewImage", "All faces, and the one taken", images=aligned["found"])
    group = draft.group("3. A word carries the subject")
    subject = group.add(
        "NestedAttentionEncodeSubject",
        encoder=encoder["encoder"],
        clip_vision=vision.out,
        image=aligned["face"],
    )
    applied = apply(group, checkpoint["MODEL"], checkpoint["CLIP"], encoder, subject)
    group = draft.group("4. Prompt and sampling")
    positive = prompt(
        group,
        applied["CLIP"],
        "a portrait photo of a person as an astronaut in a space station, soft light, shallow depth of field",
        "Prompt: the word person is the subject",
    )
    negative = prompt(
        group,
        applied["CLIP"],
        "bad anatomy, monochrome, lowres, worst quality, low quality",
        "Negative prompt",
    )
    empty = group.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    group.column()
    latent = sample(group, applied["MODEL"], positive, negative, empty.out, **SAMPLING)
    picture = group.add("VAEDecode", samples=latent.out, vae=checkpoint["VAE"])
    group = draft.group("5. The picture")
    group.add("SaveImage", images=picture.out, filename_prefix=f"nested_attention/{draft.name}")
    return draft
