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
def dynamic_memory(on: bool = True, *, managed: bool = False) -> Iterator[None]:
    """As ComfyUI's start-up switches it on. Skips where this ComfyUI is older than it.

    managed: models are of the kind that ComfyUI manages so on a card, too. It would take the older kind on a
    CPU. Layers still cast their weights as on a CPU, where patches of weights (LoRAs) are left out.
    """
    if not on:
        yield
        return
    management = pytest.importorskip("comfy.memory_management", reason="this ComfyUI has no dynamic memory")
    import comfy.model_management
    from comfy import model_patcher

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(management, "aimdo_enabled", True)
        patched.setattr(model_patcher, "CoreModelPatcher", model_patcher.ModelPatcherDynamic)
        if managed:
            new = staticmethod(lambda kind, *_, **__: object.__new__(kind))
            patched.setattr(model_patcher.ModelPatcherDynamic, "__new__", new)
            # A CLIP whose device holds it from the start would be loaded before it has its weights.
            patched.setattr(comfy.model_management, "text_encoder_initial_device", lambda *_: None)
        try:
            yield
        finally:  # ComfyUI cannot unload such models from a CPU
            loaded = comfy.model_management.current_loaded_models
            loaded[:] = [one for one in loaded if one.model is not None and not one.model.is_dynamic()]
