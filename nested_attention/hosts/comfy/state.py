"""What a node that attaches a subject says of itself once it has run: which word, which encoder, where."""

from __future__ import annotations

from typing import Any

from ...settings import SubjectSettings
from .encoding.memory import SubjectEncoderHandle
from .graph import samples_personalised
from .notices import running_graph, running_node
from .sampling.chain import SubjectChain

STATE = "nested_attention_state"
"""The key of a node's texts in what it hands the editor; web/nested_attention.js shows them on the node."""


def told(key: str, *values: Any) -> dict[str, list[list[Any]]]:
    """What a node hands the editor under a key of ours, in a list of its own.

    In the list of a key itself ComfyUI looks for what the run has put out: it counts mappings, and texts that
    end as the name of a 3D model's file does, and previews a .json file.
    """
    return {key: [list(values)]}


def applied_state(model: Any, encoder: SubjectEncoderHandle, chosen_word: bool) -> list[str]:
    """Lines about the subject that was attached to MODEL last, none if it carries none. chosen_word: whether
    the user chose the word, not the encoder."""
    chain = SubjectChain.of(model)
    if chain is None:
        return []
    applied = chain.subjects[-1]
    settings = applied.settings
    word = word_state(settings, chosen_word)
    others = ", ".join(f"<{one.settings.called.name}>" for one in chain.subjects[:-1])
    if others:
        word += f", after {others}"
    on = sum(factor > 0 for factor in applied.factors.values())
    layers = "off (strength 0)" if not settings.strength else f"{on} of {len(applied.factors)} layers"
    return [word, f"encoder: {encoder.source} · {layers}", *connection()]


def word_state(settings: SubjectSettings, chosen_word: bool) -> str:
    """The line that says what a prompt has to call the subject."""
    word = f"word: {settings.called.word}" + ("" if chosen_word else " (the encoder's)")
    return word if settings.name is None else f"{word}, in the prompt <{settings.name}>"


def connection() -> list[str]:
    """Whether the running node's MODEL leads to a sampler, where that can be told.

    That does not follow from the node's inputs, so that a node that says it has it in its fingerprint.
    """
    graph, node = running_graph(), running_node()
    if graph is None or node not in graph:
        return []
    if samples_personalised(graph, node):
        return ["MODEL reaches a sampler"]
    return ["MODEL reaches no sampler: connect it, or the picture will not show the subject"]
