"""What all nodes share: their types, their menu, their schema."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..nested_attention.errors import NestedAttentionError

CATEGORY = "nested attention: person, pet, face, identity"
"""The menu's words, and those one looks for."""

SubjectEncoderType = io.Custom("SUBJECT_ENCODER")
SubjectType = io.Custom("SUBJECT")

SEARCH_WORDS: dict[str, list[str]] = {}
"""Node id → its search_aliases, for editors that get none from this version of ComfyUI."""

_SCHEMA_FIELDS = {field.name for field in fields(io.Schema)}


def schema(
    node_id: str,
    display_name: str,
    *,
    search_aliases: list[str],
    advanced: Collection[str] = (),
    **parts: Any,
) -> io.Schema:
    """A node's schema.

    search_aliases, and advanced, the inputs that an editor folds away at first, go in where this version of
    ComfyUI knows them. So does has_intermediate_output: with it, ComfyUI sends again what a remembered node
    said.
    """
    for one in parts["inputs"]:
        if one.id in advanced and hasattr(one, "advanced"):
            one.advanced = True
    SEARCH_WORDS[f"NestedAttention{node_id}"] = search_aliases
    if "search_aliases" in _SCHEMA_FIELDS:
        parts["search_aliases"] = search_aliases
    if "has_intermediate_output" in _SCHEMA_FIELDS:
        parts["has_intermediate_output"] = True
    return io.Schema(
        node_id=f"NestedAttention{node_id}", display_name=display_name, category=CATEGORY, **parts
    )


@contextmanager
def naming(node: str) -> Iterator[None]:
    """The node's name before the message of an error from within, once."""
    try:
        yield
    except NestedAttentionError as error:
        message = str(error)
        raise NestedAttentionError(message if message.startswith(node) else f"{node}: {message}") from error


def refusal(check: Callable[[str], object], value: str | None) -> bool | str:
    """What `validate_inputs` answers: True, or why not. value: None where it comes from another node, and is
    known when that one has run."""
    try:
        if value is not None:
            check(value)
    except NestedAttentionError as error:
        return str(error)
    return True
