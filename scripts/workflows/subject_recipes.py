"""Drafts of what can be done with subjects: mixed, kept, placed, cut out of their pictures."""

from __future__ import annotations

from draft import Draft, Group, Node, Slot
from parts import (
    ALONE,
    HALF,
    PERSON,
    PET,
    SAVED,
    SOMEBODY,
    SOMEBODY_ELSE,
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


def _two_people(draft: Draft) -> tuple[Node, Slot, Slot]:
    """The small world, and the pictures of two people from it."""
    group = draft.group("1. A world and two people")
    world = group.add("NestedAttentionDemoWorld", person=SOMEBODY, figures=2)
    another = group.add("NestedAttentionDemoWorld", "Demo World, for its person alone", person=SOMEBODY_ELSE)
    both = group.add("ImageBatch", image1=world["person"], image2=another["person"])
    group.add("PreviewImage", "The two", images=both.out)
    return world, world["person"], another["person"]


def _encode_another(group: Group, world: Node, encoder: Node, picture: Slot) -> Node:
    """A second subject of the same encoder."""
    vision = world["CLIP_VISION"]
    return group.add(
        "NestedAttentionEncodeSubject", encoder=encoder["encoder"], clip_vision=vision, image=picture
    )


MIXED_PEOPLE = (2, 12)
"""Two people of the small world who differ in what a drawing of the two shows: hair, glasses, beard."""


def mixing(context: Context) -> Draft:
    draft = context.draft(
        "avatar_mixing",
        "A blend of two people",
        "**Mix Subjects** makes one subject out of two: somebody who has something of both. The picture "
        "shows the blend between the two references.\n\n"
        "- `weight` is how much the second counts. At 0 it is left out and at 1 the first is; at 0.5 both "
        "count alike, as if their pictures had been encoded together.\n"
        "- Chain it for more than two. All have to be made with the same encoder.\n"
        + on_sdxl("the two people", SQUARE, steps=True),
    )
    world, group = demo_world(draft, "1. A world and two people", person=MIXED_PEOPLE[0])
    another = group.add("NestedAttentionDemoWorld", "The second person", person=MIXED_PEOPLE[1])
    group = draft.group("2. A blend of the two")
    encoder, first = encode(group, world, world["person"])
    second = _encode_another(group, world, encoder, another["person"])
    mixed = group.add("NestedAttentionMixSubjects", subject_1=first.out, subject_2=second.out, weight=0.5)
    group = draft.group("3. A word carries it")
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, mixed)
    group = draft.group("4. Prompt and sampling")
    text = "a photo of a person in the middle wearing a green hoodie in a forest"
    positive = prompt(group, applied["CLIP"], text, "Prompt with the word person")
    negative = prompt(group, applied["CLIP"], "", "Negative prompt")
    empty = group.add("EmptyLatentImage", **ALONE, batch_size=1)
    group.column()
    latent = sample(group, applied["MODEL"], positive.out, negative.out, empty.out)
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("5. The first, the blend, the second")
    beside = {"direction": "right", "match_image_size": True, "spacing_width": 4, "spacing_color": "white"}
    two = group.add(
        "ImageStitch", "The first person, the blend", image1=world["person"], image2=picture.out, **beside
    )
    three = group.add(
        "ImageStitch", "… and the second person", image1=two.out, image2=another["person"], **beside
    )
    group.column()
    show(group, three.out, world["scale"], "mixing")
    return draft


def saved_subject(context: Context) -> Draft:
    draft = context.draft(
        "avatar_saved_subject",
        "A subject kept for later",
        "**Save Subject** writes the subject to `output/subjects`, as a small file.\n\n"
        "To load it, in this workflow or any other (as template 08 does):\n\n"
        "1. Press **R**, so that the editor sees the new file, and add **Load Subject**.\n"
        "2. Choose `subjects/somebody_00001_.safetensors [output]` in it, and connect it to `subject` of "
        "**Apply Subject**. Neither the picture nor CLIP vision is needed any more.\n\n"
        "- Disconnect `thumbnail`, and no picture is kept: a neutral icon stands for the subject.\n"
        "- A saved person is personal data. Treat the file as you would the photograph.\n" + on_sdxl(),
    )
    world, group = demo_world(draft)
    group = draft.group("2. The subject is made and saved")
    applied = personalize(group, world["MODEL"], world["CLIP"], world["person"])
    group.column()
    group.add(
        "NestedAttentionSaveSubject",
        subject=applied["subject"],
        thumbnail=world["person"],
        filename_prefix="subjects/somebody",
    )
    draw(draft, world, applied, "a photo of a person in the middle wearing a striped shirt at the beach")
    return draft


def load_subject(context: Context) -> Draft:
    draft = context.draft(
        "avatar_load_subject",
        "A subject that was kept",
        "**Load Subject** reads a subject from a file: no picture, no Encode Subject and no CLIP vision "
        "any more, and the same person whenever it is loaded.\n\n- This file came with the pack. Yours are "
        "those that **Save Subject** wrote to `output`, and those you put into `input`; press **R** after "
        "saving or copying one, and choose it.\n- **Load Subject Encoder** has to be the encoder the "
        "subject was made with. Another one is refused, because its tokens mean something else.\n- The "
        "node shows the picture in the file, if one was kept with it, and where the subject comes from.\n- "
        "**On SDXL**: choose your checkpoint in `base` of Demo World, your encoder in Load Subject "
        "Encoder, and a subject that was saved with it. 30 steps are usual.",
    )
    group = draft.group("1. A world and its encoder")
    world = group.add("NestedAttentionDemoWorld")
    encoder = group.add("NestedAttentionLoadEncoder", encoder_name=PERSON)
    group = draft.group("2. A subject that was saved")
    subject = group.add("NestedAttentionLoadSubject", subject_name=SAVED)
    group = draft.group("3. It is attached")
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    text = "a photo of a person in the middle laughing wearing a striped shirt with a party hat in the snow"
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
        + on_sdxl("the two people", steps=True)
        + " The masks may stay.",
    )
    world, one, other = _two_people(draft)
    group = draft.group("2. Each becomes a subject")
    encoder, alice = encode(group, world, one)
    bob = _encode_another(group, world, encoder, other)
    nowhere = group.add("SolidMask", "Nowhere", value=0.0, **TOGETHER)
    half = group.add("SolidMask", "As large as a half", value=1.0, **HALF)
    group = draft.group("3. Each is attached to a name, in a place")
    model, clip = world["MODEL"], world["CLIP"]
    for name, subject, x in (("alice", alice, 0), ("bob", bob, HALF["width"])):
        place = group.add(
            "MaskComposite", f"{name.title()}'s half", destination=nowhere.out, source=half.out, x=x, y=0,
            operation="add",
        )  # fmt: skip
        applied = apply(
            group,
            model,
            clip,
            encoder,
            subject,
            title=f"Apply Subject: {name}",
            name=name,
            region=place.out,
            bounded=True,
        )
        model, clip = applied["MODEL"], applied["CLIP"]
        group.column()
    del group.columns[-1]
    group = draft.group("4. Prompt and sampling")
    text = "a photo of a <alice> on the left and a <bob> on the right in a forest"
    positive = prompt(group, clip, text, "Prompt: who is where")
    negative = prompt(group, clip, "", "Negative prompt")
    group.column()
    latent = sample(group, model, positive.out, negative.out, world["latent"])
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("5. The picture")
    show(group, picture.out, world["scale"], "two_people")
    return draft


def pet_isolated(context: Context) -> Draft:
    draft = context.draft(
        "avatar_pet_isolated",
        "A pet, cut out of its picture",
        "**Isolate Subject** puts a pet on white, in the middle of a square: nothing of the surroundings can "
        "become part of the subject. Without a mask, what differs from the picture's border is the pet; the "
        "node says if that is not certain.\n\n"
        "- Wrong, or not certain? Connect a **mask**: paint one in the mask editor of Load Image, or use a "
        "segmentation node.\n"
        "- `padding` is the room around the subject; `grow` and `feather` are for rough edges.\n"
        "- **Person or Pet in Picture** does this by itself for photographs (`prepare`).\n"
        + on_sdxl(
            "the pet",
            steps=True,
            pet=True,
            prepare="set `size` of Isolate Subject to 512 and its `padding` to 0.1",
        ),
    )
    world, group = demo_world(draft, "1. A world and a pet", pet=6)
    isolated = group.add("NestedAttentionIsolateSubject", image=world["pet"], padding=0.0, size=112)
    group = draft.group("2. The pet becomes a subject")
    encoder, subject = encode(group, world, isolated["subject"], PET)
    group = draft.group("3. A word carries it")
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    text = "a photo of a pet in the middle wearing a red shirt in the snow"
    draw(draft, world, applied, text, 4, word="pet")
    return draft
