"""Drafts of what can be done with subjects: mixed, kept, placed, cut out of their pictures."""

from __future__ import annotations

from draft import Draft, Group, Node, Slot
from parts import PERSON, PET, SAVED, Context, apply, draw, encode, on_sdxl, prompt, sample, show

SOMEBODY, SOMEBODY_ELSE = 7, 10
"""Two people of the small world who are easily told apart."""


def _two_people(draft: Draft) -> tuple[Node, Slot, Slot]:
    """The small world, and the pictures of two people from it."""
    group = draft.group("1. A world and two people")
    world = group.add("NestedAttentionDemoWorld", person=SOMEBODY)
    group.add("PreviewImage", "Somebody", images=world["person"])
    group.column()
    another = group.add("NestedAttentionDemoWorld", "Demo World, for its person alone", person=SOMEBODY_ELSE)
    group.add("PreviewImage", "Somebody else", images=another["person"])
    return world, world["person"], another["person"]


def _encode_another(group: Group, world: Node, encoder: Node, picture: Slot) -> Node:
    """A second subject of the same encoder."""
    vision = world["CLIP_VISION"]
    return group.add(
        "NestedAttentionEncodeSubject", encoder=encoder["encoder"], clip_vision=vision, image=picture
    )


def mixing(context: Context) -> Draft:
    draft = context.draft(
        "avatar_mixing",
        "A blend of two people",
        "**Mix Subjects** makes one subject out of two: somebody who has something of both.\n\n"
        "- `weight` is how much the second counts. At 0 it is left out and at 1 the first is; at 0.5 both "
        "count alike, as if their pictures had been encoded together.\n"
        "- Chain it for more than two. All have to be made with the same encoder.\n"
        "- Two pictures of *one* person can be mixed as well: one subject that has seen both.\n"
        + on_sdxl("the two people"),
    )
    world, one, other = _two_people(draft)
    group = draft.group("2. Each becomes a subject")
    encoder, first = encode(group, world, one)
    second = _encode_another(group, world, encoder, other)
    group = draft.group("3. One subject of both")
    mixed = group.add("NestedAttentionMixSubjects", subject_1=first.out, subject_2=second.out, weight=0.5)
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, mixed)
    draw(draft, world, applied, "a photo of a person in the middle wearing a green hoodie in a forest", 4)
    return draft


def saved_subject(context: Context) -> Draft:
    draft = context.draft(
        "avatar_saved_subject",
        "A subject kept for later",
        "**Save Subject** writes the subject to `output/subjects`, as a small file, and hands it on: the "
        "pictures are drawn with what was saved. Another seed or prompt writes no second file.\n\n"
        "To load it, in this workflow or any other (as *avatar_load_subject* does):\n\n"
        "1. Press **R**, so that the editor sees the new file, and add **Load Subject**.\n"
        "2. Choose `subjects/somebody_00001_.safetensors [output]` in it, and connect it to `subject` of "
        "**Apply Subject**.\n"
        "3. Remove the reference, **Encode Subject** and **Save Subject**: neither the picture nor CLIP "
        "vision is needed any more. **Load Subject Encoder** stays; it has to be the one the subject was "
        "made with.\n\n"
        "- Disconnect `thumbnail`, and no picture is kept: a neutral icon stands for the subject.\n"
        "- A saved person is personal data. Treat the file as you would the photograph.\n" + on_sdxl(),
    )
    group = draft.group("1. A world and a reference")
    world = group.add("NestedAttentionDemoWorld", person=SOMEBODY)
    group.add("PreviewImage", "The reference", images=world["person"])
    group = draft.group("2. The subject is saved")
    encoder, subject = encode(group, world, world["person"])
    saved = group.add(
        "NestedAttentionSaveSubject",
        subject=subject.out,
        thumbnail=world["person"],
        filename_prefix="subjects/somebody",
    )
    group = draft.group("3. What was saved is used")
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, saved)
    draw(draft, world, applied, "a photo of a person in the middle wearing a striped shirt at the beach", 4)
    return draft


def load_subject(context: Context) -> Draft:
    draft = context.draft(
        "avatar_load_subject",
        "A subject that was kept",
        "**Load Subject** reads a subject from a file: no picture, no Encode Subject and no CLIP vision any "
        "more, and the same person whenever it is loaded.\n\n"
        "- This file came with the pack. Yours are those that **Save Subject** wrote to `output`, and those "
        "you put into `input`; press **R** after saving or copying one, and choose it.\n"
        "- **Load Subject Encoder** has to be the encoder the subject was made with. Another one is refused, "
        "because its tokens mean something else.\n"
        "- What the node shows is the picture in the file, if one was kept with it; otherwise an icon.\n"
        "- **On SDXL**: Load Checkpoint in place of Demo World, your encoder in Load Subject Encoder, and a "
        "subject that was saved with it. Draw at 1024 × 1024 (Empty Latent Image) in 30 steps at cfg 5, and "
        "leave out the node that shows art pixels larger.",
    )
    group = draft.group("1. A world and its encoder")
    world = group.add("NestedAttentionDemoWorld")
    encoder = group.add("NestedAttentionLoadEncoder", encoder_name=PERSON)
    group = draft.group("2. A subject that was saved")
    subject = group.add("NestedAttentionLoadSubject", subject_name=SAVED)
    group = draft.group("3. It is attached")
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    text = "a photo of a person in the middle wearing a striped shirt and a hat in the snow"
    draw(draft, world, applied, text, 4)
    return draft


def two_people(context: Context) -> Draft:
    draft = context.draft(
        "avatar_two_people",
        "Two people, a place for each",
        "Two people have one word, **person**, and would mix. Here each has\n\n"
        "- a **name**: `<alice>` and `<bob>` in the prompt say who is meant where;\n"
        "- a **region**: the left half of the picture, and the right. Masks of any size do; paint your own "
        "in the mask editor of Load Image, roughly around where each is to be;\n"
        "- **bounded**: the word is attended inside its region only, so nobody appears twice;\n"
        "- **bound_self_attention** is off. On at one of the two, it stops looks from being carried from one "
        "to the other through self-attention; it costs some likeness, so switch it on only if they mix.\n\n"
        "Switch **bounded** off, or set **region_mode** to *none*, to see what each does. Without masks, "
        "*auto* on both finds the regions in the first steps.\n\n"
        + on_sdxl("the two people", "The masks may stay. "),
    )
    world, one, other = _two_people(draft)
    group = draft.group("2. Each becomes a subject")
    encoder, alice = encode(group, world, one)
    bob = _encode_another(group, world, encoder, other)
    group = draft.group("3. The two halves of the picture")
    nowhere = group.add("SolidMask", "Nowhere", value=0.0, width=128, height=128)
    half = group.add("SolidMask", "As large as a half", value=1.0, width=64, height=128)
    group.column()
    left, right = (
        group.add("MaskComposite", title, destination=nowhere.out, source=half.out, x=x, y=0, operation="add")
        for title, x in (("The left half", 0), ("The right half", 64))
    )
    group.column()
    group.add("MaskPreview", "Alice's place", mask=left.out)
    group.add("MaskPreview", "Bob's place", mask=right.out)
    draft.row()
    group = draft.group("4. Each is attached to a name, in a place")
    model, clip = world["MODEL"], world["CLIP"]
    for name, subject, region in (("alice", alice, left), ("bob", bob, right)):
        applied = apply(
            group,
            model,
            clip,
            encoder,
            subject,
            title=f"Apply Subject: {name}",
            name=name,
            region=region.out,
            bounded=True,
        )
        model, clip = applied["MODEL"], applied["CLIP"]
        group.column()
    del group.columns[-1]
    group = draft.group("5. Prompt and sampling")
    positive = prompt(
        group,
        clip,
        "a photo of a <alice> on the left and a <bob> on the right in a forest",
        "Prompt: who is where",
    )
    negative = prompt(group, clip, "", "Negative prompt")
    empty = group.add("EmptyLatentImage", width=128, height=128, batch_size=4)
    group.column()
    latent = sample(group, model, positive, negative, empty.out)
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("6. The picture")
    show(group, picture.out, "two_people")
    return draft


BACKDROP = {
    "Sky, highest": 0x78C8FA,
    "Sky, high": 0x8DD1FB,
    "Sky, low": 0xA3DBFD,
    "Sky, lowest": 0xB8E5FE,
    "Sun": 0xFFE046,
    "Sea": 0x1E78C8,
}
"""The colours behind every reference picture of the small world; no pet has any of them."""


def pet_isolated(context: Context) -> Draft:
    draft = context.draft(
        "avatar_pet_isolated",
        "A pet, cut out of its picture",
        "**Isolate Subject** puts what a mask shows on white, in the middle of a square: nothing of the "
        "surroundings can become part of the subject.\n\n"
        "- The mask here is a colour key: the six colours of the small world's beach are gathered in one "
        "mask, and `invert` takes what is left. Any other mask will do: paint one in the mask editor of Load "
        "Image, or use a segmentation node (where those show the subject, `invert` is off).\n"
        "- `padding` is the room around the subject; `grow` and `feather` are for masks with a rough edge.\n"
        + on_sdxl(
            "the pet, with its mask in place of the colours",
            "The word of the prompt is the one your encoder was trained on, or the one in `word`. ",
        ),
    )
    group = draft.group("1. A world and a pet")
    world = group.add("NestedAttentionDemoWorld", pet=3)
    group.add("PreviewImage", "The pet", images=world["pet"])
    group = draft.group("2. A mask of what is behind it")
    keys = []
    for number, (title, color) in enumerate(BACKDROP.items()):
        if number == len(BACKDROP) // 2:
            group.column()
        keys.append(group.add("ImageColorToMask", title, image=world["pet"], color=color))
    group.column()
    mask = keys[0]
    for key in keys[1:]:
        mask = group.add(
            "MaskComposite", "And", destination=mask.out, source=key.out, x=0, y=0, operation="add"
        )
    group = draft.group("3. The pet becomes a subject")
    isolated = group.add(
        "NestedAttentionIsolateSubject", image=world["pet"], mask=mask.out, padding=0.0, invert=True, size=80
    )
    encoder, subject = encode(group, world, isolated["subject"], PET)
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    text = "a photo of a pet in the middle wearing a red shirt in the snow"
    draw(draft, world, applied, text, 4, word="pet")
    return draft
