"""Drawn data of the two stages that come after the subject encoders: held poses, and pictures in ink."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..drawing.ink import ink
from ..drawing.picture import Picture, render
from ..drawing.pose import Pose
from ..drawing.pose_map import pose_map
from ..drawing.prompts import caption, sample_identities, sample_picture, without_place
from ..models.tokenizer import load_tokenizer
from .data import EMPHASIS

MIX = {"person": 0.45, "pet": 0.3, "person+pet": 0.15, "person+person": 0.1}

COLUMNS, TOPS = range(6, 28, 2), range(4, 14, 2)
"""Where figures are drawn for the ControlNet: also where no word places them."""

PLACELESS = 0.75
"""Share of captions that do not say where a figure stands, so that only the control picture does."""


@dataclass(frozen=True)
class Held:
    """Pictures with their captions, and with what they are drawn after; the first axis counts pictures."""

    rgb: np.ndarray  # (n, 32, 32, 3) uint8
    maps: np.ndarray  # (n, 32, 32, 3) uint8: pose maps
    ids: np.ndarray  # (n, 77) uint16: token ids of the caption
    emphasis: np.ndarray  # (n, 16, 16) float16: weight of each latent cell in the loss


def sample_held(rng: np.random.Generator, kinds: str) -> Picture:
    """A picture whose figures stand anywhere; two of them side by side."""
    picture = sample_picture(rng, sample_identities(rng, kinds))
    figures = []
    for figure in picture.figures:
        columns = [
            x
            for x in COLUMNS
            if len(picture.figures) == 1 or (x <= 10 if figure.placement == "left" else x >= 22)
        ]
        pose = replace(figure.pose, x=int(rng.choice(columns)), y=int(rng.choice(TOPS)))
        figures.append(replace(figure, pose=pose, placement=_placement(pose)))
    return replace(picture, figures=tuple(figures))


def _placement(pose: Pose) -> str:
    return "left" if pose.x < 13 else "right" if pose.x > 19 else "middle"


def draw_held(
    number: int, seed: int, *, inked: bool = False, workers: int = 2, cache: Path | None = None
) -> Held:
    """Draw pictures of held poses, or (`inked`) ordinary ones in ink; or read them back from `cache`."""
    path = cache / f"{'ink' if inked else 'pose'}-{number}-{seed}.npz" if cache else None
    if path and path.exists():
        with np.load(path) as stored:
            return Held(**{name: stored[name] for name in stored.files})
    chunk = 500
    jobs = [(seed * 1_000_003 + start, min(chunk, number - start)) for start in range(0, number, chunk)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(partial(_draw, inked), jobs))
    rows = [row for part in parts for row in part]
    rgb, maps, emphasis = (np.stack([row[i] for row in rows]) for i in range(3))
    held = Held(rgb, maps, load_tokenizer().encode_all([row[3] for row in rows]), emphasis)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **vars(held))
        temporary.replace(path)
    return held


def _draw(inked: bool, job: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """One chunk; runs in a worker process."""
    seed, number = job
    rng = np.random.default_rng(seed)
    weight = np.asarray(list(EMPHASIS.values()), np.float32)
    rows = []
    for _ in range(number):
        kinds = str(rng.choice(list(MIX), p=list(MIX.values())))
        picture = sample_picture(rng, sample_identities(rng, kinds)) if inked else sample_held(rng, kinds)
        drawn = render(replace(picture, style="photo") if inked else picture)
        text = caption(picture, rng, described=bool(rng.random() < 0.6))
        if not inked and rng.random() < PLACELESS:
            text = without_place(text)
        emphasis = weight[drawn.part].reshape(16, 2, 16, 2).mean((1, 3)).astype(np.float16)
        poses = [figure.pose for figure in picture.figures]
        rows.append((ink(drawn) if inked else drawn.rgb, pose_map(poses), emphasis, text))
    return rows
