"""What the user sees: one file per step, and the extension that lists the nodes for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplySubject, MarkPrompt
from .demo import DemoPose, DemoWorld
from .encode import EncodeSubject
from .inspect import Observe, ViewMaps
from .likeness import MeasureLikeness
from .load import LoadEncoder
from .personalize import Personalize
from .prepare import AlignFace, IsolateSubject
from .sheet import ArrangeSheet, MakeSheet
from .subjects import LoadSubject, MixSubjects, SaveSubject

NODES: list[type[io.ComfyNode]] = [
    Personalize,
    DemoWorld,
    DemoPose,
    LoadEncoder,
    AlignFace,
    IsolateSubject,
    EncodeSubject,
    MixSubjects,
    SaveSubject,
    LoadSubject,
    ApplySubject,
    MarkPrompt,
    MakeSheet,
    ArrangeSheet,
    MeasureLikeness,
    Observe,
    ViewMaps,
]


class NestedAttentionExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
