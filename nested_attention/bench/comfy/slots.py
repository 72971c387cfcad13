"""What one cross-attention layer costs in ComfyUI, with a subject in its slot and without.

`bench/in_comfyui.py` runs this in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import torch
from torch import Tensor

from ...hosts.comfy.sampling.applied import AppliedSubject
from ...hosts.comfy.sampling.carried import CarriedSubject
from ...hosts.comfy.sampling.layer import NestedLayer
from ...settings import SubjectSettings
from .. import baselines
from ..shapes import LayerShape, sdxl_shapes
from ..timing import Call, Clock, interleaved


def slots(
    *, size: int, tokens: tuple[int, ...], functions: tuple[str, ...], repeats: int, clock: Clock
) -> dict[str, Any]:
    """Every shape of SDXL's layers at a picture's size, with each number of tokens and each of ComfyUI's
    attention functions; for a positive row alone, and with a negative one before it (CFG)."""
    found = []
    for function, guided, count in product(functions, (False, True), tokens):
        comfy_attention.optimized_attention = getattr(comfy_attention, f"attention_{function}")
        for shape in sdxl_shapes(size):
            times = interleaved(dict(_calls(shape, count, guided)), repeats=repeats, clock=clock)
            found.append(
                {
                    "layer": shape.name,
                    "function": function,
                    "rows": 2 if guided else 1,
                    "tokens": count,
                    "ms": {form: asdict(timing) for form, timing in times.items()},
                }
            )
    return {"size": size, "layers": found}


def _calls(shape: LayerShape, tokens: int, guided: bool) -> Iterator[tuple[str, Call]]:
    """The layer without a slot; the floor; the slot of a subject, in which there was nothing or another
    pack's object (one that only runs ComfyUI's attention)."""
    inputs = baselines.make_inputs(shape, tokens=tokens, guided=guided)
    q, k, v = inputs.query, inputs.key, inputs.value
    options = {"n_heads": inputs.heads, "attn_precision": None}

    def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        out: Tensor = comfy_attention.optimized_attention(q, k, v, heads=options["n_heads"])
        return out

    carried = [_carried(inputs)]
    empty, occupied = (NestedLayer(there, "bench", carried, inputs.rows) for there in (None, attend))
    yield "plain", torch.inference_mode()(lambda: attend(q, k, v, options))
    yield "floor", torch.inference_mode()(lambda: baselines.floor(inputs))
    yield "empty slot", torch.inference_mode()(lambda: empty(q, k, v, options))
    yield "occupied slot", torch.inference_mode()(lambda: occupied(q, k, v, options))


def _carried(inputs: baselines.Inputs) -> CarriedSubject:
    bound = inputs.subjects[0]
    subject = AppliedSubject(
        settings=SubjectSettings(
            word="person",
            attention_scale=bound.attention_scale,
            alpha=bound.alpha,
            norm=bound.norm,
            strength=bound.strength,
        ),
        values=None,
        token_bias=None,
        factors={"bench": 1.0},
    )
    return CarriedSubject(
        subject, lambda site, device: (bound.key, bound.value), bound.mask, bound.mask, None
    )
