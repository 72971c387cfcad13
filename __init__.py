"""Nested Attention for ComfyUI: the entry point, nothing else."""

from __future__ import annotations

from .nodes import NestedAttentionExtension
from .nodes.routes import register_routes

WEB_DIRECTORY = "./web"  # help pages (docs/<node id>.md), and what shows the pack's sentences in the editor


async def comfy_entrypoint() -> NestedAttentionExtension:
    """Called by ComfyUI when it loads the pack."""
    register_routes()
    return NestedAttentionExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
