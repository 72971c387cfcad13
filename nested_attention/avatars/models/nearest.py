"""A judge without anything learned: whose drawing, in any pose, comes closest to a picture.

A candidate is drawn bare, in every gaze and expression, and laid over the picture at every place where the
prompt lets it stand, in the prompt's style. What is compared are the candidate's own head pixels, without
those that the prompt's clothes and accessory hide; around its head anything may be, at a fixed cost a pixel,
so that a head does not win by being smaller. The best pose counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..drawing.canvas import WIDE, Canvas, Part
from ..drawing.identity import Identity
from ..drawing.picture import CROP, Figure, crop, crop_window, draw_figure, groove
from ..drawing.pose import EXPRESSIONS, Pose
from ..drawing.shown import Shown
from ..drawing.wardrobe import draw_accessory, draw_clothes

HEAD = (Part.HAIR, Part.FACE, Part.EYES, Part.MOUTH, Part.EARS)
"""The parts that are compared."""

FACES = tuple(product((-1, 0, 1), EXPRESSIONS))
"""Every gaze and expression."""

ANYTHING = 0.05
"""What a pixel that a candidate leaves to something else costs: about the squared error of colours that
differ by a fifth of their range."""

_AT = Pose(x=WIDE // 2, y=8, gaze=0, expression="calm")
"""Where candidates are drawn: what they look like moves with them, up to the strands of a pet's fur."""

_CHIN = _AT.y + 16
"""The row of everybody's chin there."""


class Drawings(NamedTuple):
    """A candidate in every gaze and expression, in a window around its head, in [0, 1]; 18 drawings of 784
    pixels."""

    head: Tensor  # (18, 784): 1 where the candidate's head is
    colors: Tensor  # (18, 784, 3), 0 elsewhere


class Seen(NamedTuple):
    """A picture in the window of each of n places."""

    visible: Tensor  # (784, n): 1 inside the picture where nothing of the prompt's hides the head
    colors: Tensor  # (784, 3, n)
    grooves: Tensor  # (784, n): what the style multiplies colours by there


class NearestDrawing:
    """Who a subject is: the nearest of the candidates' drawings."""

    def similarity(self, rgb: np.ndarray, shown: Sequence[Shown], candidates: Sequence[Identity]) -> Tensor:
        """How much better each candidate's best pose explains a picture than anything else would, for each
        pixel of the window.

        Pictures (n, 32, W, 3) uint8, how each one's subject is shown → (n, candidates)
        """
        drawn = {lit: _stacked(candidates, lit) for lit in {one.style != "cartoon" for one in shown}}
        rows = []
        for picture, one in zip(rgb, shown, strict=True):
            misfit = _misfit(drawn[one.style != "cartoon"], _see(picture, one, one.places))
            rows.append(-misfit.view(len(candidates), -1).amin(dim=1))
        return torch.stack(rows)

    def poses(
        self,
        rgb: np.ndarray,
        shown: Sequence[Shown],
        identities: Sequence[Identity],
        places: Sequence[tuple[int, int]] | None = None,
    ) -> list[Pose]:
        """The pose in which each picture's known subject fits best: at the places its prompt allows, or
        others."""
        found = []
        for picture, one, identity in zip(rgb, shown, identities, strict=True):
            allowed = places or one.places
            misfit = _misfit(drawings(identity, one.style != "cartoon"), _see(picture, one, allowed))
            face, place = divmod(int(misfit.argmin()), len(allowed))
            gaze, expression = FACES[face]
            found.append(Pose(*allowed[place], gaze, expression))
        return found


def _misfit(drawn: Drawings, seen: Seen) -> Tensor:
    """Squared error of each drawing's head, less that of `ANYTHING` there: (drawings, places), for a pixel of
    the window"""
    ours, theirs = drawn.colors, seen.colors * seen.visible[:, None]
    squares = drawn.head @ theirs.square().sum(dim=1)
    products = ours.flatten(1) @ (theirs * seen.grooves[:, None]).flatten(0, 1)
    own = ours.square().sum(dim=2) @ (seen.visible * seen.grooves.square())
    pixels = drawn.head @ seen.visible
    return ((squares - 2 * products + own) / 3 - ANYTHING * pixels) / drawn.head.shape[1]


def _see(picture: np.ndarray, shown: Shown, places: Sequence[tuple[int, int]]) -> Seen:
    """A picture (32, W, 3) uint8 as `_misfit` compares it."""
    height, width = picture.shape[:2]
    inside = ~_hidden(shown.clothes, shown.accessory)
    visible, colors, grooves = [], [], []
    for x, y in places:
        left, top = crop_window(Pose(x, y, 0, "calm"))
        rows, columns = np.arange(top, top + CROP), np.arange(left, left + CROP)
        there = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        visible.append((inside & there).ravel())
        colors.append(crop(picture, (left, top)).reshape(-1, 3))
        factor = np.outer(groove(rows), groove(columns)) if shown.style == "mosaic" else np.ones_like(there)
        grooves.append(factor.ravel())
    stacked = (torch.from_numpy(np.stack(x, axis=-1)).float() for x in (visible, colors, grooves))
    inside_, colors_, grooves_ = stacked
    return Seen(inside_, colors_ / 255, grooves_)


def _stacked(candidates: Sequence[Identity], lit: bool) -> Drawings:
    """(18 · candidates, …)"""
    each = [drawings(candidate, lit) for candidate in candidates]
    return Drawings(*(torch.cat(parts) for parts in zip(*each, strict=True)))


def drawings(identity: Identity, lit: bool) -> Drawings:
    """A candidate with the light of photographs and mosaics, or in the flat colours of cartoons."""
    colors, head = _drawings(identity, lit)
    return Drawings(torch.from_numpy(head).float(), torch.from_numpy(colors).float() / 255)


# Of the hundred pairs of `acceptance`, everybody with twenty near-twins: with fewer, each would be drawn anew
# for every way in which those pairs are shown. 57 KB each.
@lru_cache(maxsize=8192)
def _drawings(identity: Identity, lit: bool) -> tuple[np.ndarray, np.ndarray]:
    """(18, 784, 3) uint8 and (18, 784) bool"""
    colors, heads = [], []
    for gaze, expression in FACES:
        canvas = Canvas(WIDE)
        canvas.current = 1
        draw_figure(canvas, Figure(identity, "middle", Pose(_AT.x, _AT.y, gaze, expression)))
        rgb = canvas.rgb * canvas.light[..., None] if lit else canvas.rgb
        head = np.isin(canvas.part, HEAD)
        shown = np.where(head[..., None], np.clip(np.rint(rgb), 0, 255), 0).astype(np.uint8)
        heads.append(_window(head).ravel())
        colors.append(_window(shown).reshape(-1, 3))
    return np.stack(colors), np.stack(heads)


@lru_cache(maxsize=256)
def _hidden(clothes: str, accessory: str) -> np.ndarray:
    """Which pixels of the window clothes and accessory cover. (28, 28) bool"""
    canvas = Canvas(WIDE)
    canvas.current = 1
    draw_clothes(canvas, clothes, _AT, _CHIN)
    draw_accessory(canvas, accessory, _AT, _CHIN)
    return _window(canvas.subject > 0)


def _window(plane: np.ndarray) -> np.ndarray:
    """(32, 48, …) → (28, 28, …)"""
    left, top = crop_window(_AT)
    return plane[top : top + CROP, left : left + CROP]
