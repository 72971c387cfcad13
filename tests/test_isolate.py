"""Isolate Subject: masks of every kind, on a cat's photograph and on drawn pictures."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor

from nested_attention.errors import NestedAttentionError
from nested_attention.pictures.check import check_masks
from nested_attention.pictures.isolate import Isolation, feather, grow, isolate_subjects, square_around

PLAIN = Isolation(padding=0.0, size=64)


def picture(height: int = 100, width: int = 140) -> Tensor:
    """Dark values, so that white, grey and black backgrounds are none of them."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.2


def mask(box: tuple[int, int, int, int], height: int = 100, width: int = 140) -> Tensor:
    top, bottom, left, right = box
    drawn = torch.zeros(1, height, width)
    drawn[:, top:bottom, left:right] = 1
    return drawn


def test_a_cat_on_white_with_room_around_it() -> None:
    cat = torch.from_numpy(data.chelsea()).float()[None] / 255
    shown = mask((40, 240, 60, 300), *cat.shape[1:3])
    image, alpha = isolate_subjects(cat, shown, Isolation(size=288))
    assert image.shape == (1, 288, 288, 3)
    assert alpha.shape == (1, 288, 288)
    # 240 pixels and a tenth of them on both sides are 288: a pixel for a pixel.
    torch.testing.assert_close(image[0, 44:244, 24:264], cat[0, 40:240, 60:300])
    torch.testing.assert_close(alpha[0, 44:244, 24:264], torch.ones(200, 240))
    assert float(alpha.sum()) == pytest.approx(200 * 240)
    outside = torch.ones(288, 288, dtype=torch.bool)
    outside[44:244, 24:264] = False
    assert bool((image[0][outside] == 1).all())


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("grey", 0.5), ("black", 0.0)])
def test_backgrounds_reach_beyond_the_picture(background: str, value: float) -> None:
    how = Isolation(background=background, padding=1.0, size=90)
    image, alpha = isolate_subjects(picture(), mask((0, 30, 0, 30)), how)
    torch.testing.assert_close(image[0, 30:60, 30:60], picture()[0, :30, :30])
    for corner in (image[0, :30], image[0, 60:], image[0, :, :30], image[0, :, 60:]):
        torch.testing.assert_close(corner, torch.full_like(corner, value))
    assert float(alpha.sum()) == pytest.approx(900)


def test_several_pieces_are_one_subject() -> None:
    two = mask((10, 20, 10, 20)) + mask((70, 90, 110, 130))
    square = square_around(two[0], 0.0)
    assert (square.centre, square.side) == (70 + 50j, 120)
    image, alpha = isolate_subjects(picture(), two, Isolation(padding=0.0, size=120))
    assert float(alpha.sum()) == pytest.approx(10 * 10 + 20 * 20)
    assert bool((image[0, 40:60] == 1).all())  # between them


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 90), st.integers(20, 40), st.integers(20, 50), st.floats(0, 1))
def test_the_subject_is_in_the_middle_at_the_size_padding_leaves(
    top: int, left: int, height: int, width: int, padding: float
) -> None:
    _, alpha = isolate_subjects(
        picture(), mask((top, top + height, left, left + width)), Isolation(padding=padding, size=128)
    )
    places = torch.arange(128) + 0.5
    total = alpha.sum()
    assert float((alpha[0].sum(0) * places).sum() / total) == pytest.approx(64, abs=0.6)
    assert float((alpha[0].sum(1) * places).sum() / total) == pytest.approx(64, abs=0.6)
    longer = max(height, width) * 128 / (max(height, width) * (1 + 2 * padding))
    assert float(total) == pytest.approx(height * width * (longer / max(height, width)) ** 2, rel=0.04)


def test_a_mask_of_another_size_is_brought_to_the_pictures() -> None:
    shown = mask((20, 80, 40, 120))
    expected = isolate_subjects(picture(), shown, PLAIN)
    twice = shown.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for got, wanted in zip(isolate_subjects(picture(), twice, PLAIN), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    small = shown[:, ::10, ::10]
    _, alpha = isolate_subjects(picture(), small, PLAIN)
    assert float((alpha - expected[1]).abs().mean()) < 0.2


def test_inverted_masks() -> None:
    shown = mask((20, 80, 40, 120))
    how = Isolation(padding=0.0, size=64, invert=True)
    for got, wanted in zip(
        isolate_subjects(picture(), 1 - shown, how), isolate_subjects(picture(), shown, PLAIN), strict=True
    ):
        assert torch.equal(got, wanted)


def test_growing_and_narrowing_by_pixels() -> None:
    dot = torch.zeros(1, 1, 41, 41)
    dot[..., 20, 20] = 1
    for radius in (1, 2, 5, 10):
        grown = grow(dot, radius)[0, 0]
        assert float(grown[20].sum()) == float(grown[:, 20].sum()) == 2 * radius + 1
        assert float(grown.sum()) == pytest.approx(3.14159 * (radius + 0.5) ** 2, rel=0.35)
        assert float(grown[20 - radius, 20 - radius]) == 0  # round, not square
    shown = mask((30, 70, 30, 70))
    for pixels, side in ((0, 40), (7, 54), (-7, 26)):
        _, alpha = isolate_subjects(picture(), shown, Isolation(padding=0.0, grow=pixels, size=64))
        # The crop's side is the subject's, so the corners that stay 0 tell how round it has become.
        shape = shape_of(shown, pixels)
        assert float(alpha.sum()) == pytest.approx(float(shape.sum()) * (64 / side) ** 2, rel=0.02)


def step_by_step(shown: Tensor, pixels: int) -> Tensor:
    """The same octagon, a pixel at a time."""
    for step in range(pixels):
        if step % 2:
            shown = functional.max_pool2d(shown, 3, 1, 1)
        else:
            across = functional.max_pool2d(shown, (1, 3), 1, (0, 1))
            shown = torch.maximum(across, functional.max_pool2d(shown, (3, 1), 1, (1, 0)))
    return shown


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 70), st.integers(0, 2**31))
def test_growing_at_once_is_growing_step_by_step(height: int, width: int, pixels: int, seed: int) -> None:
    """Bit for bit, soft masks too, over every border."""
    generator = torch.Generator().manual_seed(seed)
    soft = torch.rand(1, 1, height, width, generator=generator)
    soft *= torch.rand(1, 1, height, width, generator=generator) > 0.9
    assert torch.equal(grow(soft, pixels), step_by_step(soft, pixels))


@pytest.mark.parametrize("how", [Isolation(grow=512), Isolation(grow=-512), Isolation(feather=512.0)])
def test_the_time_does_not_grow_with_the_radius(how: Isolation) -> None:
    """Half a second on a core at 2000 × 2000; a pixel at a time, or by convolution, it took ten and more."""
    large = torch.zeros(1, 2000, 2000)
    large[:, 300:1700, 300:1700] = 1
    start = time.process_time()
    isolate_subjects(torch.zeros(1, 2000, 2000, 3), large, how)
    assert time.process_time() - start < 6


def test_feathering_is_a_gaussian() -> None:
    edge = torch.zeros(1, 1, 40, 600)
    edge[..., 300:] = 1
    soft = feather(edge, 120.0)[0, 0]
    places = torch.arange(600) + 0.5 - 300
    wanted = torch.special.ndtr(places / 30)
    assert float((soft - wanted).abs().max()) < 2e-3  # cut off at three deviations
    assert float((soft - soft[:1]).abs().max()) < 1e-6
    assert soft.min() >= 0 and soft.max() <= 1
    soft = torch.rand(1, 1, 33, 47, generator=torch.Generator().manual_seed(0))
    row = torch.exp(-0.5 * torch.arange(-6.0, 7) ** 2 / 4)
    padded = functional.pad(soft, (6, 6, 6, 6), mode="replicate")
    kernel = torch.outer(row, row)[None, None] / row.sum() ** 2
    torch.testing.assert_close(feather(soft, 8.0), functional.conv2d(padded, kernel), rtol=0, atol=2e-6)


def shape_of(shown: Tensor, pixels: int) -> Tensor:
    """A mask grown, or narrowed by growing what it does not show."""
    return grow(shown[None], pixels) if pixels >= 0 else 1 - grow(1 - shown[None], -pixels)


def test_feathering_softens_over_so_many_pixels_and_keeps_the_middle() -> None:
    edge = torch.zeros(1, 1, 60, 60)
    edge[..., 30:] = 1
    assert feather(edge, 0) is edge
    for pixels in (4, 12, 20):
        soft = feather(edge, pixels)[0, 0, 30]
        assert float(soft.sum()) == pytest.approx(30, abs=1e-3)
        assert bool((soft.diff() >= -1e-6).all())
        assert float(soft[30 - pixels // 2 - 1]) < 0.03 < 0.97 < float(soft[30 + pixels // 2])
        assert 0.3 < float(soft[29]) < 0.5 < float(soft[30]) < 0.7


def test_batches_of_pictures_and_masks() -> None:
    pictures = torch.cat([picture(), picture().flip(1)])
    masks = torch.cat([mask((20, 80, 40, 120)), mask((10, 50, 10, 60))])
    images, alphas = isolate_subjects(pictures, masks, PLAIN)
    for number in range(2):
        alone = isolate_subjects(pictures[number : number + 1], masks[number : number + 1], PLAIN)
        assert torch.equal(images[number], alone[0][0])
        assert torch.equal(alphas[number], alone[1][0])
    shared, _ = isolate_subjects(pictures, masks[:1], PLAIN)
    assert torch.equal(shared[1], isolate_subjects(pictures[1:], masks[:1], PLAIN)[0][0])
    parts, _ = isolate_subjects(pictures[:1], masks, PLAIN)
    assert torch.equal(parts[1], isolate_subjects(pictures[:1], masks[1:], PLAIN)[0][0])
    with pytest.raises(NestedAttentionError, match="2 pictures and 3 masks; expected one mask for each"):
        isolate_subjects(pictures, torch.cat([masks, masks[:1]]), PLAIN)


def test_nothing_given_is_changed() -> None:
    given_picture, given_mask = picture(), mask((20, 80, 40, 120))
    how = Isolation(grow=3, feather=4, invert=True, size=64)
    isolate_subjects(given_picture, given_mask, how)
    assert torch.equal(given_picture, picture())
    assert torch.equal(given_mask, mask((20, 80, 40, 120)))


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (torch.zeros(1, 64, 64), r"picture 1 of 1: the mask is empty \(its largest value is 0\).*invert"),
        (torch.full((1, 50, 50), 0.05), r"the mask is empty \(its largest value is 0.05\)"),
        (mask((10, 11, 10, 11)), "picture 1 of 1: the mask shows 1 × 1 pixels; expected .* at least 16"),
    ],
)
def test_masks_that_show_nothing(shown: Tensor, message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        isolate_subjects(picture(), shown, PLAIN)


def test_the_empty_one_of_a_batch_is_named() -> None:
    masks = torch.cat([mask((20, 80, 40, 120)), torch.zeros(1, 100, 140)])
    with pytest.raises(NestedAttentionError, match="picture 2 of 2: the mask is empty"):
        isolate_subjects(picture(), masks, PLAIN)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"background": "pink"}, "'pink'; expected one of white, grey, black"),
        ({"padding": -0.1}, "padding is -0.1; expected 0 to 4"),
        ({"grow": 1000}, "grow is 1000; expected -512 to 512"),
        ({"feather": float("nan")}, "feather is nan; expected 0 to 512"),
        ({"size": 8}, "size is 8; expected 64 to 2048"),
    ],
)
def test_settings_out_of_range(values: dict, message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        Isolation(**values)


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("a mask", "Node: the mask has str; expected a MASK"),
        (torch.zeros(1, 2, 3, 4), r"Node: the mask has shape \(1, 2, 3, 4\)"),
        (torch.zeros(0, 8, 8), r"shape \(0, 8, 8\)"),
        (torch.full((2, 8, 8), float("nan")), "mask 1 of 2 has NaN or infinite values"),
        (torch.full((1, 8, 8), 255.0), "the mask's values are from 255 to 255; expected 0 to 1"),
    ],
)
def test_masks_that_cannot_be_read(shown: Tensor, message: str) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        check_masks(shown, "Node")


def test_a_single_mask_may_come_without_a_batch() -> None:
    assert check_masks(torch.ones(8, 9), "Node").shape == (1, 8, 9)
