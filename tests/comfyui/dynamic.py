"""ComfyUI's dynamic memory, which is on by default with NVIDIA cards, on the CPU.

Layers then have no weights until they are loaded. What only a card can do, ComfyUI leaves out on a CPU by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def start_dynamic_memory() -> None:
    """What ComfyUI's start-up does before it imports anything that loads a file. Older versions have none."""
    try:
        import comfy_aimdo.control
    except ImportError:
        return
    comfy_aimdo.control.init()


@contextmanager
def dynamic_memory(on: bool = True) -> Iterator[None]:
    """As ComfyUI's start-up switches it on. Skips where this ComfyUI is older than it."""
    if not on:
        yield
        return
    management = pytest.importorskip("comfy.memory_management", reason="this ComfyUI has no dynamic memory")
    import comfy.model_patcher

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(management, "aimdo_enabled", True)
        patched.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
        yield
