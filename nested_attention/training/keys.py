"""Nested keys, trained in coordinates in which a layer's queries differ alike in every direction.

The logits of nested attention are q · K̆ with K̆ = W t (Eq. 2). The queries of a frozen layer may share a
large mean and differ little otherwise: on the way down to the small world's 8×8 level, one direction has 99 %
of their second moment at high noise. An optimiser moves every coordinate of W alike, and so, most of all,
what all queries have in common. The softmax is soon saturated there: all queries read the same token, which
is a global value, and no gradient says otherwise.

Hence W = C W̃ is trained through W̃, where C is, head by head, (E[q qᵀ] + ridge)^−½: then q · K̆ = (C q) · W̃ t,
and C q has a second moment of 1 in every direction above the ridge. Mechanism, configuration and file are
those of an encoder that was trained plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..encoder import SubjectEncoder, site_key
from ..errors import NestedAttentionError
from ..sites import Site
from .data import Batch, Data, Examples, Noise

RIDGE = 0.01
"""Added to every direction's second moment, as a share of their mean: directions in which queries hardly
differ are not blown up without a bound."""

MEASURED = 256
"""Examples whose queries are measured."""

Moments = dict[str, Tensor]
"""Site → second moments of its queries, (heads, head size, head size)."""


class _InBasis(nn.Module):
    """W from W̃, and back. basis: C, (inner, inner)"""

    basis: Tensor

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis)

    def forward(self, own: Tensor) -> Tensor:
        with torch.autocast(own.device.type, enabled=False):  # a basis scales directions far apart
            return self.basis @ own

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.linalg.solve(self.basis, weight)


@contextmanager
def measuring(unet: Any, sites: tuple[Site, ...]) -> Iterator[Callable[[], Moments]]:
    """Within it, the queries of every pass through `unet` are counted; what it gives tells their moments."""
    sums: Moments = {}
    counted = dict.fromkeys((site.name for site in sites), 0)

    def count(name: str, heads: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def see(layer: nn.Module, inputs: Any, queries: Tensor) -> None:
            q = queries.detach().float().flatten(0, 1).unflatten(-1, (heads, -1))  # (B·L, heads, d)
            with torch.autocast(q.device.type, enabled=False):  # sums of squares, in full precision
                sums[name] = sums.get(name, 0) + torch.einsum("nhd,nhe->hde", q, q)
            counted[name] += len(q)

        return see

    layers = [(site, unet.get_submodule(site.name).to_q) for site in sites]
    hooks = [layer.register_forward_hook(count(site.name, site.heads)) for site, layer in layers]
    try:
        yield lambda: {name: total / counted[name] for name, total in sums.items()}
    finally:
        for hook in hooks:
            hook.remove()


def first_examples(
    data: Data, noise: Noise, *, batch: int, seed: int, device: torch.device, on_host: Collection[str]
) -> Iterator[tuple[Batch, Batch]]:
    """Those by which queries are measured: the first of a training's, in its batches, where it reads them."""
    examples = Examples(data, noise, batch=min(batch, MEASURED), seed=seed)
    for position in range(0, MEASURED, examples.batch):
        yield send_to_device(examples[position], device, skip_keys=list(on_host))


@torch.no_grad()
def whiten_keys(
    encoder: SubjectEncoder, unet: Any, objective: Any, examples: Iterable[tuple[Batch, Batch]], *, anew: bool
) -> None:
    """Measure the base model's queries on examples, with nothing attached, and `train_keys_in` them.

    objective: the training's (`trainer.Objective`) of the model `encoder`, whose examples have a `mask`.
    Raises NestedAttentionError, naming the layer, for queries that are not finite.
    """
    device = next(encoder.parameters()).device
    with measuring(unet, encoder.config.sites) as moments:
        encoder.to(unet.device)
        for batch, noise in examples:
            objective({**batch, "mask": torch.zeros_like(batch["mask"])}, {"encoder": encoder}, noise)
        found = moments()
    for name, moment in found.items():
        if not bool(moment.isfinite().all()):
            raise NestedAttentionError(
                f"the base model's queries in {name} are not finite on the first examples; look at the "
                "pictures, or train in another precision"
            )
    train_keys_in(encoder.to(device), found, anew=anew)


def basis_of(moment: Tensor) -> Tensor:
    """C, (heads·d, heads·d), for the second moments (heads, d, d) of a layer's queries."""
    values, vectors = torch.linalg.eigh(moment)
    scale = (values.clamp_min(0) + RIDGE * values.mean(dim=-1, keepdim=True)).rsqrt()
    return torch.block_diag(*(vectors * scale[:, None]) @ vectors.mT)


def train_keys_in(encoder: SubjectEncoder, moments: Moments, *, anew: bool) -> None:
    """From now on, training moves W̃ of every site. anew: the weights that are there, which are random, are
    taken as W̃; else W stays what it is. `plain` gives the encoder back."""
    for name, moment in moments.items():
        layer: Any = encoder.projections[site_key(name)]
        own = layer.to_key.weight.detach().clone()
        basis = _InBasis(basis_of(moment).to(own))
        parametrize.register_parametrization(layer.to_key, "weight", basis)
        if anew:
            with torch.no_grad():
                layer.to_key.parametrizations.weight.original.copy_(own)


def plain(encoder: SubjectEncoder) -> SubjectEncoder:
    """The same encoder as `SubjectEncoder` makes one, without a gradient; shares what is not of its keys."""
    state = {name: value for name, value in encoder.state_dict().items() if "parametrizations" not in name}
    for site in encoder.config.sites:
        layer: Any = encoder.projections[site_key(site.name)]
        state[f"projections.{site_key(site.name)}.to_key.weight"] = layer.to_key.weight.detach()
    with torch.device("meta"):
        found = SubjectEncoder(encoder.config)
    found.load_state_dict(state, assign=True)
    return found
