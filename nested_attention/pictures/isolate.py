"""Isolate Subject: pictures and masks → the subject on a plain background, in the middle of a square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from scipy.ndimage import maximum_filter1d
from torch import Tensor

from ..errors import NestedAttentionError
from .square import Square, cut

BACKGROUNDS = {"white": 1.0, "grey": 0.5, "black": 0.0}

SHOWN = 0.1
"""Value of a mask from which a pixel counts as the subject's when the crop is placed."""

_SMALLEST = 16
"""Longer side, in pixels, below which what a mask shows is no subject."""


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """How a subject is isolated. Raises NestedAttentionError for values out of range."""

    background: str = "white"
    padding: float = 0.1  # room on each side, in longer sides of the subject
    grow: int = 0  # pixels by which the mask is widened, or narrowed if negative
    feather: float = 0.0  # pixels over which the mask's edge goes from 0 to 1
    invert: bool = False
    size: int = 512  # pixels a side of the result

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise NestedAttentionError(
                f"the background is {self.background!r}; expected one of {', '.join(BACKGROUNDS)}"
            )
        ranges = {"padding": (0, 4), "grow": (-512, 512), "feather": (0, 512), "size": (64, 2048)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise NestedAttentionError(f"{name} is {value}; expected {low} to {high}")


def isolate_subjects(pictures: Tensor, masks: Tensor, how: Isolation) -> tuple[Tensor, Tensor]:
    """Pictures (n, height, width, 3) and masks (m, any height, any width), both in [0, 1] → (k, size, size,
    3) and (k, size, size), with k = max(n, m).

    One picture may have several masks, and one mask serve several pictures; else there is one mask for each
    picture. The square lies around everything a mask shows, in one piece or several. Raises
    NestedAttentionError, naming the picture, for an empty mask, and if the counts differ otherwise.
    """
    count = max(len(pictures), len(masks))
    if {len(pictures), len(masks)} - {1, count}:
        raise NestedAttentionError(
            f"{len(pictures)} pictures and {len(masks)} masks; expected one mask for each picture, or a "
            "single one of either"
        )
    images, alphas = [], []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        try:
            image, alpha = _isolate(picture, masks[number % len(masks)], how)
        except NestedAttentionError as error:
            raise NestedAttentionError(f"picture {number + 1} of {count}: {error}") from error
        images.append(image)
        alphas.append(alpha)
    return torch.stack(images), torch.stack(alphas)


def _isolate(picture: Tensor, mask: Tensor, how: Isolation) -> tuple[Tensor, Tensor]:
    ground = BACKGROUNDS[how.background]
    alpha = _shaped(1 - mask if how.invert else mask, picture.shape[0], picture.shape[1], how)
    square = square_around(alpha, how.padding)
    image = picture * alpha[..., None] + ground * (1 - alpha[..., None])
    return cut(image, square, how.size, ground), cut(alpha[..., None], square, how.size, 0.0)[..., 0]


def _shaped(mask: Tensor, height: int, width: int, how: Isolation) -> Tensor:
    """A mask at the picture's size, grown and feathered: (height, width)."""
    alpha = mask[None, None].float()
    if alpha.shape[-2:] != (height, width):
        larger = alpha.shape[2] >= height and alpha.shape[3] >= width
        mode = "area" if larger else "bilinear"
        alpha = functional.interpolate(alpha, (height, width), mode=mode, antialias=not larger).clamp(0, 1)
    alpha = grow(alpha, how.grow) if how.grow >= 0 else 1 - grow(1 - alpha, -how.grow)
    return feather(alpha, how.feather)[0, 0]


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Dilate (1, 1, height, width) by an octagon, which is nearly a disc, of that radius.

    The octagon is a diamond and a square, each of half the radius, and dilations add up. The time does not
    depend on the radius.
    """
    if pixels == 0:
        return mask
    grown = _grow_by_diamond(mask[0, 0].cpu().numpy(), (pixels + 1) // 2)
    for axis in (0, 1):
        grown = maximum_filter1d(grown, 2 * (pixels // 2) + 1, axis=axis)
    return torch.from_numpy(grown)[None, None]


def _grow_by_diamond(mask: np.ndarray, radius: int) -> np.ndarray:
    """(height, width) dilated by all pixels at most `radius` steps away, to the sides, up and down.

    A diamond is one line along each diagonal, which reach every other pixel of it, and one step for the rest.
    """
    half = (radius - 1) // 2
    padded = np.pad(mask, half + 1)
    height, width = padded.shape
    for line in (width + 1, width - 1):  # read in lines one longer, or shorter, its diagonals are columns
        sheared = np.zeros((-(-padded.size // line), line), mask.dtype)
        sheared.reshape(-1)[: padded.size] = padded.reshape(-1)
        sheared = maximum_filter1d(sheared, 2 * half + 1, axis=0, mode="constant")
        padded = sheared.reshape(-1)[: padded.size].reshape(height, width)
    mask = padded[half + 1 : height - half - 1, half + 1 : width - half - 1]
    for _ in range(radius - 2 * half):
        mask = np.maximum(maximum_filter1d(mask, 3, axis=0), maximum_filter1d(mask, 3, axis=1))
    return mask


def feather(mask: Tensor, pixels: float) -> Tensor:
    """Blur (1, 1, height, width) by a Gaussian, so that an edge goes from 0.02 to 0.98 within so many
    pixels."""
    if pixels <= 0:
        return mask
    deviation = pixels / 4
    radius = max(1, round(3 * deviation))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / deviation) ** 2)
    kernel /= kernel.sum()
    blurred = functional.pad(mask, (radius, radius, radius, radius), mode="replicate")
    for dim in (2, 3):  # by Fourier: a convolution takes seconds where the kernel is wide
        length = blurred.shape[dim]
        gains = torch.fft.rfft(kernel, length).unflatten(0, (-1, *[1] * (3 - dim)))
        spectrum = torch.fft.rfft(blurred, dim=dim) * gains
        # What went around the end is in the first 2 · radius.
        blurred = torch.fft.irfft(spectrum, length, dim=dim).narrow(dim, 2 * radius, length - 2 * radius)
    return blurred.clamp(0, 1)


def square_around(alpha: Tensor, padding: float) -> Square:
    """The square around all that a mask (height, width) shows, with room on each side."""
    shown = alpha >= SHOWN
    rows, columns = (shown.any(dim=d).nonzero().flatten() for d in (1, 0))
    if not len(rows):
        raise NestedAttentionError(
            f"the mask is empty (its largest value is {float(alpha.max()):.2g}). Paint or segment the "
            "subject, or disconnect the mask to have it estimated; Load Image gives an empty mask for a "
            "picture without transparency, and one that shows the surroundings for a cut-out, which needs "
            "invert"
        )
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longer = max(right - left, bottom - top)
    if longer < _SMALLEST:
        raise NestedAttentionError(
            f"the mask shows {right - left} × {bottom - top} pixels; expected a subject of at least "
            f"{_SMALLEST}. Check the mask, or take a larger picture"
        )
    return Square(complex(left + right, top + bottom) / 2, complex(longer * (0.5 + padding)))
