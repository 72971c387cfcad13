"""How good an encoder is on subjects that training never sees, while it is trained.

The training loss goes flat early, while likeness still grows. Two figures do not: how much less is lost with
the subject than without, by timestep; and how often, of several subjects, the right one fits a picture best.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from ..encoder import SubjectEncoder
from .data import Batch
from .frozen import BaseModel, load_vae
from .objective import denoising_losses
from .settings import ValidationSettings
from .shards import ShardData
from .subjects import SubjectObjective

BINS = 5
"""Stretches of the noise schedule; the middle of each is measured."""

RETRIEVAL = (0.45, 0.65, 0.85)
"""Timesteps, as shares of the schedule, at which subjects are told apart: where it is decided who is
drawn."""


class Validation:
    """Figures and pictures of the subjects that are held out: all of one size, at most `subjects` of them,
    each from another picture of it than the one that is predicted, where there is one."""

    def __init__(
        self,
        data: ShardData,
        objective: SubjectObjective,
        encoder: SubjectEncoder,
        settings: ValidationSettings,
        model: BaseModel,
        device: torch.device,
    ) -> None:
        self._data, self._objective, self._encoder = data, objective, encoder
        self._settings, self._device = settings, device
        largest = max(data.buckets, key=len)
        first = {data.row(int(row)).subject: int(row) for row in reversed(largest)}  # one a subject
        self._rows = sorted(first.values())[: settings.subjects]
        read = data.read(torch.tensor(self._rows), {})
        # On its own picture an encoder that copies would look best.
        self._references = [data.another(row) for row in self._rows]
        read["features"] = data.read(torch.tensor(self._references), {})["features"]
        self._batch = {name: values if name == "mask" else values.to(device) for name, values in read.items()}
        # Before the first step, which is lost if there is none.
        self._vae: Any = load_vae(model) if settings.sheet_steps else None

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """`base t…` and `nested t…`: mean squared errors without and with the subject; `gain`: how much
        smaller the latter is, as a share of the former, over all timesteps; `retrieval`: the share of
        pictures that are predicted best under their own subject of all, and `retrieval by chance`."""
        total = self._objective.scheduler.config.num_train_timesteps
        found: dict[str, float] = {}
        errors = []
        projections = self._objective.project(self._encoder, self._batch["features"])
        for number in range(BINS):
            t = int((number + 0.5) * total / BINS)
            nested, base = self._errors(projections, t, number), self._errors(None, t, number)
            errors.append(torch.stack([nested.mean(), base.mean()]))
            found |= {f"nested t{t}": float(nested.mean()), f"base t{t}": float(base.mean())}
        nested_all, base_all = torch.stack(errors).mean(dim=0).tolist()
        found["gain"] = 1 - nested_all / base_all
        if len(self._rows) > 1:
            found |= {
                "retrieval": self._retrieval(projections, total),
                "retrieval by chance": 1 / len(self._rows),
            }
        return found

    def _retrieval(self, projections: Mapping[str, tuple[Tensor, Tensor]], total: int) -> float:
        count = len(self._rows)
        errors = torch.zeros(count, count)  # (picture, subject)
        for turn in range(count):  # each picture meets the subject `turn` places further
            other = [(row + turn) % count for row in range(count)]
            turned = {site: (key[other], value[other]) for site, (key, value) in projections.items()}
            for number, share in enumerate(RETRIEVAL):
                found = self._errors(turned, int(share * total), BINS + number).cpu()
                errors[torch.arange(count), torch.tensor(other)] += found
        return float((errors.argmin(dim=1) == torch.arange(count)).float().mean())

    def _errors(
        self, projections: Mapping[str, tuple[Tensor, Tensor]] | None, timestep: int, seed: int
    ) -> Tensor:
        """(n,): of the prediction at a timestep, under noise that is the same each time."""
        batch, objective = self._batch, self._objective
        mean = batch["latent_mean"]
        latents = objective.scaled(mean, batch["latent_deviation"], torch.zeros_like(mean))
        text = {"context": batch["context"], "pooled": batch["pooled"]}
        self._bind(projections)
        losses = denoising_losses(
            lambda noisy, timesteps: objective.predict(noisy, timesteps, batch["sizes"], **text),
            objective.scheduler,
            latents,
            torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(self._device),
            torch.full((len(latents),), timestep, device=self._device),
            torch.ones(1, 1, 1, device=self._device),
        )
        return losses["plain"]

    def _bind(self, projections: Mapping[str, tuple[Tensor, Tensor]] | None) -> None:
        if projections is None:
            self._objective.slot.set()
        else:
            self._objective.bind(self._encoder, projections, self._batch["mask"])

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """A row a subject: its reference and true picture, and pictures without it and with it."""
        projections = self._objective.project(self._encoder, self._batch["features"])
        columns = [self._draw(None), self._draw(projections)]
        tile = 256
        sheet = Image.new("RGB", (4 * tile, len(self._rows) * tile), "white")
        for place, row in enumerate(self._references):
            known = self._data.folder / "held_out" / f"{self._data.row(row).keys['reference']}.png"
            if known.exists():
                sheet.paste(Image.open(known), (0, place * tile))
            for column, pictures in enumerate(columns, start=2):
                image = Image.fromarray(pictures[place])
                sheet.paste(image.resize((tile, tile)), (column * tile, place * tile))
        return sheet

    def _draw(self, projections: Mapping[str, tuple[Tensor, Tensor]] | None) -> np.ndarray:
        """(n, H, W, 3) uint8"""
        objective, batch = self._objective, self._batch
        # Schedules that say nothing of it would be taken to clip pixels at ±1, which latents exceed.
        scheduler = DDIMScheduler.from_config(objective.scheduler.config, clip_sample=False)
        scheduler.set_timesteps(self._settings.sheet_steps, device=self._device)
        shape = batch["latent_mean"].shape
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        x = x * scheduler.init_noise_sigma
        empty = {name: objective.blank[name].expand(len(x), *[-1] * (objective.blank[name].dim() - 1))
                 for name in ("context", "pooled")}  # fmt: skip
        text: Batch = {name: batch[name] for name in empty}
        for t in scheduler.timesteps:
            timesteps = t.expand(len(x))
            self._bind(projections)
            out = objective.predict(x, timesteps, batch["sizes"], **text)
            objective.slot.set()
            base = objective.predict(x, timesteps, batch["sizes"], **empty)
            x = scheduler.step(base + self._settings.guidance * (out - base), t, x).prev_sample
        return self._decode(x)

    def _decode(self, latents: Tensor) -> np.ndarray:
        assert self._vae is not None, "of a sheet"
        vae, scaling = self._vae.to(self._device), self._objective.latents
        stored = latents / scaling["scaling_factor"] + scaling["shift_factor"]
        pixels = torch.cat([vae.decode(one[None].to(vae.dtype)).sample.float() for one in stored])
        vae.cpu()
        return pixels.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def save_sheet(self, folder: Path, step: int) -> np.ndarray:
        """Write the sheet as `folder`/step-….jpg; its pixels (H, W, 3)."""
        folder.mkdir(parents=True, exist_ok=True)
        sheet = self.sheet()
        sheet.save(folder / f"step-{step:08d}.jpg", quality=90)
        return np.asarray(sheet)
