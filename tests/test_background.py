"""A subject told from its background by the picture's border alone, and when that cannot be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from nested_attention.avatars.drawing.canvas import Part
from nested_attention.avatars.drawing.picture import enlarge
from nested_attention.avatars.drawing.references import close_up, held_out
from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.background import estimate_subject, estimate_subjects


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two masks."""
    a, b = one > 0.5, other > 0.5
    return float((a & b).sum() / (a | b).sum())


def pet(seed: int) -> tuple[Tensor, Tensor]:
    """A reference picture of the small world, and where the pet is in it."""
    rgb, part = close_up(held_out("pet", seed))
    shown = enlarge((part != Part.BACKGROUND)[..., None])[..., 0]
    return torch.from_numpy(enlarge(rgb)).float() / 255, torch.from_numpy(shown).float()


def spotted(noise: float, ground: tuple[float, float, float] = (0.75, 0.72, 0.68)) -> tuple[Tensor, Tensor]:
    """A dark animal with light spots off the middle, before a grainy wall that is lit from one side."""
    height, width = 300, 420
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    body = ((x - 260) / 90.0) ** 2 + ((y - 190) / 70.0) ** 2 < 1
    head = ((x - 170) / 45.0) ** 2 + ((y - 130) / 45.0) ** 2 < 1
    spots = ((x // 24 + y // 24) % 4 == 0) & (body | head)
    wall = torch.tensor(ground) * (0.85 + 0.15 * x / width)[..., None]
    picture = torch.where((body | head)[..., None], torch.tensor([0.25, 0.16, 0.1]), wall)
    picture = torch.where(spots[..., None], torch.tensor([0.9, 0.5, 0.3]), picture)
    grain = noise * torch.randn(height, width, 1, generator=torch.Generator().manual_seed(0))
    return (picture + grain).clamp(0, 1), (body | head).float()


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("ground", [(0.75, 0.72, 0.68), (0.35, 0.55, 0.25), (0.97, 0.97, 0.97)])
def test_a_pet_before_a_wall_is_found(noise: float, ground: tuple[float, float, float]) -> None:
    picture, shown = spotted(noise, ground)
    estimate = estimate_subject(picture)
    assert estimate.mask.shape == shown.shape and 0 <= estimate.mask.min() <= estimate.mask.max() <= 1
    assert overlap(estimate.mask, shown) > 0.93
    assert estimate.sure, estimate.doubt


def test_a_drawing_of_a_horse_is_found() -> None:
    horse = torch.from_numpy(data.horse()).float()
    estimate = estimate_subject(horse[..., None].expand(-1, -1, 3))
    assert overlap(estimate.mask, 1 - horse) > 0.9
    assert estimate.sure


def test_pets_of_the_small_world_before_their_beach() -> None:
    """Sky, sea and sand behind them; whiskers, ears and bodies that reach the border may be lost in part."""
    overlaps = [overlap(estimate_subject(picture).mask, shown) for picture, shown in map(pet, range(40))]
    assert np.mean(overlaps) > 0.9 and min(overlaps) > 0.75


@pytest.mark.parametrize(
    ("picture", "doubt"),
    [
        (
            torch.from_numpy(data.chelsea()).float() / 255,
            "colours are the background's too",
        ),  # fills the frame
        (torch.from_numpy(data.astronaut()).float() / 255, "no edge along"),
        (torch.rand(96, 96, 3, generator=torch.Generator().manual_seed(0)), "colours are"),
    ],
    ids=["a cat that fills the picture", "a flag behind a person", "noise"],
)
def test_it_says_when_it_is_not_sure(picture: Tensor, doubt: str) -> None:
    estimate = estimate_subject(picture)
    assert any(part in estimate.doubt for part in doubt.split("|")), estimate.doubt
    _, told = estimate_subjects(torch.stack([picture, picture]))
    assert len(told) == 2 and told[1].startswith("picture 2 of 2: ") and "connect a mask" in told[1]


def test_a_picture_of_one_colour_has_no_subject() -> None:
    with pytest.raises(NestedAttentionError, match="^picture 2 of 2: nothing differs.*Connect a mask"):
        estimate_subjects(torch.stack([spotted(0.0)[0], torch.full((300, 420, 3), 0.5)]))


def test_the_same_picture_gives_the_same_mask() -> None:
    picture, _ = spotted(0.05)
    assert torch.equal(estimate_subject(picture).mask, estimate_subject(picture).mask)
    thin = picture[:, :17]
    assert estimate_subject(thin).mask.shape == thin.shape[:2]
