"""Drafts on SDXL: they need files that the user has to fetch, and say so."""

from __future__ import annotations

from draft import Draft, Group, Node
from parts import Context, apply, personalize, prompt, sample

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
NEGATIVE = "bad anatomy, monochrome, lowres, worst quality, low quality"
LICENCE = (
    "The encoder's licence is **CC BY-NC-SA 4.0**: not for commercial use. Its layout is recognised from "
    "what is publicly known and has not been checked against the released file."
)


def files_table(*, preset: bool = False) -> str:
    """The files of a note, with where they are from and where they go. preset: whether the workflow has
    Person or Pet in Picture, which takes IP-Adapter's files too."""
    other = (
        " Or, for commercial use too, take `ip-adapter-plus-face_sdxl_vit-h.safetensors` of "
        f"[IP-Adapter]({HUB}/h94/IP-Adapter/tree/main/sdxl_models) in place of the last file."
    )
    return (
        "Three files, each in its folder of `ComfyUI/models`:\n\n"
        "| file | folder |\n|---|---|\n"
        f"| [sd_xl_base_1.0.safetensors]({HUB}/stabilityai/stable-diffusion-xl-base-1.0) | `checkpoints` |\n"
        f"| `model.safetensors` of [CLIP ViT-H]({HUB}/h94/IP-Adapter/tree/main/models/image_encoder) as "
        f"`{VISION['name']}` | `clip_vision` |\n"
        "| `personalization_encoder/model.safetensors` of "
        f"[the paper's person encoder]({HUB}/orpatashnik/NestedAttentionEncoder) as "
        f"`{ENCODER['name']}` | `nested_attention` |\n\n{LICENCE}{other if preset else ''}\n"
    )


def models() -> tuple[dict[str, str], ...]:
    return FILES


def _sampled(draft: Draft, checkpoint: Node, applied: Node, text: str, number: int) -> None:
    """Prompt, sampling and picture at SDXL's size."""
    group = draft.group(f"{number}. Prompt and sampling")
    positive = prompt(group, applied["CLIP"], text, "Prompt with the word person")
    negative = prompt(group, applied["CLIP"], NEGATIVE, "Negative prompt")
    empty = group.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    group.column()
    latent = sample(group, applied["MODEL"], positive.out, negative.out, empty.out, **SAMPLING)
    picture = group.add("VAEDecode", samples=latent.out, vae=checkpoint["VAE"])
    group = draft.group(f"{number + 1}. The picture")
    group.add("SaveImage", images=picture.out, filename_prefix=f"nested_attention/{draft.name}")


def _one_photograph(draft: Draft) -> tuple[Node, Node]:
    """The first group: SDXL's checkpoint, and Person or Pet in Picture with a photograph."""
    draft.models = list(FILES)
    group = draft.group("1. A checkpoint and a photograph")
    checkpoint = group.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    photograph = group.add("LoadImage", "A photograph", image="example.png")
    group.column()
    applied = personalize(group, checkpoint["MODEL"], checkpoint["CLIP"], photograph["IMAGE"])
    return checkpoint, applied


def start(context: Context) -> Draft:
    draft = context.draft(
        "sdxl_start",
        "Your photo, on SDXL",
        "Choose a photograph in *Load Image*; the face is found in it, and it need not be cropped. The word "
        "**person** in the prompt is the person.\n\n" + files_table(preset=True) + "\n"
        "- Several photographs of one person: connect them to `image_2` and so on.\n"
        "- A pet: no encoder for pets has been published for SDXL. Put "
        f"[ip-adapter-plus_sdxl_vit-h.safetensors]({HUB}/h94/IP-Adapter/tree/main/sdxl_models) into "
        "`nested_attention`, set `preset` to *pet*, and write *pet* in the prompt in place of *person*.",
    )
    checkpoint, applied = _one_photograph(draft)
    text = "a portrait photo of a person as an astronaut in a space station, soft light"
    _sampled(draft, checkpoint, applied, text, 2)
    return draft


def _loaders(draft: Draft, title: str, picture: str) -> tuple[Group, Node, Node, Node, Node]:
    draft.models = list(FILES)
    group = draft.group(title)
    checkpoint = group.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    vision = group.add("CLIPVisionLoader", clip_name=VISION["name"])
    encoder = group.add("NestedAttentionLoadEncoder", encoder_name=ENCODER["name"])
    photograph = group.add("LoadImage", picture, image="example.png")
    return group, checkpoint, vision, encoder, photograph


def step_by_step(context: Context) -> Draft:
    draft = context.draft(
        "sdxl_person",
        "A person, on SDXL, step by step",
        files_table()
        + "\nChoose a portrait cropped to the face, or set `prepare` of Encode Subject to *auto*, and "
        "let the word **person** stand in the prompt. `attention_scale` 1.5 to 3 for more likeness.",
    )
    _, checkpoint, vision, encoder, photograph = _loaders(
        draft, "1. Models and a reference", "A portrait, cropped to the face"
    )
    group = draft.group("2. A word carries the subject")
    subject = group.add(
        "NestedAttentionEncodeSubject",
        encoder=encoder["encoder"],
        clip_vision=vision.out,
        image=photograph["IMAGE"],
    )
    applied = apply(group, checkpoint["MODEL"], checkpoint["CLIP"], encoder, subject)
    text = "a portrait photo of a person as a chef in a busy kitchen, warm light, shallow depth of field"
    _sampled(draft, checkpoint, applied, text, 3)
    return draft


def align_face(context: Context) -> Draft:
    draft = context.draft(
        "sdxl_align_face",
        "A face chosen by hand, on SDXL",
        "**Align Face** finds the faces in a photograph and cuts one out upright, as person encoders are "
        "trained "
        "with. Use it where the largest face is not the one you mean.\n\n" + files_table() + "\n"
        "- *All faces* shows them with their numbers. Set `which` to *by index* and `index` to the number, "
        "or take the leftmost, rightmost or most central one.\n- No face found? Crop closer, or lower "
        "`min_score` to 0.5.\n- Several photographs of one person: join them with **Batch Images** before "
        "Align Face.",
    )
    _, checkpoint, vision, encoder, photograph = _loaders(
        draft, "1. Models and a photograph", "A photograph of the person"
    )
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
    text = (
        "a portrait photo of a person as an astronaut in a space station, soft light, shallow depth of field"
    )
    _sampled(draft, checkpoint, applied, text, 4)
    return draft


def small_face(context: Context) -> Draft:
    draft = context.draft(
        "sdxl_small_face",
        "A face that was too small",
        "In a wide shot a face has too few pixels to look like anybody. **Align Face** finds it in the "
        "picture, and its `x`, `y` and `side` say where; that square is cut out, enlarged to 1024 pixels, "
        "sampled again "
        "with the subject (`denoise` below 1), and laid back with a soft edge.\n\n"
        + files_table(preset=True)
        + "\n"
        "- Put the picture that has the small face into *The picture*, and a photograph of the person into "
        "*The person*.\n- `denoise` of the sampler: 0.3 keeps more of what is there, 0.6 gives more of the "
        "person.\n- The soft edge is 24 pixels wide: set `left`, `top`, `right` and `bottom` of Feather Mask "
        "to about a sixteenth of `side`.\n- The small world draws faces that no detector for photographs "
        "finds; this is for SDXL.",
    )
    draft.models = list(FILES)
    group = draft.group("1. Checkpoint, picture, person")
    checkpoint = group.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT["name"])
    wide = group.add("LoadImage", "The picture", image="example.png")
    portrait = group.add("LoadImage", "The person", image="example.png")
    group = draft.group("2. The subject, and the face")
    applied = personalize(group, checkpoint["MODEL"], checkpoint["CLIP"], portrait["IMAGE"])
    face = group.add("NestedAttentionAlignFace", "Where the face is", image=wide["IMAGE"])
    group = draft.group("3. It is cut out and sampled again")
    square = {name: face[name] for name in ("x", "y")}
    crop = group.add(
        "ImageCrop",
        "The square around it",
        image=wide["IMAGE"],
        width=face["side"],
        height=face["side"],
        **square,
    )
    large = group.add(
        "ImageScale", "To SDXL's size", image=crop.out, upscale_method="lanczos", width=1024, height=1024,
        crop="disabled",
    )  # fmt: skip
    text = "a close-up photo of a person, natural light, detailed skin"
    positive = prompt(group, applied["CLIP"], text, "Prompt with the word person")
    negative = prompt(group, applied["CLIP"], NEGATIVE, "Negative prompt")
    latent = group.add("VAEEncode", pixels=large.out, vae=checkpoint["VAE"])
    group.column()
    drawn = sample(
        group, applied["MODEL"], positive.out, negative.out, latent.out, **{**SAMPLING, "denoise": 0.45}
    )
    picture = group.add("VAEDecode", samples=drawn.out, vae=checkpoint["VAE"])
    back = group.add(
        "ImageScale", "To the square's size", image=picture.out, upscale_method="lanczos", width=face["side"],
        height=face["side"], crop="disabled",
    )  # fmt: skip
    square_mask = group.add("SolidMask", "The square", value=1.0, width=face["side"], height=face["side"])
    soft = group.add("FeatherMask", "A soft edge", mask=square_mask.out, left=24, top=24, right=24, bottom=24)
    group = draft.group("4. Laid back")
    whole = group.add(
        "ImageCompositeMasked", destination=wide["IMAGE"], source=back.out, mask=soft.out,
        resize_source=False, **square,
    )  # fmt: skip
    group.add("SaveImage", images=whole.out, filename_prefix="nested_attention/small_face")
    return draft


def hires_fix(context: Context) -> Draft:
    draft = context.draft(
        "sdxl_hires_fix",
        "Larger, in two passes",
        "The first pass fixes the composition at the size the model knows; the latent is then enlarged "
        "(**Upscale Latent By**) and sampled again with `denoise` below 1. The same MODEL and prompts serve "
        "both passes, and "
        "so the same subject does.\n\n" + files_table(preset=True) + "\n"
        "- If a later pass is meant to go without the subject, give it a prompt without the word and the "
        "MODEL from before the subject's node.\n- The small world knows no larger pictures, so this is for "
        "SDXL.",
    )
    checkpoint, applied = _one_photograph(draft)
    group = draft.group("2. A first pass, and a second")
    text = "a photo of a person on a mountain path at sunrise, soft light"
    positive = prompt(group, applied["CLIP"], text, "Prompt with the word person")
    negative = prompt(group, applied["CLIP"], NEGATIVE, "Negative prompt")
    empty = group.add("EmptyLatentImage", width=1024, height=1024, batch_size=1)
    group.column()
    first = sample(group, applied["MODEL"], positive.out, negative.out, empty.out, "Small", **SAMPLING)
    larger = group.add("LatentUpscaleBy", samples=first.out, upscale_method="bislerp", scale_by=1.5)
    group.column()
    second = sample(
        group,
        applied["MODEL"],
        positive.out,
        negative.out,
        larger.out,
        "Large",
        **{**SAMPLING, "denoise": 0.5},
    )
    picture = group.add("VAEDecode", samples=second.out, vae=checkpoint["VAE"])
    group = draft.group("3. The picture")
    group.add("SaveImage", images=picture.out, filename_prefix="nested_attention/sdxl_hires_fix")
    return draft
