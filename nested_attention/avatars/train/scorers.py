"""The judges. They learn from drawings, half of them decoded by the autoencoder from noisy latents.

Nothing here touches a caption, a subject encoder or a generated picture, and no checkpoint is chosen by a
score.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor

from ...training.data import Arrays, Batch
from ...training.schedule import Schedule
from ...training.trainer import Trainer, TrainerOptions
from ..drawing.identity import KINDS, Identity, sample, values_of
from ..drawing.picture import crop, render
from ..drawing.pose import window
from ..drawing.prompts import sample_identities, sample_picture
from ..models.pixels import to_rgb, to_tensor
from ..models.scorers import (
    PROMPT_ATTRIBUTES,
    Classifier,
    new_identity_network,
    new_prompt_network,
    prompt_labels,
)

OPTIONS = TrainerOptions(batch=64, rate=2e-3, ema=0.99, weight_decay=0.05)
NOISE = 0.3


@torch.no_grad()
def _through(vae: AutoencoderKL, rgb: np.ndarray, seed: int) -> np.ndarray:
    """Every second picture as the autoencoder gives it back, with noise on the latents."""
    generator = torch.Generator().manual_seed(seed)
    out = rgb.copy()
    for start in range(0, len(rgb), 2 * OPTIONS.batch):
        rows = slice(start, start + 2 * OPTIONS.batch, 2)
        z = vae.encode(to_tensor(rgb[rows])).latent_dist.mean
        level = NOISE * torch.rand(len(z), 1, 1, 1, generator=generator)
        out[rows] = to_rgb(vae.decode(z + level * torch.randn(z.shape, generator=generator)).sample)
    return out


def _identity_examples(
    word: str, number: int, seed: int, vae: AutoencoderKL
) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, 20, 20, 3) around subjects, a fifth of them beside another subject; their attributes."""
    rng = np.random.default_rng(seed)
    kind = KINDS[word]
    rgb, corners, labels = [], [], []
    for _ in range(number):
        identity: Identity = sample(kind, rng, "train")  # type: ignore[type-var]
        company = (
            sample_identities(rng, "pet" if word == "person" else "person") if rng.random() < 0.2 else ()
        )
        picture = sample_picture(rng, (identity, *company), split="train")
        figure = next(f for f in picture.figures if f.identity == identity)
        x, y = window(figure.placement)
        rgb.append(render(picture).rgb)
        corners.append((x + int(rng.integers(-1, 2)), y + int(rng.integers(-1, 2))))
        labels.append(values_of(identity))
    seen = _through(vae, np.stack(rgb), seed)
    windows = np.stack([crop(picture, corner) for picture, corner in zip(seen, corners, strict=True)])
    return windows, np.asarray(labels)


def _prompt_examples(number: int, seed: int, vae: AutoencoderKL) -> tuple[np.ndarray, np.ndarray]:
    """Whole pictures of one subject, and what their prompts decide."""
    rng = np.random.default_rng(seed)
    pictures = [
        sample_picture(rng, sample_identities(rng, "person" if rng.random() < 0.5 else "pet"), split=None)
        for _ in range(number)
    ]
    rgb = np.stack([render(picture).rgb for picture in pictures])
    return _through(vae, rgb, seed), np.asarray([list(prompt_labels(p).values()) for p in pictures])


def _noise(size: int, rng: np.random.Generator) -> dict[str, Any]:
    level = 0.1 * rng.random((1, 1, 1), dtype=np.float32)
    return {
        "contrast": 1 + 0.1 * rng.standard_normal((3, 1, 1), dtype=np.float32),
        "pixels": level * rng.standard_normal((3, size, size), dtype=np.float32),
    }


def _objective(batch: Batch, models: Any, noise: Batch) -> dict[str, Tensor]:
    seen = (to_tensor(batch["pixels"]) * noise["contrast"] + noise["pixels"]).clamp(-1, 1)
    losses = [
        functional.cross_entropy(logits, batch["labels"][:, index], label_smoothing=0.02)
        for index, logits in enumerate(models["network"](seen).values())
    ]
    return {"attributes": torch.stack(losses).sum()}


def _train(
    folder: Path, network: Classifier, pixels: np.ndarray, labels: np.ndarray, schedule: Schedule, seed: int
) -> Classifier:
    models, data = {"network": network}, Arrays(pixels=pixels, labels=labels)
    options, noise = replace(OPTIONS, seed=seed), partial(_noise, pixels.shape[1])
    weights = {"attributes": 1.0}
    Trainer(folder, models, data, _objective, schedule, options, loss_weights=weights, noise=noise).run()
    return network


def train_identity_scorer(
    folder: Path, word: str, vae: AutoencoderKL, schedule: Schedule, *, examples: int = 9_000, seed: int = 100
) -> Classifier:
    """The recogniser of people or pets."""
    windows, labels = _identity_examples(word, examples, seed, vae)
    torch.manual_seed(seed)
    return _train(folder, new_identity_network(KINDS[word]), windows, labels, schedule, seed)


def train_prompt_scorer(
    folder: Path, vae: AutoencoderKL, schedule: Schedule, *, examples: int = 9_000, seed: int = 200
) -> Classifier:
    """The judge of what the prompt decided."""
    pixels, labels = _prompt_examples(examples, seed, vae)
    assert labels.shape[1] == len(PROMPT_ATTRIBUTES)
    torch.manual_seed(seed)
    return _train(folder, new_prompt_network(), pixels, labels, schedule, seed)
