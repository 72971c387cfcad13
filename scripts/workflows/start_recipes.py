"""Drafts to begin with: photographs, a word, a picture."""

from __future__ import annotations

from draft import Draft
from parts import (
    ALONE,
    BROAD,
    PET,
    SQUARE,
    TOGETHER,
    Context,
    apply,
    demo_world,
    draw,
    encode,
    on_sdxl,
    personalize,
)


def start(context: Context) -> Draft:
    draft = context.draft(
        "avatar_start",
        "This person, in any picture",
        "**Person or Pet in Picture** takes a photograph and attaches the person to one word of the prompt, "
        "here **person**. Press *Run*, then change the prompt and keep the word.\n\n- Another person: "
        "change `person` in **Demo World**.\n- More or less likeness: `likeness`. The node says what it has "
        "done once it has run.\n- The small world draws pixel art, and was trained on drawings only: a "
        "photograph of yours needs SDXL.\n" + on_sdxl(),
    )
    world, group = demo_world(draft)
    group.column()
    applied = personalize(group, world["MODEL"], world["CLIP"], world["person"])
    draw(draft, world, applied, "a photo of a person in the middle wearing a green hoodie in a forest", 2)
    return draft


def start_two(context: Context) -> Draft:
    draft = context.draft(
        "avatar_start_two",
        "This person and this pet, in one picture",
        "One node a subject, in a chain: the second takes MODEL and CLIP from the first. Each subject has "
        "its word, **person** and **pet**; where the words stand in the prompt, the subjects appear.\n\n- "
        "The order of the two makes no difference.\n- Two figures take a wider picture: `figures` of "
        "**Demo World** is 2. The small world draws no more; on SDXL, a third subject is a third node.\n"
        "- Two people share a word: give each a `name`, and write `<alice>` and `<bob>` (template 05).\n"
        + on_sdxl("the references"),
    )
    world, group = demo_world(draft, "1. A world and two references", figures=2)
    group = draft.group("2. The person, then the pet")
    person = personalize(group, world["MODEL"], world["CLIP"], world["person"], title="The person")
    group.column()
    both = personalize(group, person["MODEL"], person["CLIP"], world["pet"], preset="pet", title="The pet")
    text = "a photo of a person on the left and a pet on the right at the beach"
    draw(draft, world, both, text, word="person and pet")
    return draft


def several_pictures(context: Context) -> Draft:
    draft = context.draft(
        "avatar_several_pictures",
        "Several photographs of one person",
        "Up to four photographs, or batches of them, each of its own size: all are of the same subject and "
        "count alike. Here they are the reference, its mirror image and a closer crop. The prompt says "
        "**smiling**, which none of them shows.\n\n- Other light, other angles and other expressions help; "
        "two to four pictures are plenty.\n"
        "- Pictures of *different* people make a mixture of them.\n" + on_sdxl("the three pictures"),
    )
    world, group = demo_world(draft)
    mirror = group.add("ImageFlip", "Mirrored", image=world["person"], flip_method="y-axis: horizontally")
    crop = group.add("ImageCrop", "Closer", image=world["person"], width=88, height=88, x=12, y=8)
    group = draft.group("2. One subject of all of them")
    applied = personalize(
        group, world["MODEL"], world["CLIP"], world["person"], image_2=mirror.out, image_3=crop.out
    )
    text = "a photo of a person in the middle smiling wearing a yellow raincoat in the snow"
    draw(draft, world, applied, text)
    return draft


def variation(context: Context) -> Draft:
    draft = context.draft(
        "avatar_variation",
        "A name for the person",
        "The node has a `name` here, *alice*. In the prompt `<alice>` is the person of the reference, and "
        "the bare word **person** is anybody: on the left is she, on the right somebody else.\n\n- "
        "`<alice:child>` attaches her to another word: the text says what kind of person she is, the "
        "reference who. Also `<alice:woman>`, `<alice:boy>`, `<alice:girl>`. How far a picture follows that "
        "is up to the model; the small world's children have smaller faces and narrower shoulders.\n"
        "- Two people are in the picture: `figures` of **Demo World** is 2.\n"
        "- Two people are two nodes, each with a name (template 05).\n" + on_sdxl(),
    )
    world, group = demo_world(draft, figures=2)
    group.column()
    applied = personalize(group, world["MODEL"], world["CLIP"], world["person"], name="alice")
    text = "a photo of a <alice> on the left and a person on the right in a forest"
    draw(draft, world, applied, text, 2)
    return draft


def step_by_step(context: Context) -> Draft:
    draft = context.draft(
        "avatar_person",
        "A person, step by step",
        "The three nodes that **Person or Pet in Picture** stands for: **Load Subject Encoder** reads an "
        "encoder, **Encode Subject** turns the reference into a SUBJECT, **Apply Subject** attaches it to a "
        "word of the prompt. Here every setting is at hand.\n\n- λ is `attention_scale`: more identity, "
        "less prompt.\n- `start_percent`, `region`, `blocks`: when, where and in which layers the subject "
        "counts.\n" + on_sdxl(size=f"{SQUARE} and `batch_size` 1", steps=True),
    )
    world, group = demo_world(draft)
    group.add("PreviewImage", "The reference", images=world["person"])
    group = draft.group("2. It becomes a subject")
    encoder, subject = encode(group, world, world["person"])
    group = draft.group("3. A word carries it")
    applied = apply(group, world["MODEL"], world["CLIP"], encoder, subject)
    text = "a photo of a person in the middle wearing a green hoodie in a forest"
    draw(draft, world, applied, text, 4, empty={**ALONE, "batch_size": 4})
    return draft


def step_by_step_two(context: Context) -> Draft:
    draft = context.draft(
        "avatar_person_and_pet",
        "A person and a pet, step by step",
        "Two **Apply Subject** nodes in a chain, each with its encoder and its word, and a wider picture for "
        "two figures. Nothing else differs from one subject.\n\n"
        + on_sdxl("the references", f"{BROAD} and `batch_size` 1", steps=True, pet=True),
    )
    world, group = demo_world(draft, "1. A world and two references", figures=2)
    group = draft.group("2. They become subjects")
    person, somebody = encode(group, world, world["person"])
    group.column()
    pet, animal = encode(group, world, world["pet"], PET)
    group = draft.group("3. A word carries each")
    first = apply(group, world["MODEL"], world["CLIP"], person, somebody, title="The person")
    group.column()
    both = apply(group, first["MODEL"], first["CLIP"], pet, animal, title="The pet")
    text = "a photo of a person on the left and a pet on the right at the beach"
    draw(draft, world, both, text, 4, word="person and pet", empty={**TOGETHER, "batch_size": 4})
    return draft
