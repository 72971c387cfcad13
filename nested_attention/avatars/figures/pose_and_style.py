"""Whether a figure stands where the pose ControlNet puts it, and whether the ink LoRA draws in ink.

Held-out people are attached to prompts that do not say where they stand. The same prompts and seeds are drawn
with and without.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from ...evaluation.statistics import Rate, rate, top1
from ..drawing.canvas import SIZE
from ..drawing.identity import Half, Person
from ..drawing.ink import ink
from ..drawing.picture import Figure, Picture, crop, render
from ..drawing.pose_map import pose_map
from ..drawing.prompts import prompt, sample_identities, without_place
from ..drawing.references import sample_crop
from ..drawing.shown import Shown
from ..models.control import Control, load_control
from ..models.lora import lora_applied
from ..models.nearest import NearestDrawing
from ..models.world import Sampling
from ..train.pose_data import COLUMNS, TOPS, sample_posed
from .judges import Counts, Judges

WORD = Person.WORD
PLACES = tuple(product(COLUMNS, TOPS))
"""Where a figure is looked for that no word has placed."""
SEED = 0
"""Of the pictures that are asked for, and of their noise."""


@dataclass(frozen=True)
class PoseScore:
    """How far figures stand from their place in the control picture, and how well they are recognised."""

    columns: float  # mean distance in art pixels, across
    rows: float  # and down
    there: float  # share within one latent cell, 2 art pixels, both ways
    identity: Rate  # recognised among all of them, where they are found


@dataclass(frozen=True)
class StyleScore:
    """How far pictures are from drawings in ink, and how well their people are recognised."""

    distance: float  # Fréchet distance of patches of 4 × 4 art pixels, colours in [0, 1]
    identity: Rate


def posed_pictures(number: int, seed: int, half: Half = "development") -> list[Picture]:
    """Pictures of one held-out person each, in any pose that a control picture can show."""
    rng = np.random.default_rng(seed)
    return [_posed(rng, half) for _ in range(number)]


def _posed(rng: np.random.Generator, half: Half) -> Picture:
    picture = sample_posed(rng, WORD)
    (identity,) = sample_identities(rng, WORD, half)
    return replace(picture, figures=(replace(picture.figures[0], identity=identity),))


def measure_pose(judges: Judges, counts: Counts, sampling: Sampling | None = None) -> dict[str, PoseScore]:
    """With and without the shipped ControlNet, by `"with"` and `"without"`."""
    pictures = posed_pictures(counts.pose_and_style, SEED, counts.half)
    maps = np.stack([pose_map([picture.figures[0].pose]) for picture in pictures])
    control = Control(load_control(), maps)
    return {
        name: _pose_score(judges, _drawn(judges, pictures, sampling, shown), pictures)
        for name, shown in (("without", None), ("with", control))
    }


def measure_style(judges: Judges, counts: Counts, sampling: Sampling | None = None) -> dict[str, StyleScore]:
    """With and without the shipped LoRA, by `"with"` and `"without"`."""
    pictures = posed_pictures(counts.pose_and_style, SEED, counts.half)
    true = [ink(render(replace(picture, style="photo"))) for picture in posed_pictures(500, SEED + 1)]
    scores = {}
    for name, style in (("without", nullcontext()), ("with", lora_applied(judges.world.unet))):
        with style:
            drawn = _drawn(judges, pictures, sampling, None, placed=True)
        distance = patch_distance(drawn, np.stack(true))
        scores[name] = StyleScore(distance, _recognised(judges, drawn, pictures, _found(drawn, pictures)))
    return scores


def find_pose(rgb: np.ndarray, figure: Figure, style: str) -> tuple[int, int]:
    """Column and row (as `Pose` has them) where a known figure stands in a picture that was to be drawn in a
    style: where its drawn head fits best."""
    shown = Shown(figure.placement, style, figure.clothes, figure.accessory)
    (pose,) = NearestDrawing().poses(rgb[None], [shown], [figure.identity], PLACES)
    return pose.x, pose.y


def patch_distance(one: np.ndarray, other: np.ndarray, size: int = 4) -> float:
    """Fréchet distance between the patches of two sets of pictures (n, 32, 32, 3) uint8."""

    def moments(rgb: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = torch.from_numpy(rgb).double().div(255).unfold(1, size, size).unfold(2, size, size)
        flat = tiles.reshape(-1, 3 * size * size)
        return flat.mean(0), flat.T.cov()

    (mean, cov), (mean_2, cov_2) = moments(one), moments(other)
    # The trace of the root of cov · cov_2, from its eigenvalues: real and at least 0, up to rounding.
    root = torch.linalg.eigvals(cov @ cov_2).real.clamp(min=0).sqrt().sum()
    return float((mean - mean_2).square().sum() + cov.trace() + cov_2.trace() - 2 * root)


def _drawn(
    judges: Judges,
    pictures: list[Picture],
    sampling: Sampling | None,
    control: Control | None,
    *,
    placed: bool = False,
) -> np.ndarray:
    """The pictures as the world draws them with their people attached. (n, 32, 32, 3) uint8"""
    rng = np.random.default_rng(SEED)
    texts = [prompt(picture, rng) for picture in pictures]
    crops = np.stack([sample_crop(rng, picture.figures[0].identity) for picture in pictures])
    attached = [judges.world.attach(judges.encoders[WORD], crops, WORD)]
    return judges.world.generate(
        texts if placed else [without_place(text) for text in texts],
        list(range(SEED, SEED + len(pictures))),
        attached,
        sampling or Sampling(),
        control,
    )


def _found(drawn: np.ndarray, pictures: list[Picture]) -> np.ndarray:
    """Where each picture's figure stands. (n, 2)"""
    pairs = zip(drawn, pictures, strict=True)
    return np.asarray([find_pose(rgb, picture.figures[0], picture.style) for rgb, picture in pairs])


def _pose_score(judges: Judges, drawn: np.ndarray, pictures: list[Picture]) -> PoseScore:
    poses, found = [picture.figures[0].pose for picture in pictures], _found(drawn, pictures)
    off = np.abs(found - np.asarray([(pose.x, pose.y) for pose in poses]))
    columns, rows = off.mean(0).tolist()
    there = float((off <= 2).all(1).mean())
    return PoseScore(columns, rows, there, _recognised(judges, drawn, pictures, found))


def _recognised(judges: Judges, drawn: np.ndarray, pictures: list[Picture], found: np.ndarray) -> Rate:
    """How many people the recogniser knows among all of them, where each figure is found. found (n, 2)"""
    figures = [picture.figures[0] for picture in pictures]
    places = zip(drawn, found, strict=True)
    moved = np.stack([crop(rgb, (int(x) - SIZE // 2, int(y) - 8), SIZE) for rgb, (x, y) in places])
    shown = [replace(Shown.of(picture), placement="middle") for picture in pictures]
    identities = [figure.identity for figure in figures]
    similarity = judges.recognisers[WORD].similarity(moved, shown, identities)
    return rate(top1(similarity, torch.arange(len(figures))))
