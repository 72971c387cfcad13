"""A subject that no prompt of a sampler carries: why, and who is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....errors import NestedAttentionError
from ....prompt import describe_words
from ....sites import SMALL_WORLD, UNetLayout, base_model
from ..notices import warn, warn_once
from ..prompts.encoded import encoded_prompts
from ..prompts.marks import PromptMarks
from ..prompts.missing import missing, not_in_text
from .applied import AppliedSubject
from .run import Carrying

ONE_FIGURE = (16, 16)
"""Rows and columns of the small world's latent in which it draws one figure."""


def tell_missing(subject: AppliedSubject, reason: str) -> None:
    """Raises NestedAttentionError, or warns, as the node that applied it was told."""
    message = missing(subject.settings.called, subject.by, reason)
    if subject.settings.when_missing == "error":
        raise NestedAttentionError(message)
    warn(f"Nested Attention: {message}")


def tell_uncounted(subjects: Sequence[AppliedSubject], carrying: Carrying, *, finished: bool) -> None:
    """After a sampling: warns of each subject that the prompts carry and no forward pass has carried.

    finished: whether it has taken all noise away. Where it has not, another sampler goes on, in which a
    subject may count.
    """
    for number, subject in enumerate(subjects, 1):
        if subject.key not in carrying.expected - carrying.carried:
            continue
        settings = subject.settings
        name = settings.called.name
        if number not in carrying.stepped:
            if finished:
                warn(
                    f"Nested Attention: {name!r} does not count in this sampling, for no step of it lies "
                    f"between start_percent {settings.start:g} and end_percent {settings.end:g}. These are "
                    "parts of the model's whole schedule, and few steps, or a denoise below 1, may leave "
                    "them out. Set 0 and 1 to have it in every sampling"
                )
        elif settings.region is None:  # an empty one may be meant
            warn(
                f"Nested Attention: {name!r} does not show, for another node runs the model past ComfyUI's "
                "own way of running it, as some that skip layers or steps do. Take it out"
            )


def tell_unused(subjects: Sequence[AppliedSubject], pictures: int) -> None:
    """Warns of subjects that differ from picture to picture, where there are fewer pictures."""
    drawn = f"{pictures} picture{'s' if pictures > 1 else ''}"
    for subject in subjects:
        mask, name = subject.settings.region, subject.settings.called.name
        for number, what in ((len(subject.batch), "subjects"), (0 if mask is None else len(mask), "masks")):
            if number > pictures:
                warn(
                    f"Nested Attention: {name!r} has {number} {what}, and this sampling draws {drawn}, for "
                    "which the first of them are taken. A picture that was taken out of a batch counts as "
                    "the first, too: give it its own"
                )


def tell_crowded(
    subjects: Sequence[AppliedSubject], positive: Sequence[PromptMarks], model: Any, size: tuple[int, int]
) -> None:
    """Warns of several subjects in one prompt where the small world draws one figure.

    model: the MODEL that samples. size: rows and columns of its latent. Who has a region is left out: its
    user has looked at the picture.
    """
    if size != ONE_FIGURE:
        return
    if base_model(UNetLayout.from_comfy_config(model.model.model_config.unet_config).sites) != SMALL_WORLD:
        return
    alone = [
        s for s in subjects if s.strength and not s.settings.placed and s.settings.when_missing == "error"
    ]
    for marks in positive:
        names = [repr(s.settings.called.name) for s in alone if s.key in marks.keys]
        if len(names) > 1:
            warn_once(
                f"Nested Attention: a prompt carries {' and '.join(names)}, and the small world draws one "
                "figure in a picture of 128 × 128 pixels, so that one of them may be missing. Set figures of "
                "Demo World to 2, or take a latent of 192 × 128 pixels"
            )


def elsewhere_carried(key: str, read: Sequence[PromptMarks]) -> PromptMarks | None:
    """A prompt that carries the subject, was encoded and is none of those that the sampler has."""
    for one in encoded_prompts.recently_carrying(key):
        if not any(one is other for other in read):
            return one
    return None


def reason_missing(
    subject: AppliedSubject, found: Sequence[PromptMarks], elsewhere: PromptMarks | None
) -> str:
    """found: what is known of the prompts that went through the CLIP of the node that applied the subject.
    elsewhere: a prompt that carries it, and that the sampler does not have."""
    if not found:
        reason = (
            f"none of the prompts was encoded with the CLIP that {subject.by.title} puts out. Connect that "
            "CLIP to the text encoders, or mark their conditioning with Mark Prompt"
        )
    else:
        words = (word for marks in found for word in marks.words)
        reason = not_in_text(subject.settings.called, subject.by, words)
    if elsewhere is None:
        return reason
    return (
        f"{reason}. A text that does carry it was encoded too ({describe_words(elsewhere.words)}), and did "
        "not reach this sampler as it was: a text node that encodes parts of a prompt apart and joins them "
        "(CAT, AVG, other parsers) loses who is carried, and a node that keeps prompts to itself (attention "
        "couple) may. Put Mark Prompt, with the whole text, behind the text node, or place subjects by Apply "
        "Subject's region"
    )
