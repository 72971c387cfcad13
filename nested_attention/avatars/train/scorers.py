"""Stage 5: the judges. They learn from drawings, half of them seen through the autoencoder with noisy
latents.

Nothing here touches a caption, a subject encoder or a generated picture, and no checkpoint is chosen by a
score.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from torch import Tensor, nn

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
from .loop import Budget, Run

BATCH = 64
NOISE = 0.3


@torch.no_grad()
def _through(vae: AutoencoderKL, rgb: np.ndarray, seed: int) -> np.ndarray:
    """Every second picture as the autoencoder gives it back, with noise on the latents."""
    generator = torch.Generator().manual_seed(seed)
    out = rgb.copy()
    for start in range(0, len(rgb), 2 * BATCH):
        rows = slice(start, start + 2 * BATCH, 2)
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


def _train(
    folder: Path, network: Classifier, pixels: np.ndarray, labels: np.ndarray, budget: Budget, seed: int
) -> Classifier:
    torch.manual_seed(seed)
    run = Run(folder, {"network": network}, rate=2e-3, budget=budget, ema=0.99, weight_decay=0.05)
    rng = np.random.default_rng([seed, run.step])
    inputs, targets = to_tensor(pixels), torch.from_numpy(labels)
    network.train()
    while not run.done:
        rows = torch.from_numpy(rng.integers(len(inputs), size=BATCH))
        x = inputs[rows]
        x = x * (1 + 0.1 * torch.randn(BATCH, 3, 1, 1)) + 0.1 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(
            x
        )
        answers = network(x.clamp(-1, 1))
        losses: list[Tensor] = [
            functional.cross_entropy(logits, targets[rows, index], label_smoothing=0.02)
            for index, logits in enumerate(answers.values())
        ]
        run.update(torch.stack(losses).sum())
        if run.step % 250 == 0:
            run.save()
    run.save()
    average: Classifier = run.average["network"]  # type: ignore[assignment]
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)
    return average.eval()


def train_identity_scorer(
    folder: Path, word: str, vae: AutoencoderKL, budget: Budget, *, examples: int = 9_000, seed: int = 100
) -> nn.Module:
    """The recogniser of people or pets."""
    windows, labels = _identity_examples(word, examples, seed, vae)
    torch.manual_seed(seed)
    return _train(folder, new_identity_network(KINDS[word]), windows, labels, budget, seed)


def train_prompt_scorer(
    folder: Path, vae: AutoencoderKL, budget: Budget, *, examples: int = 9_000, seed: int = 200
) -> nn.Module:
    """The judge of what the prompt decided."""
    pixels, labels = _prompt_examples(examples, seed, vae)
    assert labels.shape[1] == len(PROMPT_ATTRIBUTES)
    torch.manual_seed(seed)
    return _train(folder, new_prompt_network(), pixels, labels, budget, seed)
