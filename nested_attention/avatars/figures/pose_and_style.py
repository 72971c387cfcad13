"""Whether a figure stands where the pose ControlNet puts it, and whether the ink LoRA draws in ink.

Held-out people are attached to prompts that do not say where they stand. The same prompts and seeds are drawn
with and without.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..drawing.canvas import Part
from ..drawing.identity import Person
from ..drawing.ink import ink
from ..drawing.picture import Figure, Picture, crop, crop_window, render
from ..drawing.pose_map import pose_map
from ..drawing.prompts import prompt, sample_identities, without_place
from ..drawing.references import sample_crop
from ..models.control import Control, load_control
from ..models.lora import lora_applied
from ..models.scorers import IdentityScorer
from ..models.world import Sampling
from ..train.pose_data import COLUMNS, TOPS, sample_posed
from .judges import Judges

WORD = Person.WORD
AS_SHIPPED = Sampling()


@dataclass(frozen=True)
class PoseScore:
    """How far figures stand from their place in the control picture, and how well they are recognised."""

    columns: float  # mean distance in art pixels, across
    rows: float  # and down
    there: float  # share within one latent cell, 2 art pixels, both ways
    attributes: float  # share of the identity's attributes that are recognised


@dataclass(frozen=True)
class StyleScore:
    """How far pictures are from drawings in ink, and how well their people are recognised."""

    distance: float  # Fréchet distance of patches of 4 × 4 art pixels, colours in [0, 1]
    attributes: float


def posed_pictures(number: int, seed: int) -> list[Picture]:
    """Pictures of one held-out person each, in any pose that a control picture can show."""
    rng = np.random.default_rng(seed)
    return [_posed(rng) for _ in range(number)]


def _posed(rng: np.random.Generator) -> Picture:
    picture = sample_posed(rng, WORD)
    (identity,) = sample_identities(rng, WORD, "heldout")
    return replace(picture, figures=(replace(picture.figures[0], identity=identity),))


def measure_pose(
    judges: Judges, number: int, seed: int = 0, sampling: Sampling = AS_SHIPPED
) -> dict[str, PoseScore]:
    """With and without the shipped ControlNet, by `"with"` and `"without"`."""
    pictures = posed_pictures(number, seed)
    maps = np.stack([pose_map([picture.figures[0].pose]) for picture in pictures])
    control = Control(load_control(), maps)
    return {
        name: _pose_score(judges, _drawn(judges, pictures, seed, sampling, shown), pictures)
        for name, shown in (("without", None), ("with", control))
    }


def measure_style(
    judges: Judges, number: int, seed: int = 0, sampling: Sampling = AS_SHIPPED
) -> dict[str, StyleScore]:
    """With and without the shipped LoRA, by `"with"` and `"without"`."""
    pictures = posed_pictures(number, seed)
    true = [ink(render(replace(picture, style="photo"))) for picture in posed_pictures(500, seed + 1)]
    scores = {}
    for name, style in (("without", nullcontext()), ("with", lora_applied(judges.world.unet))):
        with style:
            drawn = _drawn(judges, pictures, seed, sampling, None, placed=True)
        distance = patch_distance(drawn, np.stack(true))
        scores[name] = StyleScore(distance, _attributes(judges.identity[WORD], drawn, pictures))
    return scores


def find_pose(rgb: np.ndarray, figure: Figure) -> tuple[int, int]:
    """Column and row (as `Pose` has them) where a known figure stands: where its drawn head fits best."""

    def misfit(place: tuple[int, int]) -> float:
        pose = replace(figure.pose, x=place[0], y=place[1])
        drawn = render(Picture((replace(figure, pose=pose),), "room", "cartoon"))
        head = (drawn.subject > 0) & (drawn.part != Part.BODY)
        return float(np.abs(rgb[head].astype(np.float32) - drawn.rgb[head]).mean())

    return min(((x, y) for x in COLUMNS for y in TOPS), key=misfit)


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
    seed: int,
    sampling: Sampling,
    control: Control | None,
    *,
    placed: bool = False,
) -> np.ndarray:
    """The pictures as the world draws them with their people attached. (n, 32, 32, 3) uint8"""
    rng = np.random.default_rng(seed)
    texts = [prompt(picture, rng) for picture in pictures]
    crops = np.stack([sample_crop(rng, picture.figures[0].identity) for picture in pictures])
    attached = [judges.world.attach(judges.encoders[WORD], crops, WORD)]
    return judges.world.generate(
        texts if placed else [without_place(text) for text in texts],
        list(range(seed, seed + len(pictures))),
        attached,
        sampling,
        control,
    )


def _pose_score(judges: Judges, drawn: np.ndarray, pictures: list[Picture]) -> PoseScore:
    figures = [picture.figures[0] for picture in pictures]
    found = np.asarray([find_pose(rgb, figure) for rgb, figure in zip(drawn, figures, strict=True)])
    off = np.abs(found - np.asarray([(figure.pose.x, figure.pose.y) for figure in figures]))
    columns, rows = off.mean(0).tolist()
    there = float((off <= 2).all(1).mean())
    return PoseScore(columns, rows, there, _attributes(judges.identity[WORD], drawn, pictures, found))


def _attributes(
    scorer: IdentityScorer, drawn: np.ndarray, pictures: list[Picture], found: np.ndarray | None = None
) -> float:
    """Share of attributes recognised where each figure is found (by default, where it is looked for)."""
    figures = [picture.figures[0] for picture in pictures]
    places = found if found is not None else [find_pose(r, f) for r, f in zip(drawn, figures, strict=True)]
    windows = [
        crop(rgb, crop_window(replace(figure.pose, x=int(x), y=int(y))))
        for rgb, figure, (x, y) in zip(drawn, figures, places, strict=True)
    ]
    correct = scorer.correct(np.stack(windows), [figure.identity for figure in figures])
    return float(torch.stack(list(correct.values())).float().mean())
