"""From pictures to a picture in diffusers: the vision model's input, a subject, and the small world as a
pipeline like any other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from synthetic_checkpoints import TINY_SITES, Sizes, plain_tensors, write

from nested_attention.avatars.drawing.references import held_out, reference_crop, reference_picture
from nested_attention.avatars.models.model import LATENT, LATENT_CHANNELS, time_ids
from nested_attention.avatars.models.pipeline import WorldPipeline, world_pipeline
from nested_attention.avatars.models.world import Sampling, World, load_world
from nested_attention.checkpoint import load_subject_encoder
from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import AppliedSubject, encode_subject, personalize
from nested_attention.hosts.diffusers.vision import picture_features, vision_input
from nested_attention.paths import PACK, SMALL_WORLD

PROMPT, SEED = "a cartoon of a person at the beach", 5


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def encoder() -> SubjectEncoder:
    return load_subject_encoder(SMALL_WORLD / "person_encoder.safetensors", dtype=torch.float32)


def test_the_small_world_is_a_pipeline_like_any_other(world: World, encoder: SubjectEncoder) -> None:
    """To the last level: the same subject, and the same picture of it."""
    person = held_out("person", 3)
    crop = reference_crop(person)[None]
    picture = torch.from_numpy(reference_picture(person)).float()[None] / 255
    subject = encode_subject(encoder, world.vision, picture)
    assert torch.equal(subject.tokens, encoder(world.features(crop))[0])

    pipeline = world_pipeline(world)
    pipeline.set_progress_bar_config(disable=True)
    shape = (1, LATENT_CHANNELS, LATENT, LATENT)
    options = {
        "latents": torch.randn(shape, generator=torch.Generator().manual_seed(SEED)),
        "output_type": "np",
        "num_inference_steps": Sampling().steps,
        "guidance_scale": Sampling().guidance,
    }
    with personalize(pipeline, [AppliedSubject(subject=subject, encoder=encoder)]):
        drawn = pipeline(PROMPT, **options).images[0]
    expected = world.generate([PROMPT], [SEED], [world.attach(encoder, crop, "person")])[0]
    np.testing.assert_array_equal((drawn * 255).round(), expected)


def test_pictures_that_are_not_in_unit_range_are_refused(world: World, encoder: SubjectEncoder) -> None:
    """All of them would be white, and everybody the same."""
    picture = torch.from_numpy(reference_picture(held_out("person", 3)))[None]
    with pytest.raises(NestedAttentionError, match="encode_subject: the picture's values are from .* 255; "):
        encode_subject(encoder, world.vision, picture)
    with pytest.raises(NestedAttentionError, match="expected an IMAGE .pictures, height, width, channels"):
        encode_subject(encoder, world.vision, picture.movedim(-1, 1) / 255)


def test_the_pipeline_tells_the_size_that_a_picture_is_shown_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pixels an art pixel: two figures are in wider pictures, as in training."""
    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", lambda self, *_, **options: options)
    pipeline = WorldPipeline.__new__(WorldPipeline)
    for given, size in (({}, (128, 128)), ({"height": 32, "width": 48}, (128, 192))):
        told = pipeline(PROMPT, **given)
        assert told == {"original_size": size, "target_size": size, **given}
        assert time_ids(size[1] // 8) == (*size, 0, 0, *size)
    assert pipeline(PROMPT, target_size=(1, 2))["target_size"] == (1, 2)


def test_what_the_vision_model_sees() -> None:
    """The middle of a picture that is wider or higher than it is the other way, in bytes, normalised."""
    generator = torch.Generator().manual_seed(0)
    square = torch.rand(1, 3, 56, 56, generator=generator)
    wide = torch.nn.functional.pad(square, (10, 10))
    torch.testing.assert_close(vision_input(wide, 56), vision_input(square, 56))
    torch.testing.assert_close(vision_input(wide.mT, 56), vision_input(square.mT, 56))
    grey = vision_input(torch.full((2, 3, 300, 200), 0.6), 56)
    assert grey.shape == (2, 3, 56, 56)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    torch.testing.assert_close(grey[1, :, 9, 9], (0.6 - mean) / std)


def test_features_of_both_layers(world: World) -> None:
    pictures = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    last, before = (
        picture_features(world.vision, pictures, layer)
        for layer in ("last_hidden_state", "penultimate_hidden_states")
    )
    layer = world.vision.vision_model.encoder.layers[-1]
    found = layer(before, attention_mask=None)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, last)


def test_another_vision_model_is_refused(world: World, encoder: SubjectEncoder) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    other = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=56, patch_size=14))
    with pytest.raises(NestedAttentionError, match="64 wide.*'person' reads features of width 128"):
        encode_subject(encoder, other, torch.rand(1, 80, 80, 3))


def test_a_plain_adapter_reads_the_pooled_embedding(world: World, tmp_path: Path) -> None:
    width = world.vision.config.projection_dim
    path = write(tmp_path / "plain.safetensors", plain_tensors(sizes=Sizes(vision_dim=width, queries=4)))
    plain = load_subject_encoder(path, sites=TINY_SITES)
    pictures = torch.rand(2, 80, 80, 3, generator=torch.Generator().manual_seed(0))
    subject = encode_subject(plain, world.vision, pictures)
    seen = vision_input(pictures.permute(0, 3, 1, 2), world.vision.config.image_size)
    with torch.no_grad():
        expected = plain(world.vision(seen).image_embeds[:, None]).flatten(0, 1)
    torch.testing.assert_close(subject.tokens, expected)
    assert [one.looks for one in subject.references if one is not None] == [None, None]
    wider = load_subject_encoder(write(path, plain_tensors()), sites=TINY_SITES)
    with pytest.raises(NestedAttentionError, match=f"image_embeds is {width} wide.*width 12"):
        encode_subject(wider, world.vision, pictures)


@pytest.mark.once
def test_the_check_at_full_width_runs(world_on_disk: Path, tmp_path: Path) -> None:
    """With the small world in place of SDXL: from two photographs to the figures of the packaged recogniser,
    which sees nobody in what one step draws, and knows a photograph's mirror image."""
    shutil.copytree(world_on_disk, tmp_path / "sdxl")
    command = [sys.executable, str(PACK / "scripts" / "full_width.py"), str(tmp_path), "--resolution", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "likeness 0.00, recognised 0%" in done.stdout and "recognised 100%" in done.stdout
    assert (tmp_path / "chelsea-prepared" / "index.json").exists()
