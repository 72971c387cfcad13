"""The judges that learn. They learn from drawings, half of them decoded by the autoencoder from noisy
latents.

Nothing here touches a caption, a subject encoder or a generated picture, and no checkpoint is chosen by a
score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...training.data import Arrays, Batch
from ...training.frozen import default_device
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..drawing.canvas import SIZE
from ..drawing.identity import KINDS, Identity, near_twins, sample, split_of
from ..drawing.picture import CROP, Picture, crop, render
from ..drawing.pose import Pose
from ..drawing.prompts import sample_identities, sample_picture
from ..drawing.shown import Shown
from ..models.cells import to_cells
from ..models.pixels import to_rgb, to_tensor
from ..models.scorers import (
    Network,
    new_prompt_network,
    new_recogniser_network,
    prompt_labels,
    split_logits,
    view,
)
from .data import cached, in_chunks

RECOGNISER_OPTIONS = TrainerOptions(seed=100, batch=20, rate=2e-3, ema=0.99, weight_decay=0.05)
PROMPT_OPTIONS = TrainerOptions(seed=200, batch=64, rate=2e-3, ema=0.99, weight_decay=0.05)

NOISE = 0.3
"""Largest standard deviation of the noise on latents."""

FAMILY = 5
"""Identities of a family, whom the recogniser has to tell apart: a subject, three near-twins of it, a
stranger."""

ALIKE = 0.6
"""Share of families whose pictures agree in all that a prompt says, but for the scene: as candidates are
drawn. In the others they agree in nothing, so that a subject is also known from any picture of it."""

TINT = 0.3
"""How far the contrast of a channel varies from family to family. A family's pictures change alike: other
colours, or left for right, are other subjects that are as hard to tell apart."""

COLOR, GRAIN = 0.02, 0.1
"""Standard deviation of each channel's contrast, and largest one of the noise on pixels."""


@dataclass(frozen=True)
class Families:
    """Pictures of subjects and their near-twins; the first axis counts families.

    The whole pictures are kept, of one figure, so that the autoencoder can be looked through.
    """

    rgb: np.ndarray  # (n, 5, 2, 32, 32, 3) uint8: two pictures of each identity
    corners: np.ndarray  # (n, 5, 2, 2) int8: top-left corner of each one's window


@dataclass(frozen=True)
class Prompted:
    """Views of figures, with what their prompts decide; the first axis counts figures."""

    rgb: np.ndarray  # (n, 32, 32, 3) uint8
    labels: np.ndarray  # (n, 6) int64: PROMPT_ATTRIBUTES


def draw_families(
    word: str, number: int, seed: int, *, workers: int = 2, cache: Path | None = None
) -> Families:
    """Draw `number` families of people or pets, or read them back from `cache`."""

    def draw() -> Families:
        rows = [
            row for part in in_chunks(partial(_draw_families, word), number, seed, workers) for row in part
        ]
        return Families(*(np.stack(parts) for parts in zip(*rows, strict=True)))

    return cached(cache, f"families-{word}-{number}-{seed}", Families, draw)


def _draw_families(word: str, job: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """One chunk; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    families = []
    for _ in range(number):
        identity = sample(KINDS[word], rng, "train")  # type: ignore[type-var]
        family = _family(identity, rng)
        like = sample_picture(rng, (identity,)) if rng.random() < ALIKE else None
        seen = [_seen(rng, each, like) for each in family for _ in range(2)]
        rgb, corners = (np.stack(parts) for parts in zip(*seen, strict=True))
        families.append(
            (rgb.reshape(FAMILY, 2, *rgb.shape[1:]), corners.astype(np.int8).reshape(FAMILY, 2, 2))
        )
    return families


def _family(identity: Identity, rng: np.random.Generator) -> list[Identity]:
    """A subject, near-twins of it and a stranger, all of the training split."""
    family: list[Identity] = [identity]
    while len(family) < FAMILY - 1:
        twins = near_twins(identity, rng, FAMILY)  # type: ignore[type-var]
        family += [twin for twin in twins if split_of(twin) == "train"]
    stranger = sample(type(identity), rng, "train")  # type: ignore[type-var]
    return [*family[: FAMILY - 1], stranger]


def _seen(
    rng: np.random.Generator, identity: Identity, like: Picture | None
) -> tuple[np.ndarray, np.ndarray]:
    """A picture (32, 32, 3) of an identity, and the corner of its window: as another picture has it, or any,
    a fifth of those beside somebody else."""
    beside = like is None and rng.random() < 0.2
    company = sample_identities(rng, "person" if rng.random() < 0.5 else "pet") if beside else ()
    picture = sample_picture(rng, (identity, *company))
    if like is not None:
        (figure,) = like.figures
        pose = Pose.sample(rng, figure.placement, figure.pose.expression)
        figures = (replace(figure, identity=identity, pose=pose),)
        picture = replace(picture, figures=figures, style=like.style)
    x, y = Shown.of(picture).corner
    figure = picture.figures[0]
    rgb = view(render(picture).rgb, figure)
    shift = SIZE // 2 if company and figure.placement == "right" else 0
    corner = (x - shift + int(rng.integers(-1, 2)), y + int(rng.integers(-1, 2)))
    return rgb, np.asarray(corner)


def draw_prompted(number: int, seed: int, *, workers: int = 2, cache: Path | None = None) -> Prompted:
    """Draw `number` figures, a third of them beside another one, or read them back from `cache`."""

    def draw() -> Prompted:
        rows = [row for part in in_chunks(_draw_prompted, number, seed, workers) for row in part]
        return Prompted(np.stack([rgb for rgb, _ in rows]), np.asarray([labels for _, labels in rows]))

    return cached(cache, f"prompted-{number}-{seed}", Prompted, draw)


def _draw_prompted(job: tuple[int, int]) -> list[tuple[np.ndarray, list[int]]]:
    """One chunk; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        kinds = rng.choice(("person", "pet", "person+pet", "person+person"), p=(0.35, 0.32, 0.18, 0.15))
        picture = sample_picture(rng, sample_identities(rng, str(kinds)), split=None)
        which = int(rng.integers(len(picture.figures)))
        rgb = view(render(picture).rgb, picture.figures[which])
        rows.append((rgb, list(prompt_labels(picture, which).values())))
    return rows


@torch.no_grad()
def through(vae: AutoencoderKL, rgb: np.ndarray, seed: int, batch: int = 256) -> np.ndarray:
    """Every second picture (n, 32, 32, 3) as the autoencoder gives it back from latents with noise."""
    generator, device = torch.Generator().manual_seed(seed), next(vae.parameters()).device
    out = rgb.copy()
    for start in range(0, len(rgb), 2 * batch):
        rows = slice(start, start + 2 * batch, 2)
        z = to_cells(to_tensor(rgb[rows]))
        level = NOISE * torch.rand(len(z), 1, 1, 1, generator=generator)
        noisy = z + level * torch.randn(z.shape, generator=generator)
        out[rows] = to_rgb(vae.decode(noisy.to(device)).sample.cpu())
    return out


class _Recognition(nn.Module):
    """The network, and the temperature of its contrast, which training alone needs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.temperature = nn.Parameter(torch.tensor(math.log(12.0)))


def _disturbed(pixels: Tensor, noise: Batch) -> Tensor:
    """(n, size, size, 3) uint8 → (n, 3, size, size), as screens and models vary it"""
    seen = to_tensor(pixels) * noise["contrast"].flatten(0, -4) + noise["pixels"].flatten(0, -4)
    return seen.clamp(-1, 1)


def _noise(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> dict[str, Any]:
    level = GRAIN * rng.random((*shape, 1, 1, 1), dtype=np.float32)
    return {
        "contrast": 1 + COLOR * rng.standard_normal((*shape, 3, 1, 1), dtype=np.float32),
        "pixels": level * rng.standard_normal((*shape, 3, size, size), dtype=np.float32),
    }


def _family_noise(rng: np.random.Generator) -> dict[str, Any]:
    """Of each picture, and of a family as a whole."""
    whole = {
        "channels": rng.permutation(3),
        "flipped": rng.random() < 0.5,
        "tint": 1 + TINT * (2 * rng.random((3, 1, 1), dtype=np.float32) - 1),
    }
    return {**_noise((FAMILY, 2), CROP, rng), **whole}


def _as_others(windows: Tensor, noise: Batch) -> Tensor:
    """Families as other subjects would look: (families, 5, 2, 28, 28, 3) uint8 → float, from 0 to 255"""
    rows = torch.arange(len(windows), device=windows.device)
    mixed = windows.movedim(-1, 1)[rows[:, None], noise["channels"]].float()  # (families, 3, 5, 2, 28, 28)
    flipped = torch.where(noise["flipped"].view(-1, *[1] * 5), mixed.flip(-1), mixed)
    tinted = (flipped - 127.5) * noise["tint"][:, :, None, None] + 127.5
    return tinted.clamp(0, 255).movedim(1, -1)


def _recognition(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    """Each picture of an identity against the other picture of it and of everybody else in the batch."""
    model = models["recogniser"]
    pixels = _as_others(batch["windows"], noise).flatten(0, 2)  # (families · 5 · 2, 28, 28, 3)
    seen = functional.normalize(model.network(_disturbed(pixels, noise)), dim=-1)
    one, other = seen.view(-1, 2, seen.shape[-1]).unbind(1)
    logits = one @ other.T * model.temperature.exp().clamp(max=60)
    own = torch.arange(len(logits), device=logits.device)
    losses = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
    return {"contrast": losses / 2}


def train_recogniser(
    folder: Path,
    drawn: Families,
    vae: AutoencoderKL,
    schedule: Schedule,
    options: TrainerOptions = RECOGNISER_OPTIONS,
) -> Network:
    """Train the recogniser of people or pets; returns the averaged one."""
    flat = drawn.rgb.reshape(-1, *drawn.rgb.shape[3:])
    corners = drawn.corners.reshape(-1, 2)
    seen = through(vae.to(default_device()), flat, options.seed)
    windows = np.stack([crop(rgb, (int(x), int(y))) for rgb, (x, y) in zip(seen, corners, strict=True)])
    data = Arrays(windows=windows.reshape(*drawn.rgb.shape[:3], CROP, CROP, 3))
    torch.manual_seed(options.seed)
    model = _Recognition(new_recogniser_network()).to(default_device())
    more: dict[str, Any] = {"loss_weights": {"contrast": 1.0}, "noise": _family_noise}
    Trainer(folder, {"recogniser": model}, data, _recognition, schedule, options, **more).run()
    return model.network


def _attributes(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    logits = split_logits(models["network"](_disturbed(batch["pixels"], noise)))
    losses = [
        functional.cross_entropy(each, batch["labels"][:, index], label_smoothing=0.02)
        for index, each in enumerate(logits.values())
    ]
    return {"attributes": torch.stack(losses).sum()}


def train_prompt_scorer(
    folder: Path,
    drawn: Prompted,
    vae: AutoencoderKL,
    schedule: Schedule,
    options: TrainerOptions = PROMPT_OPTIONS,
) -> Network:
    """Train the judge of what the prompt decided; returns the averaged one."""
    pixels = through(vae.to(default_device()), drawn.rgb, options.seed)
    torch.manual_seed(options.seed)
    network = new_prompt_network().to(default_device())
    more: dict[str, Any] = {"loss_weights": {"attributes": 1.0}, "noise": partial(_noise, (), SIZE)}
    data = Arrays(pixels=pixels, labels=drawn.labels.astype(np.int64))
    Trainer(folder, {"network": network}, data, _attributes, schedule, options, **more).run()
    return network
