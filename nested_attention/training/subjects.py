"""The paper's training step (Sec. 3.3) on shards: a subject's picture, a caption, and a target that is
noised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attention import onto
from ..encoder import SubjectEncoder
from ..hosts.diffusers.binding import SubjectBinding
from ..hosts.diffusers.processors import SubjectSlot
from .data import Batch
from .mechanisms import mechanism_of
from .mechanisms.mechanism import Projections
from .objective import choose, denoising_losses, min_snr_weight
from .precision import arithmetic
from .settings import LossSettings

ON_HOST = ("mask", "drop_caption")
"""What a step reads on the host: where words are, and which captions are dropped."""


@dataclass(frozen=True)
class SubjectNoise:
    """What is random about an example (`Noise`). size: side of the largest latent in cells; smaller ones
    take a part of the noise."""

    settings: LossSettings
    channels: int
    size: int
    timesteps: int

    def __call__(self, rng: np.random.Generator) -> dict[str, Any]:
        settings, timesteps = self.settings, self.timesteps
        shape = (self.channels, self.size, self.size)
        drawn = {
            "latent": rng.standard_normal(shape, dtype=np.float32),
            "sampled": rng.standard_normal(shape, dtype=np.float32),
            "offset": rng.standard_normal((self.channels, 1, 1), dtype=np.float32),
            "timestep": min(timesteps - 1, int(timesteps * rng.random() ** settings.timestep_power)),
            "drop_caption": rng.random() < settings.drop_caption,
            "drop_picture": rng.random() < settings.drop_picture,
            "pair": rng.random(),
            "mate": rng.random(),
        }
        if settings.references > 1:  # drawn last, and only then, so that other runs keep their noise
            drawn["more"] = rng.random(settings.references, dtype=np.float32)
        return drawn


@dataclass(frozen=True, eq=False)
class SubjectObjective:
    """`Objective` of a subject encoder; it calls the model `encoder`.

    unet: frozen, with `slot` installed, on the device that trains. blank: ShardData's, on that device.
    latents: how the autoencoder's are scaled. precision: of the arithmetic.
    """

    unet: Any
    slot: SubjectSlot
    scheduler: Any
    blank: Batch
    latents: Mapping[str, float]
    settings: LossSettings
    precision: torch.dtype = torch.float32

    def __call__(self, batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
        dropped = noise["drop_caption"]  # on the host
        latents = self.scaled(batch["latent_mean"], batch["latent_deviation"], noise["sampled"])
        height, width = latents.shape[-2:]
        eps = noise["latent"][..., :height, :width] + self.settings.noise_offset * noise["offset"]
        blank, features = self.blank["features"], batch["features"]
        several = features.dim() == 4
        features = choose(noise["drop_picture"], blank[:, None] if several else blank, features)
        on_device = onto(dropped, features.device)
        text = {name: choose(on_device, self.blank[name], batch[name]) for name in ("context", "pooled")}
        mask = batch["mask"] & ~dropped[:, None]
        weight = batch["loss_weight"].float()
        if self.settings.min_snr is not None:
            snr = min_snr_weight(self.scheduler, noise["timestep"], self.settings.min_snr)
            weight = weight * snr[:, None, None]
        encoder: SubjectEncoder = models["encoder"]
        projections = self.project(encoder, features)
        self.bind(encoder, projections, mask, batch.get("shown"))
        losses = denoising_losses(
            lambda noisy, timesteps: self.predict(noisy, timesteps, batch["sizes"], **text),
            self.scheduler,
            latents,
            eps,
            noise["timestep"],
            weight,
        )
        if not bool(mask.any()):  # nothing is attached, and the loss depends on nothing that is trained
            losses["denoise"] = losses["denoise"] + 0 * sum(
                k.sum() + v.sum() for k, v in projections.values()
            )
        return losses

    def project(self, encoder: SubjectEncoder, features: Tensor) -> Projections:
        """Features (B, patches, width) as keys and values of every layer, by its mechanism; those of
        several pictures of each subject, (B, pictures, patches, width), as keys and values of all of their
        tokens, one picture's after another's."""
        with arithmetic(features.device, self.precision):
            tokens = encoder(features.float().flatten(0, -3))  # (B · pictures, N, token_dim)
            tokens = tokens.reshape(len(features), -1, tokens.shape[-1])
            return mechanism_of(encoder.config).project(encoder, self.unet, tokens)

    def bind(
        self,
        encoder: SubjectEncoder,
        projections: Mapping[str, tuple[Tensor, Tensor]],
        mask: Tensor,
        shown: Tensor | None = None,
    ) -> None:
        """Attach subjects to the rows of the passes to come, and to those that checkpointing runs again.
        shown: which of several pictures count, (B, pictures) bool; None: all."""
        bias = None
        if shown is not None:
            bias = torch.zeros(shown.shape, device=shown.device).masked_fill(~shown, -math.inf)
            bias = bias.repeat_interleave(encoder.config.num_queries, dim=1)  # (B, pictures · N)
        settings = mechanism_of(encoder.config).settings(encoder.config)
        binding = SubjectBinding(projections=dict(projections), mask=mask, settings=settings, token_bias=bias)
        # An example shows one picture at least: its bias needs no look, for which a step would wait.
        self.slot.set(binding, check=bias is None)

    def scaled(self, mean: Tensor, deviation: Tensor, sampled: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the UNet knows them, from the autoencoder's and standard noise that is at
        least as large."""
        height, width = mean.shape[-2:]
        drawn = mean.float() + deviation.float() * sampled[..., :height, :width]
        return (drawn - self.latents["shift_factor"]) * self.latents["scaling_factor"]

    def predict(
        self, noisy: Tensor, timesteps: Tensor, sizes: Tensor, context: Tensor, pooled: Tensor
    ) -> Tensor:
        """The UNet's prediction in fp32: noisy latents (B, C, h, w), timesteps (B,), sizes (B, 6), text."""
        added = {"text_embeds": pooled.to(self.dtype), "time_ids": sizes.float()}
        with arithmetic(noisy.device, self.precision):
            out = self.unet(noisy.to(self.dtype), timesteps, context.to(self.dtype), added_cond_kwargs=added)
        return out.sample.float()

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet's inputs."""
        return self.unet.conv_in.weight.dtype
