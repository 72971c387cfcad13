"""Encode Subject: pictures, and a real CLIP vision model of ComfyUI's, into subjects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def clip_vision(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import comfy.clip_vision
    import tiny

    config = {
        "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 16,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip
    path: Path = tmp_path_factory.mktemp("vision") / "config.json"
    path.write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    vision.model.float()
    tiny.randomise(vision.model, seed=20)
    return vision


def pictures(count: int = 1, height: int = 40, width: int = 56, channels: int = 3) -> Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(0))


def test_a_subject_of_several_pictures(world: Any, clip_vision: Any) -> None:
    from nested_attention.hosts.comfy import encode_subject

    batch = pictures(3)
    subject = encode_subject(world.person, clip_vision, batch)
    alone = [encode_subject(world.person, clip_vision, batch[i : i + 1]) for i in range(3)]
    assert subject.images == 3
    assert subject.word == "person"
    assert subject.fingerprint == world.person.fingerprint
    assert subject.tokens.device.type == "cpu"
    torch.testing.assert_close(subject.tokens, torch.cat([one.tokens for one in alone]))
    assert not torch.allclose(alone[0].tokens, alone[1].tokens, atol=1e-3)
    weighted = encode_subject(world.person, clip_vision, batch, weights=[1, 0, 1])
    torch.testing.assert_close(weighted.tokens, torch.cat([alone[0].tokens, alone[2].tokens]))


def test_the_encoders_choice_of_layer_is_read(world: Any, clip_vision: Any) -> None:
    from tiny import make_encoder

    from nested_attention.hosts.comfy import encode_subject

    penultimate = make_encoder(world.model, seed=1, features="penultimate_hidden_states")
    output = clip_vision.encode_image(pictures())
    for handle in (world.person, penultimate):
        expected = handle.encoder(output[handle.config.features])[0]
        torch.testing.assert_close(encode_subject(handle, clip_vision, pictures()).tokens, expected)


def test_a_plain_adapter_reads_the_pooled_embedding_of_each_picture(world: Any, clip_vision: Any) -> None:
    from tiny import make_encoder

    from nested_attention.hosts.comfy import encode_subject

    kind = {"features": "image_embeds", "vision_dim": 16, "injection": "decoupled"}
    plain = make_encoder(world.model, seed=1, **kind)
    batch = pictures(2)
    pooled = clip_vision.encode_image(batch)["image_embeds"]  # (2, 16)
    each = torch.cat([plain.encoder(one[None, None])[0] for one in pooled])
    torch.testing.assert_close(encode_subject(plain, clip_vision, batch).tokens, each)
    mean = plain.encoder(pooled.mean(dim=0)[None, None])[0]
    found = encode_subject(plain, clip_vision, batch, average=True)
    torch.testing.assert_close(found.tokens, mean)
    assert found.images == 2


def test_a_subject_can_be_saved_mixed_and_applied(world: Any, clip_vision: Any, tmp_path: Path) -> None:
    from tiny import carries, encode, sample

    from nested_attention.hosts.comfy import encode_subject
    from nested_attention.subject import Subject

    one = encode_subject(world.person, clip_vision, pictures())
    one.save(tmp_path / "one.safetensors")
    with torch.inference_mode(False):
        mixed = Subject.load(tmp_path / "one.safetensors").mix(world.bob, 0.3)
    model, clip = world.apply(world.model, world.clip, mixed)
    pure, _ = world.apply(world.model, world.clip, one)
    positive, negative = encode(clip, "a person"), encode(clip, "bad")
    assert carries(sample(model, positive, negative), sample(pure, positive, negative))


def test_grey_and_transparent_pictures(world: Any) -> None:
    from nested_attention.hosts.comfy import check_pictures

    grey = pictures(channels=1)
    assert torch.equal(check_pictures(grey), grey.expand(-1, -1, -1, 3))
    colour, alpha = pictures(), torch.zeros(1, 40, 56, 1)
    alpha[:, :20] = 1
    seen = check_pictures(torch.cat([colour, alpha], dim=-1))
    assert torch.equal(seen[:, :20], colour[:, :20])
    assert bool((seen[:, 20:] == 1).all())
    assert torch.equal(check_pictures(colour), colour)
    assert float(check_pictures(colour + 0.005).max()) <= 1


def test_what_bicubic_resizing_overshoots_is_clamped(world: Any) -> None:
    """As the core's Upscale Image leaves it, of pictures and of masks."""
    from comfy.utils import common_upscale

    from nested_attention.hosts.comfy import check_pictures
    from nested_attention.pictures.check import check_masks
    from nested_attention.settings import SubjectSettings

    sharp = (torch.arange(40 * 56) % 7 < 3).float().view(1, 1, 40, 56)
    for width, height in ((200, 150), (24, 20)):
        resized = common_upscale(sharp, width, height, "bicubic", "disabled")
        assert float(resized.min()) < -0.05 and float(resized.max()) > 1.05
        assert torch.equal(check_pictures(resized.movedim(1, -1))[..., 0], resized[:, 0].clamp(0, 1))
        assert torch.equal(check_masks(resized[:, 0], "Node"), resized[:, 0].clamp(0, 1))
        assert torch.equal(SubjectSettings(region=resized[:, 0]).region, resized[:, 0].clamp(0, 1))


def test_more_pictures_than_a_computer_holds(world: Any) -> None:
    """An animated picture, or a video, comes as a picture a frame."""
    from dataclasses import replace
    from types import SimpleNamespace

    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy.encoding.pictures import check_number
    from nested_attention.sites import sdxl_sites

    config = replace(world.person.config, num_queries=1024, sites=sdxl_sites())
    handle: Any = SimpleNamespace(config=config)
    check_number(handle, 64)
    with pytest.raises(
        NestedAttentionError, match="65 pictures are 66,560 tokens, .* take 22.2 GB; expected"
    ):
        check_number(handle, 65)


def nan_in_the_second() -> Tensor:
    batch = pictures(2)
    batch[1, 3, 3, 0] = float("nan")
    return batch


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda: pictures(height=1, width=1), "1 × 1 pixels; expected at least 16"),
        (lambda: pictures(height=400, width=8), "8 × 400 pixels"),
        (nan_in_the_second, "picture 2 of 2 has NaN or infinite values"),
        (lambda: pictures() * 255, "values are from .* to 25.; expected 0 to 1"),
        (lambda: pictures() - 0.5, "values are from -0.5"),
        (lambda: pictures(channels=2), r"shape \(1, 40, 56, 2\); expected an IMAGE"),
        (lambda: pictures(0), r"shape \(0, 40, 56, 3\)"),
        (lambda: pictures()[0], r"shape \(40, 56, 3\)"),
        (lambda: "cat.png", "the image has str"),
    ],
)
def test_pictures_that_cannot_be_read(world: Any, clip_vision: Any, image: Any, message: str) -> None:
    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy import encode_subject

    with pytest.raises(NestedAttentionError, match=f"Encode Subject: .*{message}"):
        encode_subject(world.person, clip_vision, image())


def test_another_vision_model(world: Any, clip_vision: Any) -> None:
    from tiny import make_encoder

    from nested_attention.errors import NestedAttentionError
    from nested_attention.hosts.comfy import encode_subject

    wider = make_encoder(world.model, seed=1, vision_dim=1280)
    with pytest.raises(
        NestedAttentionError, match="Encode Subject: .*width 24; .*person.safetensors.*width 1280.*ViT-H"
    ):
        encode_subject(wider, clip_vision, pictures())
    with pytest.raises(
        NestedAttentionError, match="Encode Subject: the CLIP vision model object gives no last_hidden"
    ):
        encode_subject(world.person, object(), pictures())
    with pytest.raises(NestedAttentionError, match="Encode Subject: 2 weights for 1 images"):
        encode_subject(world.person, clip_vision, pictures(), weights=[1, 1])
