"""Two judges of generated pictures, trained apart from everything that generates.

`IdentityScorer` classifies each attribute of a subject in the window where it stands; retrieval compares the
classifiers' log-likelihoods. `PromptScorer` classifies what the prompt decides, from the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...paths import SMALL_WORLD
from ..drawing.identity import KINDS, Identity, Person, Pet, attributes
from ..drawing.picture import STYLES, Picture
from ..drawing.pose import PLACEMENTS
from ..drawing.scenes import SCENES
from ..drawing.wardrobe import ACCESSORIES, CLOTHES
from .pixels import to_tensor
from .storage import read_float, write_half

PROMPT_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "scene": tuple(SCENES),
    "style": STYLES,
    "clothes": tuple(CLOTHES),
    "accessory": tuple(ACCESSORIES),
    "placement": PLACEMENTS,
}


def _block(inputs: int, outputs: int, *, halve: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, stride=2 if halve else 1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Classifier(nn.Module):
    """A small convolutional network with one linear answer an attribute."""

    def __init__(self, answers: dict[str, int], size: int, width: int = 32, features: int = 192) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, width, halve=False),
            _block(width, 2 * width, halve=True),
            _block(2 * width, 2 * width, halve=False),
            _block(2 * width, 4 * width, halve=True),
            nn.Flatten(),
            nn.Linear(4 * width * (size // 4) ** 2, features),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(features, number) for name, number in answers.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(n, 3, size, size) in [−1, 1] → logits (n, values) for each attribute."""
        features = self.body(pixels)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True, eq=False)
class IdentityScorer:
    """Who a subject is, judged from a 20×20 window around its place."""

    kind: type[Person] | type[Pet]
    network: Classifier

    @torch.no_grad()
    def log_probabilities(self, windows: np.ndarray) -> dict[str, Tensor]:
        """(n, 20, 20, 3) uint8 → attribute → (n, values)"""
        return {name: logits.log_softmax(-1) for name, logits in self.network(to_tensor(windows)).items()}

    def similarity(self, windows: np.ndarray, candidates: list[Identity]) -> Tensor:
        """Log-likelihood of every candidate given every window. → (n, candidates)"""
        answers = self.log_probabilities(windows)
        total = torch.zeros(len(windows), len(candidates))
        for name, logs in answers.items():
            index = torch.tensor([getattr(candidate, name) for candidate in candidates])
            total += logs.clamp(min=-8.0)[:, index]
        return total

    def correct(self, windows: np.ndarray, truth: list[Identity]) -> dict[str, Tensor]:
        """Attribute → (n,) bool: was it recognised?"""
        answers = self.log_probabilities(windows)
        return {
            name: logs.argmax(-1) == torch.tensor([getattr(identity, name) for identity in truth])
            for name, logs in answers.items()
        }


@dataclass(frozen=True, eq=False)
class PromptScorer:
    """What the prompt decided, judged from the whole picture of one subject."""

    network: Classifier

    @torch.no_grad()
    def correct(self, pictures_rgb: np.ndarray, pictures: list[Picture]) -> dict[str, Tensor]:
        """Attribute → (n,) bool for pictures (n, 32, 32, 3) uint8 of one figure each."""
        answers = self.network(to_tensor(pictures_rgb))
        wanted = [prompt_labels(picture) for picture in pictures]
        return {
            name: logits.argmax(-1) == torch.tensor([labels[name] for labels in wanted])
            for name, logits in answers.items()
        }


def prompt_labels(picture: Picture) -> dict[str, int]:
    """The prompt's attributes of a picture of one figure, as indices."""
    figure = picture.figures[0]
    values = {
        "scene": picture.scene,
        "style": picture.style,
        "clothes": figure.clothes,
        "accessory": figure.accessory,
        "placement": figure.placement,
    }
    return {name: PROMPT_ATTRIBUTES[name].index(value) for name, value in values.items()}


def new_identity_network(kind: type[Person] | type[Pet]) -> Classifier:
    return Classifier(attributes(kind), size=20)


def new_prompt_network() -> Classifier:
    return Classifier({name: len(values) for name, values in PROMPT_ATTRIBUTES.items()}, size=32)


def save_scorer(folder: Path, name: str, network: Classifier) -> None:
    """Write a scorer as fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_half(network, folder / f"{name}.safetensors")


def _load(network: Classifier, path: Path) -> Classifier:
    network.load_state_dict(read_float(path))
    return network.eval().requires_grad_(False)


def load_identity_scorer(word: str, folder: Path = SMALL_WORLD) -> IdentityScorer:
    """The recogniser of people (`person`) or pets (`pet`)."""
    kind = KINDS[word]
    return IdentityScorer(kind, _load(new_identity_network(kind), folder / f"scorer_{word}.safetensors"))


def load_prompt_scorer(folder: Path = SMALL_WORLD) -> PromptScorer:
    """The judge of scene, style, clothes, accessory and placement."""
    return PromptScorer(_load(new_prompt_network(), folder / "scorer_prompt.safetensors"))
