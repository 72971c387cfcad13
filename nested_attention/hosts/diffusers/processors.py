"""Nested attention in a diffusers UNet: attention processors, and what they read.

For training, and wherever the conditioning is at hand; `pipeline.py` does the rest for whole pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ...attention import BoundSubject, check_subjects, plain_attention
from ...errors import NestedAttentionError
from ...inspection.observed import ObservedLayer, ObservedSubject, Observer
from ...kernels import correction, nested
from ...kernels.rows import Rows, read_rows
from ...regions import area_mean
from ...sites import diffusers_sites, uncompiled
from .binding import SubjectBinding
from .keywords import name_keywords

Attention = Callable[..., Tensor]
"""(query, key, value, subjects, *, heads) → out, as `attention.nested_cross_attention`."""

_UNSUPPORTED = ("spatial_norm", "group_norm", "norm_q", "norm_k", "residual_connection")


class SubjectSlot:
    """What a UNet's processors read: the subjects of the forward passes to come.

        slot = SubjectSlot.install(unet)          # once
        for batch in data:
            binding = SubjectBinding(projections=encoder.project(tokens), mask=mask)
            with slot.bind(binding):
                loss = mse_loss(unet(noisy, t, text, added_cond_kwargs=…).sample, target)
                loss.backward()
        slot.remove()                             # the UNet is as it was

    `bind` only stores the bindings: no processor is created or exchanged. Nothing is detached, so gradients
    reach K̆ and V̆. Where gradient checkpointing is on, the backward pass belongs inside `bind`, because
    checkpointed layers are run again during it. With nothing bound, or nothing marked, every layer runs its
    previous processor, bit for bit. One slot per UNet, and one thread at a time.
    """

    def __init__(self, unet: nn.Module, attention: Attention | None = None) -> None:
        self.unet = unet
        self.attention = attention
        """What the layers compute in place of nested and anchored attention; None: those."""
        self.sites = {site.name: site for site in diffusers_sites(unet)}
        self._bindings: tuple[SubjectBinding, ...] = ()
        self._layers: dict[tuple[str, int], list[BoundSubject]] = {}  # by site and number of queries
        self._regions: dict[tuple[SubjectBinding, tuple[int, int]], Tensor] = {}
        self._rows: dict[tuple[tuple[int, ...], torch.device], Rows] = {}
        self._latent_size = (0, 0)
        self._hook: Any = None
        self._processors: dict[str, NestedAttentionProcessor] = {}
        self.observers: Sequence[Observer] = ()
        """See every layer of the forward passes to come, with the bindings by their names."""
        self.step = 0
        """Number of the sampling's step, for observers."""
        self.pictures: Sequence[int] | None = None
        """Number of the picture that each row of a pass is, for observers. None: rows are pictures."""
        self.negative: Collection[int] = ()
        """Rows of negative prompts. Observers are not told who is carried there: it is not in the picture."""

    @property
    def bindings(self) -> tuple[SubjectBinding, ...]:
        """The subjects of the forward passes to come, without those that nothing carries."""
        return self._bindings

    @property
    def latent_size(self) -> tuple[int, int]:
        """(H, W) of the latents in the UNet now."""
        return self._latent_size

    @classmethod
    def install(cls, unet: nn.Module, attention: Attention | None = None) -> SubjectSlot:
        """Puts a processor into every cross-attention layer; self-attention is left as it is.

        attention: another mechanism than nested and anchored attention, for comparisons.

        Raises NestedAttentionError for a UNet that has a slot already, and for layers of another kind than
        SDXL's.
        """
        unet = uncompiled(unet)
        slot = cls(unet, attention)
        layers: dict[str, Any] = {name: unet.get_submodule(name) for name in slot.sites}
        for name, layer in layers.items():
            _check_layer(name, layer)
        for name, layer in layers.items():
            layer.set_processor(NestedAttentionProcessor(name, layer.processor, slot))
        slot._processors = {name: layer.processor for name, layer in layers.items()}
        slot._hook = unet.register_forward_pre_hook(slot._note_pass, with_kwargs=True)
        return slot

    def remove(self) -> None:
        """Puts the previous processors back. Without effect the second time."""
        for layer, ours in self._carrying():
            layer.set_processor(ours.previous)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @contextmanager
    def previous_processors(self) -> Iterator[None]:
        """Within the context, the UNet's layers have the processors of before: for what looks for its own."""
        carrying = self._carrying()
        for layer, ours in carrying:
            layer.set_processor(ours.previous)
        try:
            yield
        finally:
            for layer, ours in carrying:
                layer.set_processor(ours)

    def _carrying(self) -> list[tuple[Any, NestedAttentionProcessor]]:
        """The layers that run a processor of this slot, with it."""
        layers: list[Any] = [self.unet.get_submodule(name) for name in self._processors]
        pairs = zip(layers, self._processors.values(), strict=True)
        return [(layer, ours) for layer, ours in pairs if layer.processor is ours]

    @contextmanager
    def bind(self, *bindings: SubjectBinding) -> Iterator[None]:
        """Within the context, forward passes carry these subjects, and no others.

        Raises NestedAttentionError for projections of other sites or widths than the UNet's, and where other
        processors were put into the layers, ValueError as `check_subjects` does.
        """
        before = self._bindings
        self.set(*bindings)
        try:
            yield
        finally:
            self.set(*before)

    def set(self, *bindings: SubjectBinding, check: bool = True) -> None:
        """`bind` without an end: until the next call. `set()` binds nothing. check: whether tensors are
        looked into, which waits for the device where a token_bias is on it."""
        for binding in bindings:
            self._check_projections(binding)
        if bindings and check:
            first = next(iter(self.sites))
            check_subjects([binding.at(first) for binding in bindings], *bindings[0].mask.shape)
        carried = tuple(b for b in bindings if b.strength and bool(b.mask.any()))
        if carried:  # the pass may have begun, past `_note_pass`
            self._check_processors()
        self._bindings = carried
        self._layers, self._rows, self._regions = {}, {}, {}

    def at(self, site: str, queries: int) -> list[BoundSubject]:
        """The subjects at a layer with that many image queries."""
        found = self._layers.get((site, queries))
        if found is None:
            active = [binding for binding in self._bindings if binding.strength_at(site)]
            found = [binding.at(site, self._region(binding, site, queries)) for binding in active]
            self._layers[site, queries] = found
        return found

    def watched(self, site: str) -> bool:
        """Whether an observer wants to see a layer."""
        return any(observer.watches(site) for observer in self.observers)

    @torch.compiler.disable
    def show(self, site: str, query: Tensor, key: Tensor, value: Tensor, heads: int) -> None:
        """Shows a layer to the observers that want to see it."""
        queries, (height, width) = query.shape[1], self._latent_size
        part = (0, 0, height, width, height, width)
        pictures = range(len(query)) if self.pictures is None else self.pictures

        def bind(binding: SubjectBinding) -> BoundSubject | None:
            return (
                binding.at(site, self._region(binding, site, queries)) if binding.strength_at(site) else None
            )

        positive = torch.ones(len(query), 1, dtype=torch.bool)
        positive[list(self.negative)] = False
        subjects = [
            ObservedSubject(
                b.name,
                b.mask.cpu() & positive,
                (b.mask if b.word is None else b.word).cpu(),
                partial(bind, b),
            )
            for b in self._bindings
        ]
        places = [(picture, part) for picture in pictures]
        grid = self.grid(site, queries)
        layer = ObservedLayer(site, self.step, grid, places, query, key, value, heads, subjects)
        for observer in self.observers:
            if observer.watches(site):
                observer.see(layer)

    def _region(self, binding: SubjectBinding, site: str, queries: int) -> Tensor | None:
        """(1|B, L), the same tensor in all layers of one grid."""
        if binding.region is None:
            return None
        grid = self.grid(site, queries)
        if (binding, grid) not in self._regions:
            self._regions[binding, grid] = area_mean(binding.region, grid).flatten(1)
        return self._regions[binding, grid]

    def grid(self, site: str, queries: int) -> tuple[int, int]:
        """(h, w) of a layer's queries: the latent's, halved (rounding up) as often as it takes. Raises
        NestedAttentionError if that does not give them."""
        height, width = self._latent_size
        while height * width > queries:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != queries:
            raise NestedAttentionError(
                f"{site} has {queries} queries, which no halving of the "
                f"{self._latent_size[0]}×{self._latent_size[1]} latent gives, so a region cannot be placed "
                "there; apply the subject without a region"
            )
        return height, width

    def rows(self, site: str, device: torch.device) -> Rows:
        """What the masks of the subjects that count at a site say: read once, not in each layer."""
        active = tuple(i for i, binding in enumerate(self._bindings) if binding.strength_at(site))
        found = self._rows.get((active, device))
        if found is None:
            found = self._rows[active, device] = read_rows([self._bindings[i] for i in active], device)
        return found

    def _note_pass(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._bindings:
            self._check_processors()
        sample = args[0] if args else kwargs["sample"]
        if self._latent_size != sample.shape[-2:]:
            self._latent_size = (sample.shape[-2], sample.shape[-1])
            self._layers = {}

    def _check_processors(self) -> None:
        for name, ours in self._processors.items():
            layer: Any = self.unet.get_submodule(name)
            if layer.processor is not ours:
                raise NestedAttentionError(
                    f"{name} runs {type(layer.processor).__name__}, which was set after the subjects were "
                    "put into the UNet's layers, so the picture would be drawn without them. Set attention "
                    "processors first (set_attn_processor, load_ip_adapter), then attach the subjects"
                )

    def _check_projections(self, binding: SubjectBinding) -> None:
        alone = sorted(self.sites.keys() ^ binding.projections.keys())
        if alone:
            raise NestedAttentionError(
                f"a subject's keys and values are for {len(binding.projections)} cross-attention layers, the "
                f"UNet has {len(self.sites)}; without a counterpart: {alone[0]}. Use an encoder "
                "that was trained for this UNet"
            )
        for name, (key, value) in binding.projections.items():
            inner = self.sites[name].inner_dim
            if key.ndim != 3 or key.shape != value.shape or key.shape[-1] != inner:
                raise NestedAttentionError(
                    f"a subject's keys and values at {name} have shapes {tuple(key.shape)} and "
                    f"{tuple(value.shape)}; expected (1 or batch, tokens, {inner}) twice. Use an encoder "
                    "that was trained for this UNet"
                )


class NestedAttentionProcessor(nn.Module):
    """The processor of one cross-attention layer: nested where a subject is bound, else the previous one.

    What other processors add (IP-Adapter's image attention) is kept as it is, and the correction added to it.
    A module, so that weights of the previous one stay the UNet's, and move with it.
    """

    def __init__(self, site: str, previous: Any, slot: SubjectSlot) -> None:
        super().__init__()
        self.site, self.previous, self.slot = site, previous, slot
        name_keywords(self, previous)

    def __call__(  # not `forward`: diffusers reads its signature
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, L, C), text (B, T, context width) → (B, L, C)"""
        subjects = self.slot.at(self.site, hidden_states.shape[1])
        if temb is not None:  # SDXL passes none, and not every processor takes one
            kwargs["temb"] = temb
        shown = bool(self.slot.observers) and bool(self.slot.bindings) and self.slot.watched(self.site)
        if not subjects and not shown:
            return self.previous(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        is_pair = isinstance(encoder_hidden_states, tuple)  # IP-Adapter: (text, images)
        text = encoder_hidden_states[0] if is_pair else encoder_hidden_states
        self._check(subjects, hidden_states, text, attention_mask)
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        if shown:
            self.slot.show(self.site, query, key, value, attn.heads)
        if not subjects:
            return self.previous(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        layer = query, key, value, subjects
        if type(self.previous) in (AttnProcessor, AttnProcessor2_0):
            out = self._attention(*layer, heads=attn.heads)
            return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor
        theirs = self.previous(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        change = self._correction(*layer, heads=attn.heads)
        project = attn.to_out[0]  # affine, LoRA included: its bias is in `theirs` already
        added = project(change) - project(torch.zeros_like(change[:1, :1]))
        return theirs + added / attn.rescale_output_factor

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, subjects: list[BoundSubject], heads: int
    ) -> Tensor:
        """What the layer computes of the text and the subjects."""
        if self.slot.attention is not None:
            return self.slot.attention(query, key, value, subjects, heads=heads)
        rows = self.slot.rows(self.site, query.device)
        return nested(query, key, value, subjects, heads=heads, rows=rows)

    def _correction(
        self, query: Tensor, key: Tensor, value: Tensor, subjects: list[BoundSubject], heads: int
    ) -> Tensor:
        """The same minus the text's attention alone."""
        if self.slot.attention is not None:
            plain = plain_attention(query, key, value, heads=heads)
            return self.slot.attention(query, key, value, subjects, heads=heads) - plain
        rows = self.slot.rows(self.site, query.device)
        return correction(query, key, value, subjects, heads=heads, rows=rows)

    def _check(
        self, subjects: list[BoundSubject], hidden_states: Tensor, text: Any, mask: Tensor | None
    ) -> None:
        if mask is not None:
            raise NestedAttentionError(
                f"{self.site} got an attention mask (encoder_attention_mask); nested attention follows SDXL, "
                "which has none. Leave it out, and cut the text to the length it needs"
            )
        shape = (len(hidden_states), text.shape[1])
        for subject in subjects:
            if tuple(subject.mask.shape) != shape:
                raise NestedAttentionError(
                    f"{self.site} runs on (batch, text tokens) = {shape}, and a subject's mask is for "
                    f"{tuple(subject.mask.shape)}; bind a mask of encoder_hidden_states' rows and tokens"
                )


def _check_layer(name: str, layer: Any) -> None:
    if isinstance(layer.processor, NestedAttentionProcessor):
        raise NestedAttentionError(
            f"{name} carries subjects already; pass all subjects in one call, or remove the earlier slot"
        )
    odd = [what for what in _UNSUPPORTED if getattr(layer, what, None)]
    if odd:
        raise NestedAttentionError(
            f"{name} has {', '.join(odd)}, which SDXL's cross-attention has not; use a UNet of SDXL's kind"
        )
