"""Two judges of generated pictures that learn, from drawings alone: half of these through the autoencoder.

`Recogniser` embeds the window in which a subject is looked for: it shows whoever is embedded nearby when
drawn as the prompt says. `PromptScorer` classifies what the prompt decides. The judge beside them,
`NearestDrawing`, learns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...errors import NestedAttentionError
from ...paths import SMALL_WORLD
from ..drawing.canvas import SIZE, WIDE
from ..drawing.identity import Identity
from ..drawing.picture import CROP, STYLES, Figure, Picture, crop, crop_window, render
from ..drawing.pose import EXPRESSIONS, PLACEMENTS, Pose
from ..drawing.scenes import SCENES
from ..drawing.shown import Shown, windows
from ..drawing.wardrobe import ACCESSORIES, CLOTHES
from .pixels import to_tensor
from .storage import read_float, write_half

PROMPT_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "scene": tuple(SCENES),
    "style": STYLES,
    "clothes": tuple(CLOTHES),
    "accessory": tuple(ACCESSORIES),
    "placement": PLACEMENTS,
    "expression": EXPRESSIONS,
}
"""What a prompt decides about a figure and its picture, with its values."""

WIDTH = 64
"""Numbers of an embedding."""


class IdentityScorer(Protocol):
    """Who a subject is, of some candidates."""

    def similarity(self, rgb: np.ndarray, shown: Sequence[Shown], candidates: Sequence[Identity]) -> Tensor:
        """Pictures (n, 32, W, 3) uint8 and how each one's subject is shown → (n, candidates)"""


def _block(inputs: int, outputs: int, *, halve: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, stride=2 if halve else 1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Network(nn.Module):
    """A small convolutional network: (n, 3, size, size) in [−1, 1] → (n, outputs)."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 32, halve=False),
            _block(32, 64, halve=True),
            _block(64, 64, halve=False),
            _block(64, 96, halve=True),
            _block(96, 96, halve=False),
            nn.Flatten(),
        )
        self.out = nn.Linear(96 * (size // 4) ** 2, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.out(self.body(pixels))
        return out


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Who a subject is, by the cosine between what a window shows and what drawings of a candidate show."""

    network: Network
    _looks: dict[tuple[Identity, Shown], Tensor] = field(default_factory=dict, init=False, repr=False)
    """The mean embedding (64,) of each candidate's drawings, once they were asked for."""

    @torch.no_grad()
    def embed(self, seen: np.ndarray) -> Tensor:
        """Windows (n, 28, 28, 3) uint8 → (n, 64) of length 1"""
        parts = [self.network(to_tensor(seen[start : start + 256])) for start in range(0, len(seen), 256)]
        return functional.normalize(torch.cat(parts), dim=-1)

    def looks(self, drawn: np.ndarray) -> Tensor:
        """What candidates look like, from `drawn_as` of each. (2n, 28, 28, 3) uint8 → (n, 64)"""
        means = self.embed(drawn).view(len(drawn) // len(GAZES), len(GAZES), -1).mean(dim=1)
        return functional.normalize(means, dim=-1)

    def similarity(self, rgb: np.ndarray, shown: Sequence[Shown], candidates: Sequence[Identity]) -> Tensor:
        seen = self.embed(windows(rgb, shown))
        rows = [self._candidates(candidates, one) @ here for one, here in zip(shown, seen, strict=True)]
        return torch.stack(rows)

    def _candidates(self, candidates: Sequence[Identity], shown: Shown) -> Tensor:
        """What each of them looks like as a prompt shows it. (candidates, 64)"""
        plain = replace(shown, placement="middle", together=False)  # where it stands changes nothing
        missing = [each for each in dict.fromkeys(candidates) if (each, plain) not in self._looks]
        if missing:
            drawn = np.concatenate([drawn_as(each, plain) for each in missing])
            for each, look in zip(missing, self.looks(drawn), strict=True):
                self._looks[each, plain] = look
        return torch.stack([self._looks[each, plain] for each in candidates])


GAZES = (-1, 1)
"""With which candidates are drawn."""


def drawn_as(identity: Identity, shown: Shown) -> np.ndarray:
    """A subject as a prompt shows it, with each of GAZES, in front of other scenes. (2, 28, 28, 3) uint8"""
    drawn = []
    for gaze, scene in zip(GAZES, ("beach", "forest"), strict=True):
        pose = Pose(SIZE // 2, 8, gaze, shown.expression)
        figure = Figure(identity, "middle", pose, shown.clothes, shown.accessory)
        drawn.append(crop(render(Picture((figure,), scene, shown.style)).rgb, crop_window(pose)))
    return np.stack(drawn)


@dataclass(frozen=True, eq=False)
class PromptScorer:
    """What the prompt decided, judged from the 32×32 pixels around each figure."""

    network: Network

    @torch.no_grad()
    def logits(self, seen: np.ndarray) -> dict[str, Tensor]:
        """Views (n, 32, 32, 3) uint8 → attribute → (n, values)"""
        return split_logits(self.network(to_tensor(seen)))

    def answers(self, rgb: np.ndarray, pictures: Sequence[Picture], number: int = 0) -> dict[str, Tensor]:
        """What each picture (n, 32, W, 3) uint8 shows of the figure of a number: attribute → (n,) int64"""
        figures = [picture.figures[number] for picture in pictures]
        seen = np.stack([view(picture, figure) for picture, figure in zip(rgb, figures, strict=True)])
        return {name: logits.argmax(-1) for name, logits in self.logits(seen).items()}


def split_logits(logits: Tensor) -> dict[str, Tensor]:
    """(n, all values) → attribute → (n, values)"""
    parts = logits.split([len(values) for values in PROMPT_ATTRIBUTES.values()], dim=-1)
    return dict(zip(PROMPT_ATTRIBUTES, parts, strict=True))


def view(rgb: np.ndarray, figure: Figure) -> np.ndarray:
    """The part of a picture in which a figure stands where it would if it were alone: all of one of a single
    figure, the left or the right two thirds of a wide one. (32, W, 3) → (32, 32, 3)"""
    wide = rgb.shape[1] == WIDE
    return crop(rgb, (WIDE - SIZE if wide and figure.placement == "right" else 0, 0), SIZE)


def prompt_labels(picture: Picture, number: int = 0) -> dict[str, int]:
    """What the prompt decides about the figure of a number, as indices into PROMPT_ATTRIBUTES."""
    figure = picture.figures[number]
    values = {
        "scene": picture.scene,
        "style": picture.style,
        "clothes": figure.clothes,
        "accessory": figure.accessory,
        "placement": figure.placement,
        "expression": figure.pose.expression,
    }
    return {name: PROMPT_ATTRIBUTES[name].index(value) for name, value in values.items()}


def new_recogniser_network() -> Network:
    return Network(size=CROP, outputs=WIDTH)


def new_prompt_network() -> Network:
    return Network(size=SIZE, outputs=sum(map(len, PROMPT_ATTRIBUTES.values())))


def save_scorer(folder: Path, name: str, network: Network) -> Path:
    """Write a scorer as fp16 safetensors; its file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_half(network, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def _load(network: Network, path: Path) -> Network:
    try:
        network.load_state_dict(read_float(path))
    except RuntimeError as error:
        raise NestedAttentionError(
            f"{path.name} does not fit the small world's judge ({str(error).splitlines()[-1].strip()}); "
            "expected the file that comes with the pack. Install the pack again, or train it anew"
        ) from error
    return network.eval().requires_grad_(False)


def load_recogniser(word: str, folder: Path = SMALL_WORLD) -> Recogniser:
    """The recogniser of people (`person`) or pets (`pet`)."""
    return Recogniser(_load(new_recogniser_network(), folder / f"scorer_{word}.safetensors"))


def load_prompt_scorer(folder: Path = SMALL_WORLD) -> PromptScorer:
    """The judge of scene, style, clothes, accessory, placement and expression."""
    return PromptScorer(_load(new_prompt_network(), folder / "scorer_prompt.safetensors"))
