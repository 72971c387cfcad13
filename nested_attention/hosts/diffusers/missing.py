"""A subject that a picture does not show: why, and who is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...errors import NestedAttentionError
from ...placeholders import why_missing
from ...prompt import short, words_in
from ...settings import SubjectSettings

logger = logging.getLogger("nested_attention")


def tell_missing(settings: SubjectSettings, prompts: Sequence[str]) -> None:
    """Of a subject that no prompt carries. Raises NestedAttentionError, or warns, as it is to."""
    called = settings.called
    text = " ".join(dict.fromkeys(prompts))
    message = (
        f"personalize: no prompt carries the subject {called.name!r} (word {called.word!r}). Of the "
        f"prompt {short(text)!r}, {why_missing(called, words_in(text))}, within the tokens that the text "
        "encoders read"
    )
    if settings.when_missing == "error":
        raise NestedAttentionError(message)
    logger.warning(message)


def tell_uncounted(settings: SubjectSettings) -> None:
    """Of a subject that prompts carry, and that was in force at none of a call's steps."""
    logger.warning(
        f"personalize: {settings.called.name!r} does not count in this picture, for no step lies between "
        f"start {settings.start:g} and end {settings.end:g}. These are parts of the model's whole schedule, "
        "and few steps, or a strength of image to image below 1, may leave them out. Set 0 and 1 to have it "
        "in every picture"
    )
