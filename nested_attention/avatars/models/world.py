"""The small world as torch modules: load it, draw from prompts, encode references. The demo uses it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ...encoder import SubjectEncoder
from ...errors import NestedAttentionError
from ...hosts.diffusers import AutomaticRegions, SelfAttentionSlot, SubjectBinding, SubjectSlot
from ...hosts.diffusers.processors import Attention
from ...paths import SMALL_WORLD
from ...settings import SubjectSettings
from ...training.mechanisms import Mechanism
from . import model
from .control import Control
from .model import LATENT, LATENT_CHANNELS, encode_text, time_ids
from .pixels import ids_for_both, to_rgb, to_vision
from .storage import read_float, write_half
from .tokenizer import load_tokenizer
from .vocabulary import CompactEmbedding

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "vision")
"""The files of the world, as diffusers names its folders: each `.safetensors` with a `.json` of its sizes."""

_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": model.UNET,
    "vae": model.VAE,
    "text_encoder": model.TEXT_L,
    "text_encoder_2": model.TEXT_G,
    "vision": model.VISION,
}
_MAKERS = {
    "unet": model.new_unet,
    "vae": model.new_vae,
    "text_encoder": model.new_text_l,
    "text_encoder_2": model.new_text_g,
    "vision": model.new_vision,
}


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled: the settings of the shipped workflows."""

    steps: int = 20
    guidance: float = 5.0
    batch: int = 16


@dataclass(frozen=True, eq=False)
class Attached:
    """A subject for each of a batch's prompts, attached to one word of every prompt.

    occurrence: which of the word's occurrences, from 0; None: all. region: SubjectBinding's. mechanism: how
    the tokens reach the layers; None: as hosts apply the encoder. All that share a picture have the same.
    """

    encoder: SubjectEncoder
    tokens: Tensor  # (B, N, token_dim): a subject a row
    word: str
    settings: SubjectSettings = SubjectSettings()
    occurrence: int | None = None
    region: Tensor | None = None  # (B, h, w)
    mechanism: Mechanism | None = None

    def rows(self, rows: slice) -> Attached:
        """The same for some of the prompts."""
        region = None if self.region is None else self.region[rows]
        return replace(self, tokens=self.tokens[rows], region=region)

    def bind(self, ids: np.ndarray, unet: UNet2DConditionModel) -> SubjectBinding:
        """The binding for prompts of these token ids (B, 77) in a UNet. Raises ValueError for one without the
        word."""
        token = load_tokenizer().encode(self.word)[1]
        mask = torch.from_numpy(ids.astype(np.int64) == token)
        if self.occurrence is not None:
            mask &= mask.cumsum(dim=1) == self.occurrence + 1
        missing = int((~mask.any(dim=1)).sum())
        if missing:
            raise ValueError(f"every prompt must contain {self.word!r}; {missing} of {len(ids)} do not")
        own = self.mechanism
        tokens = self.tokens.to(unet.device)
        return SubjectBinding(
            projections=own.project(self.encoder, unet, tokens) if own else self.encoder.project(tokens),
            mask=mask,
            settings=self.settings.trained_as(self.encoder.config),
            region=self.region,
        )


def attention_of(attached: Sequence[Attached]) -> Attention | None:
    """What the layers compute for subjects that share a picture. Raises ValueError if mechanisms differ."""
    found = {item.mechanism.attention if item.mechanism else None for item in attached}
    if len(found) > 1:
        raise ValueError(f"{len(found)} mechanisms in one picture; expected subjects of the same one")
    return next(iter(found), None)


@dataclass(frozen=True, eq=False)
class World:
    """The frozen modules of the small world."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    vision: CLIPVisionModelWithProjection

    @torch.no_grad()
    def features(self, crops: np.ndarray) -> Tensor:
        """Reference crops (n, 28, 28, 3) uint8 → features of the last layer before pooling (n, 197,
        width)."""
        return self.vision(to_vision(crops)).last_hidden_state

    @torch.no_grad()
    def attach(
        self, encoder: SubjectEncoder, crops: np.ndarray, word: str, attention_scale: float = 1.0
    ) -> Attached:
        """The subjects of reference crops (n, 28, 28, 3), one a prompt, with the α of their encoder."""
        tokens = encoder(self.features(crops))
        return Attached(encoder, tokens, word, SubjectSettings(attention_scale=attention_scale))

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, np.ndarray]:
        """Prompts → context (B, 77, 256), pooled (B, 160), token ids (B, 77)."""
        ids = load_tokenizer().encode_all(list(prompts))
        context, pooled = encode_text(self.text_encoder, self.text_encoder_2, *ids_for_both(ids))
        return context, pooled, ids

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        attached: Sequence[Attached] = (),
        sampling: Sampling = Sampling(),
        control: Control | None = None,
        latent_width: int = LATENT,
    ) -> np.ndarray:
        """Draw one picture a prompt. → (n, 32, 2 · latent_width, 3) uint8; latent_width: 16 for one
        figure, 24 for two. Each seed fixes its picture's noise, whatever the batch. `control`: a
        ControlNet, with a control picture a prompt."""
        slot = SubjectSlot.install(self.unet, attention_of(attached)) if attached else None
        bounds = slot is not None and any(item.settings.bound_self_attention for item in attached)
        apart = SelfAttentionSlot.install(slot) if slot is not None and bounds else None
        try:
            empty = self.text([""])
            parts = []
            for start in range(0, len(prompts), sampling.batch):
                rows = slice(start, start + sampling.batch)
                here = [item.rows(rows) for item in attached]
                guide = control.rows(rows) if control else None
                noise = _noise(seeds[rows], latent_width)
                parts.append(self._draw(prompts[rows], noise, here, empty, sampling, slot, guide))
            return np.concatenate(parts)
        finally:
            if apart:
                apart.remove()
            if slot:
                slot.remove()

    def _draw(
        self,
        prompts: Sequence[str],
        x: Tensor,
        attached: Sequence[Attached],
        negative_text: tuple[Tensor, Tensor, np.ndarray],
        sampling: Sampling,
        slot: SubjectSlot | None,
        control: Control | None,
    ) -> np.ndarray:
        """One batch of `generate`, from noise x (B, 12, 16, w)."""
        batch = len(prompts)
        context, pooled, ids = self.text(prompts)
        empty, empty_pooled, _ = negative_text
        bindings = [item.bind(ids, self.unet) for item in attached]
        device = self.unet.device  # the only part that may be on another one than the CPU
        context, pooled, empty, empty_pooled = (
            each.to(device) for each in (context, pooled, empty, empty_pooled)
        )
        scheduler = DDIMScheduler(**model.SCHEDULER)
        scheduler.set_timesteps(sampling.steps)
        x = x.to(device)
        sizes = torch.tensor([time_ids(x.shape[-1])], dtype=torch.float32, device=device).expand(batch, -1)
        positive = {"text_embeds": pooled, "time_ids": sizes}
        negative = {"text_embeds": empty_pooled.expand(batch, -1), "time_ids": sizes}
        regions = AutomaticRegions(slot, bindings, len(scheduler.timesteps)) if slot else None
        nothing = empty.expand(batch, -1, -1)
        for step, t in enumerate(scheduler.timesteps):
            more = control.residuals(x, t, context) if control else {}
            with slot.bind(*regions.at(step)) if slot and regions else nullcontext():
                out = self.unet(x, t, context, added_cond_kwargs=positive, **more).sample
            if sampling.guidance != 1:
                more = control.residuals(x, t, nothing) if control else {}
                base = self.unet(x, t, nothing, added_cond_kwargs=negative, **more).sample
                out = base + sampling.guidance * (out - base)
            x = scheduler.step(out, t, x).prev_sample
        return self.decode(x.cpu())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (n, 12, 16, w) → pictures (n, 32, 2·w, 3) uint8."""
        return to_rgb(self.vae.decode(latents).sample)


def _noise(seeds: Sequence[int], latent_width: int) -> Tensor:
    """(n, 12, 16, latent_width)"""
    shape = (LATENT_CHANNELS, LATENT, latent_width)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def save_part(folder: Path, name: str, module: nn.Module) -> tuple[Path, Path]:
    """Write one part of the world as fp16 safetensors with its sizes beside it; both files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, sizes = folder / f"{name}.safetensors", folder / f"{name}.json"
    write_half(module, weights)
    sizes.write_text(json.dumps(_CONFIGS[name], indent=2) + "\n")
    return weights, sizes


def load_part(folder: Path, name: str) -> nn.Module:
    """Read one part back, in fp32 and evaluation mode."""
    config = json.loads((folder / f"{name}.json").read_text())
    module = _MAKERS[name](config)
    state = read_float(folder / f"{name}.safetensors")
    ids = next((value for key, value in state.items() if key.endswith("token_embedding.token_ids")), None)
    if ids is not None:
        inner = getattr(module, "text_model", module)
        width = inner.embeddings.token_embedding.weight.shape[1]
        inner.embeddings.token_embedding = CompactEmbedding(ids.tolist(), torch.zeros(len(ids), width))
    missing, unexpected = module.load_state_dict(state, strict=False)
    wrong = [key for key in [*missing, *unexpected] if not key.endswith("position_ids")]
    if wrong:
        raise NestedAttentionError(
            f"{folder / name}.safetensors does not fit {name}.json: {', '.join(wrong[:5])}; expected the two "
            "files that come with the pack. Install the pack again, or train this part anew"
        )
    return module.eval().requires_grad_(False)


def load_world(folder: Path = SMALL_WORLD) -> World:
    """The shipped world. Raises FileNotFoundError or NestedAttentionError, naming the file, if a part is
    missing, and NestedAttentionError if one does not fit."""
    return World(*(load_part(folder, name) for name in PARTS))
