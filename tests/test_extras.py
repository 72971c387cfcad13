"""Pose pictures, the ControlNet that reads them, ink drawings and the LoRA that makes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_world import random_world

from nested_attention.avatars.drawing import pose_map as colours
from nested_attention.avatars.drawing.canvas import SIZE, Part
from nested_attention.avatars.drawing.identity import Person, sample
from nested_attention.avatars.drawing.ink import INK, PAPER, ink
from nested_attention.avatars.drawing.picture import STYLES, Figure, Picture, enlarge, render
from nested_attention.avatars.drawing.pose import Pose
from nested_attention.avatars.drawing.pose_map import pose_map, pose_picture
from nested_attention.avatars.drawing.prompts import (
    caption,
    combination_split,
    sample_picture,
    without_place,
)
from nested_attention.avatars.figures.judges import Counts, Judges
from nested_attention.avatars.figures.pose_and_style import (
    find_pose,
    measure_pose,
    measure_style,
    patch_distance,
    posed_pictures,
)
from nested_attention.avatars.models import lora
from nested_attention.avatars.models.control import (
    Control,
    control_from,
    load_control,
    new_control,
    save_control,
    to_hint,
)
from nested_attention.avatars.models.lora import add_lora, lora_applied, lora_sites, lora_state, save_lora
from nested_attention.avatars.models.world import Sampling, World
from nested_attention.avatars.train.pose_and_style import train_pose, train_style
from nested_attention.avatars.train.pose_data import COLUMNS, TOPS, draw_pose_data, sample_posed
from nested_attention.errors import NestedAttentionError
from nested_attention.storage.tensors import read_tensors, write_tensors
from nested_attention.training.schedule import Schedule
from nested_attention.training.trainer import TrainerOptions

FEW = Sampling(steps=8)


@pytest.fixture(scope="module")
def world() -> World:
    return random_world()


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


FRONT = Pose(16, 8, 0, "calm")


def person(seed: int = 0, pose: Pose = FRONT) -> Figure:
    identity = sample(Person, np.random.default_rng(seed), "heldout")
    return Figure(replace(identity, age=0, eye_gap=0, glasses=0).canonical(), "middle", pose)


@settings(max_examples=40, deadline=None)
@given(x=st.sampled_from(list(COLUMNS)), y=st.sampled_from(list(TOPS)), gaze=st.integers(-1, 1))
def test_a_pose_map_lies_on_the_figure_it_is_of(x: int, y: int, gaze: int) -> None:
    """Eyes on the drawn eyes, the rest on the figure; the pupil where the iris is."""
    figure = person(pose=Pose(x, y, gaze, "calm"))
    drawn = render(Picture((figure,), "room", "cartoon"))
    drawn_map = pose_map([figure.pose])
    eyes = (drawn_map == colours.EYE).all(-1) | (drawn_map == colours.PUPIL).all(-1)
    assert eyes.sum() == 16 and (drawn.part[eyes] == Part.EYES).all()
    columns = np.nonzero((drawn_map == colours.PUPIL).all(-1).any(0))[0]
    assert set(columns - x) == {first + gaze for first in (-4, -3, 2, 3)}
    body = (drawn_map == colours.SHOULDERS).all(-1) | (drawn_map == colours.NECK).all(-1)
    assert (drawn.subject[body] == 1).mean() > 0.8


def test_a_pose_map_says_nothing_of_who_stands_there() -> None:
    pose = Pose(10, 8, 1, "calm")
    assert np.array_equal(pose_map([pose]), pose_map([replace(pose, expression="smiling")]))
    assert not np.array_equal(pose_map([pose]), pose_map([replace(pose, gaze=0)]))
    both = pose_map([Pose(12, 8, 0, "calm"), Pose(36, 8, 0, "calm")])
    assert both.shape == (32, 48, 3)
    assert np.array_equal(both[:, :24], pose_map([Pose(12, 8, 0, "calm")])[:, :24])


def test_pose_pictures_are_drawn_one_over_another() -> None:
    one, other = [Pose(8, 8, 0, "calm")], [Pose(24, 10, 0, "calm")]
    together = pose_picture(other, pose_picture(one)[None])
    assert together.shape == (1, 128, 128, 3) and together.dtype == np.float32
    assert np.array_equal(together[0], enlarge(pose_map([*one, *other], SIZE)).astype(np.float32) / 255)
    assert pose_picture([*one, *other]).shape == (128, 192, 3)


def test_a_pose_picture_is_as_wide_as_the_figures_it_is_to_hold() -> None:
    """The one behind says it for the one in front, which may leave it at one figure."""
    left, right = Pose(12, 8, 0, "calm"), Pose(36, 8, 0, "calm")
    behind = pose_picture([left], figures=2)
    assert behind.shape == (128, 192, 3)
    both = enlarge(pose_map([left, right])).astype(np.float32) / 255
    for figures in (None, 1, 2):
        assert np.array_equal(pose_picture([right], behind[None], figures)[0], both)
    assert pose_picture([left, right], figures=2).shape == both.shape


@pytest.mark.parametrize(
    ("size", "figures", "message"),
    [
        ((32, 64), 1, "64 × 32 pixels; expected one of Demo Pose, 128 × 128 or 192 × 128. Connect another "),
        ((192, 128), 1, "128 × 192 pixels; expected one of Demo Pose"),
        ((128, 128), 2, "128 × 128 pixels; expected one of Demo Pose, 192 × 128. .* with figures 2 to it"),
    ],
)
def test_a_picture_behind_that_does_not_fit_is_refused(
    size: tuple[int, int], figures: int, message: str
) -> None:
    with pytest.raises(NestedAttentionError, match=message):
        pose_picture([Pose(12, 8, 0, "calm")], np.zeros((1, *size, 3), np.float32), figures)


def test_a_pose_beside_the_picture_is_refused() -> None:
    outside = [Pose(36, 8, 0, "calm")]
    for behind in (None, np.zeros((1, 128, 128, 3), np.float32)):
        with pytest.raises(NestedAttentionError, match="x is 36; expected 6 to 26 .* Set figures to 2"):
            pose_picture(outside, behind)
    assert pose_picture(outside, figures=2).any()
    with pytest.raises(NestedAttentionError, match="x is 43; expected 6 to 42 in a picture .* 48 art pixels"):
        pose_picture([Pose(43, 8, 0, "calm")], figures=2)


def test_ink_is_not_a_tint() -> None:
    """The scene turns to paper and lines, the figure is outlined and keeps its colours."""
    pictures = [sample_picture(np.random.default_rng(seed), (person(seed).identity,)) for seed in range(8)]
    for picture in pictures:
        drawn = render(replace(picture, style="photo"))
        inked = ink(drawn)
        scene = drawn.subject == 0
        assert set(map(tuple, inked[scene].tolist())) <= {tuple(PAPER.tolist()), tuple(INK.tolist())}
        assert (inked[scene] == INK).all(-1).any()
        figure = ~scene
        wanted = drawn.rgb[figure].astype(np.float32).mean(0)
        assert np.abs(inked[figure].mean(0) - (0.75 * wanted + 0.25 * PAPER)).max() < 2
    plain = np.stack([render(replace(p, style=s)).rgb for p in pictures for s in STYLES])
    inked = np.stack([ink(render(replace(p, style="photo"))) for p in pictures])
    styles = [np.stack([render(replace(p, style=s)).rgb for p in pictures]) for s in STYLES]
    nearest = min(patch_distance(inked, one) for one in styles)
    assert nearest > max(patch_distance(plain, one) for one in styles)


def test_a_caption_without_its_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = caption(sample_posed(rng, "person+pet"), rng)
        assert "on the left" in text and "on the right" in text
        bare = without_place(text)
        assert not any(word in bare for word in ("left", "right", "middle")) and "  " not in bare


def test_posed_pictures_stand_where_no_word_places_them(tmp_path: Path) -> None:
    drawn = draw_pose_data(40, 3, workers=1, cache=tmp_path)
    again = draw_pose_data(40, 3, workers=1, cache=tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(vars(drawn).values(), vars(again).values(), strict=True))
    rng = np.random.default_rng(0)
    posed = [sample_posed(rng, "person") for _ in range(200)]
    assert {combination_split(picture) for picture in posed} == {"train"}
    columns = {picture.figures[0].pose.x for picture in posed}
    assert columns == set(COLUMNS)


def test_a_new_controlnet_changes_nothing_and_its_file_keeps_it(tmp_path: Path, world: World) -> None:
    control = control_from(world.unet)
    assert torch.equal(control.conv_in.weight, world.unet.conv_in.weight)
    x = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    context, _, _ = world.text(["a person", "a pet"])
    added = Control(control, np.zeros((2, 32, 32, 3), np.uint8)).residuals(x, torch.tensor(500), context)
    down, middle = added["down_block_additional_residuals"], added["mid_block_additional_residual"]
    assert all(not bool(residual.any()) for residual in (*down, middle))
    for parameter in control.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    save_control(control, tmp_path / "control.safetensors")
    back = load_control(tmp_path / "control.safetensors").state_dict()
    assert all(
        torch.allclose(value, back[key], atol=1e-3, rtol=1e-3) for key, value in control.state_dict().items()
    )


def test_a_strange_controlnet_is_refused(tmp_path: Path) -> None:
    save_control(new_control(), tmp_path / "a.safetensors")
    tensors = read_tensors(tmp_path / "a.safetensors").tensors
    write_tensors(tmp_path / "b.safetensors", {k: v for k, v in tensors.items() if "zero" not in k}, {})
    with pytest.raises(NestedAttentionError, match=r"b.safetensors: .* the first is zero_convs.0.0.bias"):
        load_control(tmp_path / "b.safetensors")


def test_a_hint_is_the_map_enlarged() -> None:
    hint = to_hint(pose_map([Pose(16, 8, 0, "calm")])[None])
    assert hint.shape == (1, 3, 128, 128)
    assert np.array_equal(hint[0].permute(1, 2, 0).numpy(), pose_picture([Pose(16, 8, 0, "calm")]))


def test_a_lora_file_does_what_its_layers_did(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = copy.deepcopy(world.unet)
    x = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    context, pooled, _ = world.text(["a person"])
    added = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}

    def out() -> torch.Tensor:
        with torch.no_grad():
            return unet(x, torch.tensor(500), context, added_cond_kwargs=added).sample

    plain, number = out(), len(lora_sites(unet))
    torch.manual_seed(0)
    layers = add_lora(unet, rank=2)
    assert len(layers) == number == len(lora_sites(unet)) and torch.equal(out(), plain)
    for layer in layers.values():
        torch.nn.init.normal_(layer["up"].weight, std=0.1)
    trained = out()
    save_lora(lora_state(unet), tmp_path / "lora.safetensors")
    unet.unload_lora()
    assert torch.equal(out(), plain)
    monkeypatch.setattr(lora, "PATH", tmp_path / "lora.safetensors")
    with lora_applied(unet):
        torch.testing.assert_close(out(), trained, atol=5e-3, rtol=5e-3)
        assert (out() - plain).abs().max() > 0.05
    assert torch.equal(out(), plain)


def test_a_lora_of_another_model_is_refused(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "other.safetensors", {"lora_te_x.alpha": torch.ones(())}, {})
    monkeypatch.setattr(lora, "PATH", tmp_path / "other.safetensors")
    with (
        pytest.raises(NestedAttentionError, match=r"other.safetensors: 1 .* lora_te_x"),
        lora_applied(world.unet),
    ):
        pass


def test_both_train_for_a_few_steps_and_the_world_stays_as_it_is(tmp_path: Path) -> None:
    world = random_world()
    before = {name: value.clone() for name, value in world.unet.state_dict().items()}
    schedule, few = Schedule(steps=3, warmup=1), TrainerOptions(batch=2)
    drawn = [draw_pose_data(8, 0, workers=1), draw_pose_data(8, 0, together=True, workers=1)]
    control = train_pose(tmp_path / "pose", world, drawn, schedule, few)
    assert control.controlnet_mid_block.weight.abs().max() > 0
    inked = [draw_pose_data(8, 0, inked=True, workers=1)]
    lora = train_style(tmp_path / "ink", world, inked, schedule, few)
    assert all(value.abs().max() > 0 for value in lora.values())
    after = world.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    resumed = train_pose(tmp_path / "pose", world, drawn, schedule, few)
    kept = resumed.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in control.state_dict().items())


def test_a_drawn_figure_is_found_where_it_stands() -> None:
    for picture in posed_pictures(20, 1):
        figure = picture.figures[0]
        assert find_pose(render(picture).rgb, figure, picture.style) == (figure.pose.x, figure.pose.y)


def test_figures_stand_where_the_shipped_controlnet_is_told(
    judges: Judges, closing_line: Callable[[str], None]
) -> None:
    scores = measure_pose(judges, Counts(pose_and_style=16), sampling=FEW)
    free, held = scores["without"], scores["with"]
    closing_line(f"pose ControlNet, 16 people: without {free}")
    closing_line(f"pose ControlNet, 16 people: with    {held}")
    assert held.there >= 0.75 and held.there >= free.there + 0.4
    assert held.columns <= 2.0 and held.rows <= 1.5
    assert held.identity["rate"] >= free.identity["rate"] - 0.2


def test_the_shipped_lora_draws_in_ink(judges: Judges, closing_line: Callable[[str], None]) -> None:
    scores = measure_style(judges, Counts(pose_and_style=12), sampling=FEW)
    plain, inked = scores["without"], scores["with"]
    closing_line(f"ink LoRA, 12 people: without {plain}")
    closing_line(f"ink LoRA, 12 people: with    {inked}")
    assert inked.distance <= 0.35 * plain.distance
    assert inked.identity["rate"] > 1 / 12  # by chance; ink has no colours to tell people by
