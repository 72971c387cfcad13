"""A mask of the subject where nobody has drawn one: what differs from the picture's border.

The background is what the border shows. Colours are gathered in a palette, and those that blend into each
other without an edge become one, as those of a wall that is darker in a corner do. What is commoner along the
border than within the subject belongs to the background. What the subject is follows from that, and the other
way round, so the two are estimated in turn, beginning with the picture's middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..errors import NestedAttentionError
from .isolate import feather

WORKING = 192
"""Longer side, in pixels, at which the estimate is made."""

COLOURS = 24
ROUNDS = 4
BORDER = 0.03  # width of the border, in longer sides
CORNER = 0.15  # how much of the lower border counts, from either end: subjects stand on it, or are cut by it
PIECE = 0.1  # area from which a piece beside the largest one belongs to the subject, in areas of that

MOST_SHARED = 0.25
"""Share of the colours that border and subject may have in common for the estimate to be trusted."""

LEAST, MOST = 0.03, 0.85  # part of the picture that a subject takes
MOST_BORDER = 0.35  # of the border

EDGE = 0.03  # change of a colour from one pixel to the next, of 1, from which there is an edge
MOST_BLURRED = 0.08  # part of the subject's outline that may lie on none


@dataclass(frozen=True, eq=False)
class Estimate:
    """mask: (height, width) in [0, 1], 1 on the subject. doubt: why it may be wrong, in a clause; empty if it
    can be trusted."""

    mask: Tensor
    doubt: str

    @property
    def sure(self) -> bool:
        return not self.doubt


def estimate_subject(picture: Tensor) -> Estimate:
    """Picture (height, width, 3) in [0, 1] → the subject that stands before a plain background.

    A plain background has few colours, or blends from one into another; a subject with colours of its own
    stands before it. Anything else, such as a meadow behind a green bird, gives a mask with a doubt.
    """
    height, width = picture.shape[:2]
    small = _small(picture)
    edges = _edges(small)
    labels = _blended(_palette(small), edges)
    border, inside = _border(labels.shape), _middle(labels.shape)
    subject = inside
    for _ in range(ROUNDS):
        subject = _pieces(_commoner_inside(labels, border, inside))
        inside = subject if subject.mean() >= LEAST else inside
    doubt = _doubt(edges, labels, border, subject)
    mask = torch.from_numpy(subject).float()[None, None]
    scale = max(height, width) / max(labels.shape)
    mask = torch.nn.functional.interpolate(mask, (height, width), mode="nearest-exact")
    return Estimate(feather(mask, 2 * scale if scale > 1 else 0.0)[0, 0], doubt)


def estimate_subjects(pictures: Tensor) -> tuple[Tensor, list[str]]:
    """Pictures (n, height, width, 3) → their masks (n, height, width), and a sentence about each that cannot
    be trusted. Raises NestedAttentionError where nothing differs from the border."""
    estimates = [estimate_subject(picture) for picture in pictures]
    for number, estimate in enumerate(estimates, 1):
        if not bool(estimate.mask.any()):
            raise NestedAttentionError(
                f"picture {number} of {len(pictures)}: nothing differs from its border, so no subject was "
                "found. Connect a mask of the subject, or take another picture"
            )
    doubts = [
        f"picture {number} of {len(pictures)}: the background could not be told from the subject with "
        f"certainty ({estimate.doubt}). Look at the preview; if it is wrong, connect a mask"
        for number, estimate in enumerate(estimates, 1)
        if estimate.doubt
    ]
    return torch.stack([estimate.mask for estimate in estimates]), doubts


def _small(picture: Tensor) -> Image.Image:
    rgb = (picture.detach().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    image = Image.fromarray(rgb)
    image.thumbnail((WORKING, WORKING), Image.Resampling.BOX)
    return image


def _palette(image: Image.Image) -> np.ndarray:
    """(h, w): which colour of a palette each pixel has."""
    return np.asarray(image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=2)).astype(np.intp)


def _edges(image: Image.Image) -> np.ndarray:
    """(h, w) bool: where a colour changes."""
    rgb = np.asarray(image, dtype=np.float32) / 255
    changes = [ndimage.gaussian_gradient_magnitude(rgb[..., channel], 1.0) for channel in range(3)]
    return np.asarray(np.max(changes, axis=0) >= EDGE)


def _blended(labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The same with one label for colours that meet without an edge more often than with one."""
    met, sharply = np.zeros((2, COLOURS, COLOURS))
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        pairs = labels[one], labels[other]
        np.add.at(met, pairs, 1)
        np.add.at(sharply, pairs, edges[one] | edges[other])
    met, sharply = met + met.T, sharply + sharply.T
    _, groups = connected_components((met > 0) & (sharply < met / 2), directed=False)
    return np.asarray(groups[labels])


def _border(shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: above, to the left and to the right, and below near the corners."""
    height, width = shape
    thick = max(1, round(BORDER * max(shape)))
    border = np.zeros(shape, dtype=bool)
    border[:thick] = border[:, :thick] = border[:, -thick:] = True
    corner = max(1, round(CORNER * width))
    border[-thick:, :corner] = border[-thick:, -corner:] = True
    return border


def _middle(shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: an ellipse of half the picture's height and width."""
    y, x = (np.linspace(-1, 1, length) for length in shape)
    return (x[None] ** 2 + y[:, None] ** 2) < 0.25


def _shares(labels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(COLOURS,) which part of a place each colour takes."""
    return np.bincount(labels[where], minlength=COLOURS)[:COLOURS] / max(1, where.sum())


def _commoner_inside(labels: np.ndarray, border: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return (_shares(labels, inside) > _shares(labels, border))[labels]


def _pieces(found: np.ndarray) -> np.ndarray:
    """Without specks and holes: the largest piece, and others that are not much smaller."""
    found = ndimage.binary_fill_holes(ndimage.median_filter(found, 3))
    pieces, count = ndimage.label(found)
    if not count:
        return found
    areas = np.bincount(pieces.ravel())[1:]
    return np.isin(pieces, 1 + np.flatnonzero(areas >= PIECE * areas.max()))


def _doubt(edges: np.ndarray, labels: np.ndarray, border: np.ndarray, subject: np.ndarray) -> str:
    part = float(subject.mean())
    if part < LEAST:
        return "nothing differs from the border"
    if part > MOST:
        return "what differs from the border fills the picture"
    shared = float(np.minimum(_shares(labels, border & ~subject), _shares(labels, subject)).sum())
    if shared > MOST_SHARED:
        return f"{shared:.0%} of the subject's colours are the background's too"
    if float(subject[border].mean()) > MOST_BORDER:
        return "the subject takes much of the border"
    blurred = _blurred(edges, subject)
    if blurred > MOST_BLURRED:
        return f"there is no edge along {blurred:.0%} of the outline"
    return ""


def _blurred(edges: np.ndarray, subject: np.ndarray) -> float:
    """The part of the subject's outline, within the picture, along which no colour changes."""
    outline = subject & ~ndimage.binary_erosion(subject, border_value=1)
    near = ndimage.maximum_filter(edges, 3)
    return 1 - float(near[outline].mean()) if outline.any() else 0.0
