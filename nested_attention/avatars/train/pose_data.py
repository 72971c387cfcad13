"""Drawn data of the ControlNet and the LoRA: figures in any pose, with pose maps, and pictures in ink."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..drawing.ink import ink
from ..drawing.picture import Picture, render
from ..drawing.pose import Pose
from ..drawing.pose_map import pose_map
from ..drawing.prompts import caption, combination_split, sample_identities, sample_picture, without_place
from ..models.tokenizer import load_tokenizer
from .data import by_cell, cached, in_chunks, loss_weight_of

ALONE, TOGETHER = {"person": 0.6, "pet": 0.4}, {"person+pet": 0.6, "person+person": 0.4}

COLUMNS, TOPS = range(9, 24), range(6, 13)
"""Where figures are drawn for the ControlNet: also where no word places them. Of two,
one stands in each half of a wide picture."""

PLACELESS = 0.75
"""Share of captions that do not say where a figure stands, so that only the control picture does."""


@dataclass(frozen=True)
class PoseData:
    """Pictures of equal width with captions and pose maps; the first axis counts pictures."""

    rgb: np.ndarray  # (n, 32, W, 3) uint8
    maps: np.ndarray  # (n, 32, W, 3) uint8: pose maps
    ids: np.ndarray  # (n, 77) uint16: token ids of the caption
    loss_weight: np.ndarray  # (n, 16, W/2) float16: of each latent cell


def sample_posed(rng: np.random.Generator, kinds: str) -> Picture:
    """A picture whose figures stand anywhere, two of them side by side, in a combination for training."""
    while True:
        picture = _moved(rng, sample_picture(rng, sample_identities(rng, kinds)))
        if combination_split(picture) == "train":  # the placement is part of it
            return picture


def _moved(rng: np.random.Generator, picture: Picture) -> Picture:
    figures = []
    alone = len(picture.figures) == 1
    for figure in picture.figures:
        if alone:
            x = int(rng.choice(COLUMNS))
        else:
            x = int(rng.integers(9, 16)) + (24 if figure.placement == "right" else 0)
        pose = replace(figure.pose, x=x, y=int(rng.choice(TOPS)))
        figures.append(replace(figure, pose=pose, placement=_placement(pose) if alone else figure.placement))
    return replace(picture, figures=tuple(figures))


def _placement(pose: Pose) -> str:
    return "left" if pose.x < 14 else "right" if pose.x > 18 else "middle"


def draw_pose_data(
    number: int,
    seed: int,
    *,
    inked: bool = False,
    together: bool = False,
    workers: int = 2,
    cache: Path | None = None,
) -> PoseData:
    """Draw pictures in any pose, or (`inked`) ordinary ones in ink, of one figure each or (together) of
    two; or read them back from `cache`."""

    def draw() -> PoseData:
        parts = in_chunks(partial(_draw, inked, TOGETHER if together else ALONE), number, seed, workers)
        rows = [row for part in parts for row in part]
        rgb, maps, loss_weight = (np.stack([row[i] for row in rows]) for i in range(3))
        return PoseData(rgb, maps, load_tokenizer().encode_all([row[3] for row in rows]), loss_weight)

    name = f"{'ink' if inked else 'pose'}-{'two' if together else 'one'}-{number}-{seed}"
    return cached(cache, name, PoseData, draw)


def _draw(
    inked: bool, mix: dict[str, float], job: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """One chunk; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        kinds = str(rng.choice(list(mix), p=list(mix.values())))
        picture = sample_picture(rng, sample_identities(rng, kinds)) if inked else sample_posed(rng, kinds)
        drawn = render(replace(picture, style="photo") if inked else picture)
        text = caption(picture, rng, described=bool(rng.random() < 0.6))
        if not inked and rng.random() < PLACELESS:
            text = without_place(text)
        loss_weight = by_cell(loss_weight_of(drawn.part)).astype(np.float16)
        poses = [figure.pose for figure in picture.figures]
        rows.append((ink(drawn) if inked else drawn.rgb, pose_map(poses), loss_weight, text))
    return rows
