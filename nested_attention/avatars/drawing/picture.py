"""A whole picture: one or two figures in a scene and a style; and the crop a subject is encoded from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import SIZE, Canvas
from .identity import Identity, Person
from .people import draw_person
from .pets import draw_pet
from .pose import Pose, width_of
from .scenes import SCENES
from .wardrobe import CLOTHES, draw_accessory, draw_clothes

STYLES = ("photo", "cartoon", "mosaic")

ENLARGE = 4
"""Picture pixels an art pixel: a picture is shown at 128×128 (two figures: 192×128), 8 pixels a
latent, as in SDXL."""

CROP = 28
"""Art pixels a side of the aligned crop: the whole head, hair and ears included."""


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
    """A drawn picture: colours (32, W, 3) uint8, part labels and subject numbers (32, W) uint8; W is 32
    for one figure and 48 for two."""

    rgb: np.ndarray
    part: np.ndarray
    subject: np.ndarray


def render(picture: Picture) -> Rendered:
    """Draw a picture. The same picture gives the same art pixels on every machine."""
    canvas = Canvas(width_of(len(picture.figures)))
    SCENES[picture.scene][1](canvas, np.random.default_rng(picture.seed))
    for number, figure in enumerate(picture.figures, start=1):
        canvas.current = number
        draw_figure(canvas, figure)
    return Rendered(_stylise(canvas, picture.style), canvas.part, canvas.subject)


def draw_figure(canvas: Canvas, figure: Figure) -> None:
    """Draw one figure, as the canvas's current subject."""
    identity, color = figure.identity.canonical(), CLOTHES[figure.clothes][1]
    if isinstance(identity, Person):
        chin = draw_person(canvas, identity, figure.pose, color)
    else:
        chin = draw_pet(canvas, identity, figure.pose, None if figure.clothes == "plain" else color)
    draw_clothes(canvas, figure.clothes, figure.pose, chin)
    draw_accessory(canvas, figure.accessory, figure.pose, chin)


def _stylise(canvas: Canvas, style: str) -> np.ndarray:
    """Photo: soft light from the left. Cartoon: outlines, flat colours. Mosaic: tiles of 4×4, dark
    grooves."""
    rgb = canvas.rgb.astype(np.float32)
    if style == "cartoon":
        inside = canvas.subject > 0
        padded = np.pad(canvas.subject, 1, mode="edge")
        edge = np.zeros_like(inside)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            edge |= padded[dy : dy + SIZE, dx : dx + canvas.width] != canvas.subject
        outline = edge & ~inside
        rgb = np.where(inside[..., None], rgb, rgb * 0.55 + 255 * 0.45)
        rgb[outline] = (16, 12, 20)
    else:
        rgb = rgb * canvas.light[..., None]
    if style == "mosaic":
        rows, columns = (groove(np.arange(size)) for size in canvas.light.shape)
        rgb = rgb * rows[:, None, None] * columns[:, None]
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def groove(position: np.ndarray) -> np.ndarray:
    """What a mosaic multiplies colours by in these rows or columns: tiles of 4, with dark grooves between."""
    place = position % 4
    return np.select([place == 3, place == 0], [0.8, 1.06], 1.0).astype(np.float32)


def crop_window(pose: Pose) -> tuple[int, int]:
    """Top-left corner (x, y) of the aligned crop around a subject's head; it may reach over the border."""
    return pose.x - CROP // 2, pose.y - 8


def crop(rgb: np.ndarray, corner: tuple[int, int], size: int = CROP) -> np.ndarray:
    """Cut a square window; outside the picture its border is repeated. (…, H, W, 3) → (…, size, size, 3)"""
    x, y = corner
    height, width = rgb.shape[-3:-1]
    rows = np.clip(np.arange(y, y + size), 0, height - 1)
    columns = np.clip(np.arange(x, x + size), 0, width - 1)
    return rgb[..., rows[:, None], columns[None, :], :]


def enlarge(rgb: np.ndarray, factor: int = ENLARGE) -> np.ndarray:
    """Show art pixels larger, crisply. (…, H, W, 3) → (…, H·factor, W·factor, 3)"""
    return rgb.repeat(factor, axis=-3).repeat(factor, axis=-2)
