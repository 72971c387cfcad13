"""A required subject that no prompt carries: what to say of it, and how to see it before anything is
sampled, so that the prompt is what the editor outlines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ....errors import NestedAttentionError
from ....placeholders import SubjectWord, parse_prompt, why_missing
from ....prompt import words_in
from ..graph import APPLY_SUBJECT, Applier, encoded_texts, is_negative, samples_personalised
from ..notices import running_graph, running_node


@dataclass(frozen=True)
class AppliedWord(SubjectWord):
    """by: the node that attached the subject."""

    by: Applier = field(default=APPLY_SUBJECT, compare=False)


def missing(called: SubjectWord, by: Applier, reason: str) -> str:
    """The message for a subject that no prompt carries."""
    return f"{by.title}: no prompt carries the subject {called.name!r} (word {called.word!r}): {reason}"


def not_in_text(called: SubjectWord, by: Applier, words: Iterable[str]) -> str:
    """The reason where prompts were encoded that do not carry it. words: of all of them (`words_in`)."""
    why = why_missing(called, tuple(dict.fromkeys(words)), by.title)
    return f"of the text that the CLIP of {by.title} encoded, {why}" + (
        f". If this pass is meant to go without it, as a face detailer's may be, set 'when missing' of "
        f"{by.title} to 'warn'"
        if by.may_warn
        else ""
    )


def check_graph(subjects: Sequence[AppliedWord], required: Collection[str]) -> None:
    """Raises NestedAttentionError where a prompt is encoded, if no text of the running graph carries one of
    the required subjects. Leaves it to the sampler where that cannot be told for sure.

    subjects: all that the CLIP knows. required: the names of those that this prompt does not carry.
    """
    graph, node = running_graph(), running_node()
    if not required or graph is None or node not in graph or is_negative(graph, node):
        return
    texts = encoded_texts(graph)
    if texts is None or not samples_personalised(graph):
        return
    try:
        prompts = [parse_prompt(text, subjects) for text in dict.fromkeys(texts)]
    except NestedAttentionError:  # of another prompt, whose own node says so
        return
    carried = {occurrence.subject.name for prompt in prompts for occurrence in prompt.occurrences}
    conflicts = [conflict for prompt in prompts for conflict in prompt.conflicts]
    for called in subjects:
        if called.name in required and called.name not in carried:
            words = [word for prompt in prompts for word in words_in(prompt.text)]
            reason = conflicts[0] if conflicts else not_in_text(called, called.by, words)
            raise NestedAttentionError(missing(called, called.by, reason))
