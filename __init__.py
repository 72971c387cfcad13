"""Nested Attention for ComfyUI: the entry point, nothing else."""

from __future__ import annotations

from .nodes import NestedAttentionExtension


async def comfy_entrypoint() -> NestedAttentionExtension:
    """Called by ComfyUI when it loads the pack."""
    return NestedAttentionExtension()


__all__ = ["comfy_entrypoint"]
