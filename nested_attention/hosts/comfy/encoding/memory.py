"""What subjects keep in memory, in ComfyUI's hands: the encoder's weights, and each subject's keys and
values.

K̆ and V̆ do not depend on the timestep. They are computed once, when a subject is first applied, and are from
then on a small model of their own next to the MODEL. ComfyUI loads, offloads and counts them and the encoder
like any other model; the encoder stays on the device until something else needs the place. Changing word, λ,
α, strength or start and end computes nothing again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ....checkpoint import load_subject_encoder
from ....encoder import SubjectEncoder, SubjectEncoderConfig, site_key
from ....subject import Subject

CACHE_ENTRIES = 8
CACHE_BYTES = 1 << 30
"""Bounds of what is kept for subjects that no MODEL uses any more (about three SDXL subjects of one
picture)."""


@dataclass(frozen=True, eq=False)
class SubjectEncoderHandle:
    """SUBJECT_ENCODER: an encoder whose weights ComfyUI manages.

    encoder: call it only after `load`. source: the file it came from, for messages.
    """

    encoder: SubjectEncoder
    patcher: comfy.model_patcher.ModelPatcher
    source: str

    @property
    def config(self) -> SubjectEncoderConfig:
        return self.encoder.config

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def load(self, extra_memory: int = 0) -> torch.device:
        """Brings the weights to their device, with room for `extra_memory` bytes beside them; returns it."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=extra_memory)
        return self.patcher.load_device


def load_encoder_for_comfy(path: str | os.PathLike[str], **overrides: Any) -> SubjectEncoderHandle:
    """Loads a subject encoder (`checkpoint.load_subject_encoder`) into ComfyUI's hands.

    Raises NestedAttentionError for a file that is missing, damaged or of another kind.
    """
    return manage_encoder(load_subject_encoder(path, **overrides), os.path.basename(os.fspath(path)))


def manage_encoder(encoder: SubjectEncoder, source: str) -> SubjectEncoderHandle:
    """The same encoder with layers that ComfyUI can leave offloaded and cast one by one. Its tensors are
    shared."""
    managed = _with_tensors(encoder, encoder.state_dict())
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    patcher = new_patcher(managed, load_device, offload_device)
    # Of what is managed: the encoder that was given would stay in memory for it, beside what ComfyUI moves.
    patcher.cached_patcher_init = (lambda *_, **__: _copy_encoder(managed, source, offload_device), ())
    return SubjectEncoderHandle(managed, patcher, source)


def _with_tensors(encoder: SubjectEncoder, tensors: Mapping[str, Tensor]) -> SubjectEncoder:
    """The encoder with layers that ComfyUI manages, and these tensors for its own."""
    with torch.device("meta"):
        managed = SubjectEncoder(encoder.config, operations=comfy.ops.manual_cast)
    managed.load_state_dict(tensors, assign=True)
    managed.eval().requires_grad_(False)
    managed.adopt_fingerprint(encoder)  # of the same weights: they are not hashed again
    return managed


def _copy_encoder(
    managed: SubjectEncoder, source: str, offload_device: torch.device
) -> comfy.model_patcher.ModelPatcher:
    with torch.inference_mode(False), torch.no_grad():
        state = managed.state_dict()
        tensors = {name: tensor.to(offload_device, copy=True) for name, tensor in state.items()}
        return manage_encoder(_with_tensors(managed, tensors), source).patcher


def new_patcher(
    model: nn.Module,
    load_device: torch.device,
    offload_device: torch.device,
    *,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A model in ComfyUI's hands, of the kind that ComfyUI manages its own with.

    One of another kind would be estimated by older rules, and make ComfyUI unload other models.
    disable_dynamic: of the older kind nevertheless, which newer versions ask for where they need it.
    """
    try:
        newest = comfy.model_patcher.CoreModelPatcher
    except AttributeError:  # older versions have one kind
        newest = comfy.model_patcher.ModelPatcher
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else newest
    return kind(model, load_device, offload_device)


class SiteValues(nn.Module, comfy.ops.CastWeightBiasOp):
    """K̆ and V̆ of one site, (1, N, inner) each.

    They are called weight and bias because these two are what ComfyUI moves of a layer that may stay
    offloaded.
    """

    comfy_cast_weights = True  # ComfyUI may leave it offloaded, since `forward` brings its tensors along

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(key, requires_grad=False)
        self.bias = nn.Parameter(value, requires_grad=False)

    def forward(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.weight.device == device:
            return self.weight, self.bias
        cast = {"dtype": self.weight.dtype, "bias_dtype": self.bias.dtype, "device": device}
        try:
            give_back = comfy.ops.uncast_bias_weight
        except AttributeError:  # older versions hand out tensors to keep
            return comfy.ops.cast_bias_weight(self, **cast)
        key, value, stream = comfy.ops.cast_bias_weight(self, **cast, offloadable=True)
        kept = key.clone(), value.clone()  # of what is given back, before the next layer gets its place
        give_back(self, key, value, stream)
        return kept


class SubjectValues(nn.Module):
    """K̆ and V̆ of a subject at every site of a UNet."""

    def __init__(self, values: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.sites = nn.ModuleDict({site_key(name): SiteValues(*pair) for name, pair in values.items()})

    def forward(self, site: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Site name → K̆, V̆, each (1, N, inner), on `device`."""
        return self.sites[site_key(site)](device)

    def copied(self, device: torch.device) -> SubjectValues:
        """On a device, with tensors of its own, and without what ComfyUI keeps on modules and layers of where
        and how these are loaded."""
        fresh = SubjectValues({})
        for name, one in self.sites.items():
            fresh.sites[name] = SiteValues(*(x.to(device, copy=True) for x in one.parameters()))
        return fresh


def subject_values(
    handle: SubjectEncoderHandle,
    subject: Subject,
    *,
    dtype: torch.dtype,
    load_device: torch.device,
    offload_device: torch.device,
) -> comfy.model_patcher.ModelPatcher:
    """A managed SubjectValues, from the cache where the same tokens were projected before."""
    tokens = hashlib.blake2b(digest_size=16)
    tokens.update(subject.tokens.detach().float().cpu().contiguous().numpy().tobytes())
    key = (handle.fingerprint, tokens.hexdigest(), dtype, str(load_device), str(offload_device))
    return _cache.get(key, lambda: _project(handle, subject, dtype, load_device, offload_device))


def _project(
    handle: SubjectEncoderHandle,
    subject: Subject,
    dtype: torch.dtype,
    load_device: torch.device,
    offload_device: torch.device,
) -> comfy.model_patcher.ModelPatcher:
    widths = [site.inner_dim for site in handle.config.sites]
    size = 2 * len(subject.tokens) * (4 * max(widths) + dtype.itemsize * sum(widths))
    device = handle.load(extra_memory=size)
    # Tensors made in inference mode could not be moved by ComfyUI's clean-up, which runs outside of it.
    with torch.inference_mode(False), torch.no_grad():
        tokens = subject.tokens.to(device, torch.float32, copy=True)
        values = {  # one site after the other, so that only one is there in fp32
            name: (nested_key.to(offload_device, dtype), nested_value.to(offload_device, dtype))
            for name, (nested_key, nested_value) in handle.encoder.project_each(tokens)
        }
        return _manage_values(SubjectValues(values), load_device, offload_device)


def _manage_values(
    values: SubjectValues, load_device: torch.device, offload_device: torch.device
) -> comfy.model_patcher.ModelPatcher:
    patcher = new_patcher(values, load_device, offload_device)
    # Newer versions of ComfyUI run one copy of a model per GPU and ask here for another one.
    patcher.cached_patcher_init = (lambda *_, **__: _copy_values(values, load_device, offload_device), ())
    return patcher


def _copy_values(
    values: SubjectValues, load_device: torch.device, offload_device: torch.device
) -> comfy.model_patcher.ModelPatcher:
    with torch.inference_mode(False), torch.no_grad():
        return _manage_values(values.copied(offload_device), load_device, offload_device)


def copy_of(
    patcher: comfy.model_patcher.ModelPatcher, beside: Iterable[comfy.model_patcher.ModelPatcher]
) -> comfy.model_patcher.ModelPatcher:
    """Its copy for another GPU, which ComfyUI keeps `beside` the MODEL's in any order; else itself."""
    origin = getattr(patcher, "clone_base_uuid", None)  # older versions make no copies
    copies = (one for one in beside if origin is not None and one.clone_base_uuid == origin)
    return next((one for one in copies if one.model is not patcher.model), patcher)


class _Cache:
    """Projected subjects by what they were projected from.

    One that a MODEL holds is found as long as it lives. One that no MODEL holds any more is kept while
    ComfyUI has it loaded, so that a change of settings computes nothing again: at most CACHE_ENTRIES and
    CACHE_BYTES of them, but always the newest. What ComfyUI unloads is let go.
    """

    def __init__(self) -> None:
        self._alive: WeakValueDictionary[tuple[Any, ...], comfy.model_patcher.ModelPatcher] = (
            WeakValueDictionary()
        )
        self._kept: OrderedDict[tuple[Any, ...], comfy.model_patcher.ModelPatcher] = OrderedDict()
        self._lock = threading.RLock()  # projecting one subject may make ComfyUI unload another

    def get(self, key: tuple[Any, ...], make: Any) -> comfy.model_patcher.ModelPatcher:
        with self._lock:
            patcher = self._alive.get(key)
            if patcher is None:
                self._alive[key] = patcher = make()
                # Clones of a patcher call these too, and it is mostly a clone that ComfyUI loads. Copies for
                # other GPUs do as well, and are passed over.
                patcher.add_callback(CallbacksMP.ON_LOAD, partial(self._keep, key))
                patcher.add_callback(CallbacksMP.ON_DETACH, partial(self._drop, key))
            if key in self._kept:
                self._kept.move_to_end(key)
            return patcher

    def _keep(self, key: tuple[Any, ...], loaded: Any, *_: Any) -> None:
        with self._lock:
            patcher = self._alive.get(key)
            if patcher is not None and patcher.model is loaded.model:
                self._kept[key] = patcher
                self._kept.move_to_end(key)
            while len(self._kept) > 1 and self._full():
                self._kept.popitem(last=False)

    def _drop(self, key: tuple[Any, ...], unloaded: Any, whole: bool, *_: Any) -> None:
        """whole: it is unloaded, rather than exchanged for a clone.

        ComfyUI is in the middle of that, and would fail if the model vanished meanwhile: what is left is a
        reference that only the garbage collector undoes, and ComfyUI runs it afterwards.
        """
        with self._lock:
            if whole and key in self._kept and self._kept[key].model is unloaded.model:
                cycle: list[Any] = [self._kept.pop(key)]
                cycle.append(cycle)

    def _full(self) -> bool:
        size = sum(patcher.model_size() for patcher in self._kept.values())
        return len(self._kept) > CACHE_ENTRIES or size > CACHE_BYTES


_cache = _Cache()
