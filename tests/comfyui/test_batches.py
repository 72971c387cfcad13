"""A different subject in each picture of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_placed_subjects import draw, left
from torch import Tensor


def batch_of(*subjects: Any) -> Any:
    from nested_attention.subject_batch import SubjectBatch

    return SubjectBatch(tuple(subjects))


def apply(world: Any, subject: Any, **settings: Any) -> tuple[Any, Any]:
    return world.apply(world.model, world.clip, subject, **settings)


def test_pictures_carry_subjects_in_order_and_from_the_first_again(world: Any) -> None:
    from tiny import carries

    alone = [draw(*apply(world, one), batch=3) for one in (world.alice, world.bob)]
    both = draw(*apply(world, batch_of(world.alice, world.bob)), batch=3)
    for row, expected in enumerate((alone[0], alone[1], alone[0])):
        torch.testing.assert_close(both[row], expected[row], rtol=1e-4, atol=1e-4)
    assert carries(alone[0][1], alone[1][1])
    single = draw(*apply(world, batch_of(world.alice, world.bob)))
    torch.testing.assert_close(single, draw(*apply(world, world.alice)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pictures", "told"), [(1, True), (2, False), (3, False)])
def test_more_subjects_than_pictures_are_told(
    world: Any, caplog: pytest.LogCaptureFixture, pictures: int, told: bool
) -> None:
    draw(*apply(world, batch_of(world.alice, world.bob)), batch=pictures)
    assert ["2 subjects, and this sampling draws 1 picture, " in r.getMessage() for r in caplog.records] == [
        True
    ] * told


def test_subjects_of_different_sizes_and_weights(world: Any) -> None:
    """Two pictures of one, one picture of the other: filled up, and what fills is not attended."""
    from tiny import make_subject

    two = make_subject(world.person, seed=7, images=2).mix(world.bob, 0.25)
    both = draw(*apply(world, batch_of(two, world.alice)), batch=2)
    for row, one in enumerate((two, world.alice)):
        alone = draw(*apply(world, one), batch=2)
        torch.testing.assert_close(both[row], alone[row], rtol=1e-4, atol=1e-4)


def test_one_encoder_a_batch_and_what_a_batch_cannot_do(world: Any, tmp_path: Any) -> None:
    from nested_attention.errors import NestedAttentionError

    with pytest.raises(NestedAttentionError, match="come from different encoders"):
        batch_of(world.alice, world.rex)
    with pytest.raises(NestedAttentionError, match="batch of subjects is empty"):
        batch_of()
    with pytest.raises(NestedAttentionError, match="2 subjects cannot be saved as one"):
        batch_of(world.alice, world.bob).save(tmp_path / "both.safetensors")
    mixed = batch_of(world.alice, world.bob).mix(world.alice, 0.5)
    assert [len(one.tokens) for one in mixed.subjects] == [12, 12]
    assert torch.equal(mixed.subjects[1].tokens, world.bob.mix(world.alice, 0.5).tokens)
    turned = world.alice.mix(batch_of(world.alice, world.bob), 0.25)
    assert torch.equal(turned.subjects[1].tokens, world.bob.mix(world.alice, 0.75).tokens)


def test_strength_0_and_values_that_are_shared(world: Any) -> None:
    from tiny import same

    both = batch_of(world.alice, world.bob, world.alice)
    off, clip = apply(world, both, strength=0.0)
    assert same(draw(off, clip), draw(world.model, world.clip))
    assert not off.get_nested_additional_models()
    assert len(apply(world, both)[0].get_nested_additional_models()) == 2


class Windows:
    """Runs a batch two pictures at a time, and tells it as AnimateDiff-Evolved does, or not at all."""

    def __init__(self, tells: bool) -> None:
        self.tells = tells

    def should_use_context(self, model: Any, conds: Any, x: Tensor, *args: Any) -> bool:
        return len(x) > 2

    def execute(
        self, calc: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any
    ) -> list[Tensor]:
        outs = []
        for start in range(0, len(x), 2):
            sub_idxs = list(range(start, start + 2)) if self.tells else None
            options = dict(model_options)
            options["transformer_options"] = {
                **options["transformer_options"],
                "ad_params": {"sub_idxs": sub_idxs, "full_length": len(x)},
            }
            part = slice(start, start + 2)
            outs.append(calc(model, conds, x[part], timestep[part], options))
        return [torch.cat([out[i] for out in outs]) for i in range(len(conds))]


def in_windows(model: Any, handler: Any) -> Any:
    model = model.clone()
    model.model_options["context_handler"] = handler
    return model


@pytest.mark.parametrize("what", ["subjects", "masks", "found regions"])
def test_context_windows(world: Any, what: str) -> None:
    """A frame keeps its subject, mask and region in whichever window it is run."""
    from comfy import context_windows
    from tiny import carries

    from nested_attention.errors import NestedAttentionError

    if what == "subjects":
        model, clip = apply(world, batch_of(world.alice, world.bob, world.bob))
        prompt = "a photo of a person"
    elif what == "masks":
        masks = torch.cat([left(), 1 - left(), torch.zeros(1, 64, 64)])
        model, clip = apply(world, world.alice, region=masks)
        prompt = "a photo of a person"
    else:
        chain = apply(world, world.alice, name="alice", region_mode="auto")
        model, clip = world.apply(*chain, world.bob, name="bob", region_mode="auto")
        prompt = "<alice> and <bob>"
    whole = draw(model, clip, prompt, batch=4)
    schedule = context_windows.get_matching_context_schedule("batched")
    fuse = context_windows.get_matching_fuse_method("flat")
    core = context_windows.IndexListContextHandler(schedule, fuse, context_length=2, dim=0)
    for handler in (core, Windows(tells=True)):
        found = draw(in_windows(model, handler), clip, prompt, batch=4)
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)
    assert carries(whole, draw(world.model, world.clip, "a photo of a person", batch=4))
    with pytest.raises(NestedAttentionError, match="runs 2 of the batch's 4 pictures at a time"):
        draw(in_windows(model, Windows(tells=False)), clip, prompt, batch=4)


def test_windows_that_overlap(world: Any) -> None:
    from comfy import context_windows

    model, clip = apply(world, batch_of(world.alice, world.bob))
    schedule = context_windows.get_matching_context_schedule("standard_static")
    fuse = context_windows.get_matching_fuse_method("pyramid")
    core = context_windows.IndexListContextHandler(schedule, fuse, context_length=3, context_overlap=1, dim=0)
    whole = draw(model, clip, batch=4)
    torch.testing.assert_close(draw(in_windows(model, core), clip, batch=4), whole, rtol=1e-3, atol=1e-3)


def test_encode_subject_makes_one_a_picture(world: Any) -> None:
    from nested_attention.hosts.comfy import encode_batch, encode_subject
    from nested_attention.subject import Subject
    from nested_attention.subject_batch import SubjectBatch

    class Vision:
        def encode_image(self, pictures: Tensor) -> dict[str, Tensor]:
            width = world.person.config.vision_dim
            flat = pictures.flatten(1)[:, : 10 * width]
            return {"last_hidden_state": flat.view(len(pictures), 10, width)}

    pictures = torch.rand(3, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    each = encode_batch(world.person, Vision(), pictures)
    assert isinstance(each, SubjectBatch) and each.images == 3 and each.word == "person"
    for one, picture in zip(each.subjects, pictures, strict=True):
        assert torch.equal(one.tokens, encode_subject(world.person, Vision(), picture[None]).tokens)
    assert isinstance(encode_batch(world.person, Vision(), pictures[:1]), Subject)
