"""A whole picture: one or two figures in a scene and a style; and the crop a subject is encoded from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import SIZE, Canvas
from .identity import Identity, Person
from .people import draw_person
from .pets import draw_pet
from .pose import Pose
from .scenes import SCENES
from .wardrobe import CLOTHES, draw_accessory, draw_clothes

STYLES = ("photo", "cartoon", "mosaic")

ENLARGE = 4
"""Picture pixels an art pixel: a picture is shown at 128×128, 8 pixels a latent, as in SDXL."""

CROP = 20
"""Art pixels a side of the aligned crop."""


@dataclass(frozen=True)
class Figure:
    """One figure of a picture: who, how it stands, and what it wears."""

    identity: Identity
    placement: str
    pose: Pose
    clothes: str = "plain"
    accessory: str = "none"


@dataclass(frozen=True)
class Picture:
    """What is to be drawn. `seed` fixes the small variations of the scene."""

    figures: tuple[Figure, ...]
    scene: str
    style: str
    seed: int = 0


@dataclass(frozen=True)
class Rendered:
    """A drawn picture: colours (32, 32, 3) uint8, part labels and subject numbers (32, 32) uint8."""

    rgb: np.ndarray
    part: np.ndarray
    subject: np.ndarray


def render(picture: Picture) -> Rendered:
    """Draw a picture. The same picture gives the same art pixels on every machine."""
    canvas = Canvas()
    SCENES[picture.scene][1](canvas, np.random.default_rng(picture.seed))
    canvas.part[:] = 0
    for number, figure in enumerate(picture.figures, start=1):
        canvas.current = number
        _draw(canvas, figure)
    canvas.current = 0
    return Rendered(_stylise(canvas, picture.style), canvas.part, canvas.subject)


def _draw(canvas: Canvas, figure: Figure) -> None:
    color = CLOTHES[figure.clothes][1]
    if isinstance(figure.identity, Person):
        draw_person(canvas, figure.identity, figure.pose, color)
    else:
        draw_pet(canvas, figure.identity, figure.pose, None if figure.clothes == "plain" else color)
    chin = figure.pose.y + 12
    draw_clothes(canvas, figure.clothes, figure.pose, chin)
    draw_accessory(canvas, figure.accessory, figure.pose, chin)


def _stylise(canvas: Canvas, style: str) -> np.ndarray:
    """Photo: soft light from the left. Cartoon: outlines, flat colours. Mosaic: tiles, dark grooves."""
    rgb = canvas.rgb.astype(np.float32)
    inside = canvas.subject > 0
    if style == "photo":
        for number in range(1, int(canvas.subject.max()) + 1):
            columns = np.nonzero((canvas.subject == number).any(axis=0))[0]
            if len(columns):
                light = int(columns.mean()) // 2 * 2 + 4
                shadow = (canvas.subject == number) & (np.arange(SIZE)[None, :] >= light)
                rgb[shadow] *= 0.84
    elif style == "cartoon":
        padded = np.pad(canvas.subject, 1, mode="edge")
        edge = np.zeros_like(inside)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            edge |= padded[dy : dy + SIZE, dx : dx + SIZE] != canvas.subject
        rgb[edge & ~inside] = (16, 12, 20)
        rgb[~inside & ~edge] = rgb[~inside & ~edge] * 0.55 + 255 * 0.45
    elif style == "mosaic":
        rgb[1::2, :] *= 0.8
        rgb[:, 1::2] *= 0.8
        rgb[0::2, 0::2] = rgb[0::2, 0::2] * 0.85 + 255 * 0.15
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def crop_window(pose: Pose) -> tuple[int, int]:
    """Top-left corner (x, y) of the aligned crop around a subject's head; it may reach over the border."""
    return pose.x - CROP // 2, pose.y - 6


def crop(rgb: np.ndarray, corner: tuple[int, int], size: int = CROP) -> np.ndarray:
    """Cut a square window; outside the picture its border is repeated. (…, 32, 32, 3) →
    (…, size, size, 3)"""
    x, y = corner
    rows = np.clip(np.arange(y, y + size), 0, SIZE - 1)
    columns = np.clip(np.arange(x, x + size), 0, SIZE - 1)
    return rgb[..., rows[:, None], columns[None, :], :]


def enlarge(rgb: np.ndarray, factor: int = ENLARGE) -> np.ndarray:
    """Show art pixels larger, crisply. (…, H, W, 3) → (…, H·factor, W·factor, 3)"""
    return rgb.repeat(factor, axis=-3).repeat(factor, axis=-2)
