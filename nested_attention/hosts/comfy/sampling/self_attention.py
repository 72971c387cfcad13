"""Self-attention that is kept apart between the regions of the subjects in one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import torch
from torch import Tensor

from ....regions import bias_in_rows, rows_apart
from ..notices import warn_once
from .carried import CarriedSubject
from .parts import EXACT, OVERRIDE
from .regions import Grid, PassRegion

READ_MASKS = frozenset(getattr(f, "__wrapped__", f) for f in (*EXACT, comfy_attention.attention_xformers))
"""ComfyUI's own functions that add a mask to the logits, without what it wraps them in."""


@dataclass(frozen=True, eq=False)
class SubjectsApart:
    """The subjects of a forward pass whose regions are kept apart.

    carries: (S, B) bool on the CPU, which rows carry which subject. bounding: those that ask for it; a pair
    is kept apart if one of the two does. rows: those with a pair to keep apart.
    """

    regions: Sequence[PassRegion]
    carries: Tensor
    bounding: Tensor
    rows: tuple[int, ...]

    @classmethod
    def of(cls, placed: Sequence[CarriedSubject]) -> SubjectsApart | None:
        """placed: those with regions. None if no row has two of them, one of which asks for it."""
        regions = [one.region for one in placed if one.region is not None]
        if len(regions) < 2:
            return None
        bounding = torch.tensor([one.subject.settings.bound_self_attention for one in regions])
        carried = torch.stack([one.mask.any(dim=1) for one in placed])
        rows = tuple(rows_apart(carried, bounding))
        return cls(regions, carried, bounding, rows) if rows else None

    def bias(self, grid: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
        """What is added to the logits of self-attention in `rows`: (1 or their number, 1, L, L)."""
        of_run, keys = self.regions[0].of_run, tuple(one.subject.key for one in self.regions)
        rows = keys, self.regions[0].where, self.rows, device, dtype
        return of_run.bias(rows, grid, lambda: self._bias(grid, device).to(dtype))

    def _bias(self, grid: Grid, device: torch.device) -> Tensor:
        rows = list(self.rows)
        carries = self.carries[:, rows]  # (S, n)
        regions = [self._region(one, grid, device) for one in self.regions]  # (1|B, L) each
        if all(len(region) == 1 for region in regions) and bool((carries == carries[:, :1]).all()):
            rows = rows[:1]  # the same in all of them
        return bias_in_rows(regions, self.carries, self.bounding, rows)

    def _region(self, one: PassRegion, grid: Grid, device: torch.device) -> Tensor:
        found = one.at(grid, device)
        return torch.ones(1, grid[0] * grid[1], device=device) if found is None else found


@dataclass(frozen=True, eq=False)
class RegionSelfAttention:
    """What stands in a self-attention's slot for one forward pass.

    In an empty slot, the rows with subjects to keep apart get the bias and the others run as they would
    without it (where they do not lie together, with a bias of 0). What another pack has put there is called
    as it is, with the bias added to what it computes with ComfyUI's attention function, if it passes its
    options on; else it is left to itself.
    """

    previous: Any
    apart: SubjectsApart

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """(B, L, inner) three times → (B, L, inner)"""
        grid = tuple(extra_options["activations_shape"][-2:])
        batch, queries = self.apart.carries.shape[1], grid[0] * grid[1]
        if not q.shape[:2] == k.shape[:2] == (batch, queries):
            warn_once(
                "Nested Attention: another node (HyperTile, token merging, a reference) changes the queries "
                "or keys of self-attention, and where it does, self-attention is not kept apart between the "
                "subjects' regions"
            )
            return self._through(q, k, v, extra_options)
        bias = self.apart.bias(grid, q.device, q.dtype)
        rows = self.apart.rows
        start, stop = rows[0], rows[-1] + 1
        if self.previous is not None:
            return self.previous(q, k, v, _with_bias(extra_options, self._for_all_rows(bias, batch)))
        if stop - start != len(rows):  # scattered: a device would wait for each list of them
            return _attention(q, k, v, extra_options, self._for_all_rows(bias, batch))
        parts = [(slice(0, start), None), (slice(start, stop), bias), (slice(stop, batch), None)]
        return torch.cat(
            [_attention(q[at], k[at], v[at], extra_options, m) for at, m in parts if at.start < at.stop]
        )

    def _through(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        run = _attention if self.previous is None else self.previous
        return run(q, k, v, extra_options)

    def _for_all_rows(self, bias: Tensor, batch: int) -> Tensor:
        if len(self.apart.rows) == batch:
            return bias
        full = bias.new_zeros(batch, *bias.shape[1:])
        full[list(self.apart.rows)] = bias
        return full


def _attention(
    q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], mask: Tensor | None = None
) -> Tensor:
    run = comfy_attention.optimized_attention
    host = {"attn_precision": extra_options["attn_precision"], "transformer_options": extra_options}
    if mask is not None:
        run = partial(_biased(extra_options, mask), run)
    return run(q, k, v, heads=extra_options["n_heads"], **host)


def _with_bias(extra_options: dict[str, Any], bias: Tensor) -> dict[str, Any]:
    """Options whose attention function adds the bias, in front of the override that was there."""
    return {**extra_options, OVERRIDE: _biased(extra_options, bias)}


def _biased(extra_options: dict[str, Any], bias: Tensor) -> Callable[..., Any]:
    """An override that adds the bias, whatever the options have for one.

    That one is given no bias, because many leave a mask out without a word (SageAttention's) or take none.
    What it is given to call adds the bias. Where it computes by itself, its result is dropped.
    """
    there = extra_options.get(OVERRIDE)

    def override(  # packs pass the mask by its place or by its name, as ComfyUI's own layers do
        func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        rest = () if mask is None and not args else (mask, *args)
        added = False

        def biased(
            q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            nonlocal added
            options = kwargs.get("transformer_options")
            if options is not None:  # what is called here comes past no override again
                kwargs["transformer_options"] = {
                    name: one for name, one in options.items() if name != OVERRIDE
                }
            if not _fits(bias, q, k):
                return func(q, k, v, heads, mask, *args, **kwargs)
            added = True
            both = bias if mask is None else mask + bias
            return _reading_masks(func)(q, k, v, heads, both, *args, **kwargs)

        if there is not None:
            out = there(biased, q, k, v, heads, *rest, **kwargs)
            if added or not _fits(bias, q, k):
                return out
        return biased(q, k, v, heads, *rest, **kwargs)

    return override


def _fits(bias: Tensor, q: Tensor, k: Tensor) -> bool:
    return bias.shape[0] in (1, len(q)) and bias.shape[-2:] == (q.shape[-2], k.shape[-2])


def _reading_masks(attend: Any) -> Any:
    """The same where it is ComfyUI's own and reads a mask, else PyTorch's. SageAttention leaves a mask out
    and does not say so, and of other packs' functions nobody knows."""
    known = getattr(attend, "__wrapped__", attend) in READ_MASKS
    return attend if known else comfy_attention.attention_pytorch
