"""Draft of a workflow that shows what a subject does."""

from __future__ import annotations

from draft import Draft
from parts import BROAD, PERSON, PET, SAMPLING, TOGETHER, Context, apply, encode, on_sdxl, prompt, show


def inspect(context: Context) -> Draft:
    draft = context.draft(
        "avatar_inspect",
        "What the subjects do",
        "**Observe Subjects** stands between the last **Apply Subject** and the sampler, and keeps maps "
        "while the picture is sampled. **View Subject Maps** shows them: point at a place of the picture and "
        "see how much it attends to the word, which of the subject's tokens it took, and where in the "
        "reference they come from.\n\n"
        "- **A click** marks a place. Its tokens are in the `tokens` picture of the next run, which samples "
        "nothing again.\n"
        "- The lists above the picture choose the subject, what is shown, and one layer or step.\n"
        "- **observe** switches the maps off; **layers** set to all observes every layer; **preview** shows "
        "on Observe Subjects where the words land while the picture is sampled.\n"
        "- The pictures are the same with and without.\n"
        + on_sdxl("the references", BROAD, steps=True, pet=True),
    )
    group = draft.group("1. A world and two references")
    world = group.add("NestedAttentionDemoWorld", person=7, pet=3, figures=2)
    group.add("PreviewImage", "The person", images=world["person"])
    group.add("PreviewImage", "The pet", images=world["pet"])
    group = draft.group("2. Each becomes a subject")
    person = encode(group, world, world["person"], PERSON)
    pet = encode(group, world, world["pet"], PET)
    group.column()
    first = apply(group, world["MODEL"], world["CLIP"], *person)
    both = apply(group, first["MODEL"], first["CLIP"], *pet)
    group = draft.group("3. They are observed while the picture is sampled")
    observed = group.add("NestedAttentionObserve", model=both["MODEL"], observe=True, preview=True)
    text = "a photo of a person on the left and a pet on the right at the beach"
    positive = prompt(group, both["CLIP"], text, "Prompt with person and pet")
    negative = prompt(group, both["CLIP"], "", "Negative prompt")
    group.column()
    empty = group.add("EmptyLatentImage", **TOGETHER, batch_size=1)
    latent = group.add(
        "KSampler",
        model=observed["MODEL"],
        positive=positive.out,
        negative=negative.out,
        latent_image=empty.out,
        **SAMPLING,
    )
    picture = group.add("VAEDecode", samples=latent.out, vae=world["VAE"])
    group = draft.group("4. Point at a place of the picture")
    view = group.add("NestedAttentionViewMaps", maps=observed["maps"], image=picture.out)
    group.column()
    group.add("PreviewImage", "The marked places", images=view["tokens"])
    group.add("PreviewImage", "The values as colours", images=view["values"])
    show(draft.group("5. Where the words land"), view["word"], world["scale"], "inspect")
    return draft
