"""What all nodes share: their types, their menu, their schema."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

CATEGORY = "nested attention"

SubjectEncoderType = io.Custom("SUBJECT_ENCODER")
SubjectType = io.Custom("SUBJECT")

_SCHEMA_FIELDS = {field.name for field in fields(io.Schema)}


def schema(node_id: str, display_name: str, *, search_aliases: list[str], **parts: Any) -> io.Schema:
    """A node's schema. `search_aliases` goes in where this version of ComfyUI knows the field."""
    if "search_aliases" in _SCHEMA_FIELDS:
        parts["search_aliases"] = search_aliases
    return io.Schema(
        node_id=f"NestedAttention{node_id}", display_name=display_name, category=CATEGORY, **parts
    )
