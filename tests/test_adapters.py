"""IP-Adapter's files: what each is taken for, and what it makes of a picture; how encoders say how they were
trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from synthetic_checkpoints import TINY_SITES, Sizes, encoder_tensors, plain_tensors, write
from tiny_sdxl import make_encoder, make_pipeline, make_subject
from torch import Tensor

from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers import AppliedSubject, personalize
from nested_attention.settings import SubjectSettings
from nested_attention.sites import diffusers_sites, sd15_sites
from nested_attention.subject import Subject

PLUS = Sizes(queries=16)


def load(tmp_path: Path, tensors: dict[str, Tensor], **overrides: Any) -> Any:
    return load_subject_encoder(write(tmp_path / "x.safetensors", tensors), sites=TINY_SITES, **overrides)


def features(images: int, patches: int, seed: int = 0) -> Tensor:
    return torch.randn(images, patches, 12, generator=torch.Generator().manual_seed(seed))


def test_how_an_encoder_was_trained_is_told_from_its_layout(tmp_path: Path) -> None:
    plus = load(tmp_path, encoder_tensors(sizes=PLUS)).config
    assert (plus.injection, plus.features) == ("decoupled", "penultimate_hidden_states")
    plain = load(tmp_path, plain_tensors()).config
    assert (plain.injection, plain.features, plain.num_queries) == ("decoupled", "image_embeds", 4)
    paper = load(tmp_path, encoder_tensors()).config
    assert (paper.injection, paper.features) == ("nested", "last_hidden_state")
    told = load(tmp_path, encoder_tensors(), injection="decoupled").config
    assert told.injection == "decoupled"
    assert SubjectSettings().trained_as(plus).injection == "anchored"
    assert SubjectSettings().trained_as(paper).injection == "nested"
    assert SubjectSettings(injection="nested").trained_as(plus).injection == "nested"
    with pytest.raises(NestedAttentionError, match="injection is 'added'; expected one of"):
        SubjectEncoderConfig(injection="added")  # type: ignore[arg-type]


@pytest.mark.parametrize("injection", ["nested", "decoupled"])
def test_our_files_say_it_and_those_without_are_nested(tmp_path: Path, injection: str) -> None:
    encoder = load(tmp_path, encoder_tensors(sizes=PLUS), injection=injection)
    save_subject_encoder(encoder, tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["config"])
    assert said.get("injection", "nested") == injection
    assert ("injection" in said) == (injection == "decoupled")  # versions that know no other still read ours
    assert load_subject_encoder(tmp_path / "ours.safetensors").config == encoder.config


def test_a_saved_subject_stays_its_encoder_s_however_that_is_applied(tmp_path: Path) -> None:
    one = load(tmp_path, encoder_tensors(sizes=PLUS))
    other = load(tmp_path, encoder_tensors(sizes=PLUS), injection="nested")
    assert one.fingerprint == other.fingerprint
    Subject.from_images(one, features(1, 9)).check_encoder(other)


def test_the_plain_one_reads_a_pooled_embedding(tmp_path: Path) -> None:
    tensors = plain_tensors()
    encoder = load(tmp_path, tensors)
    seen = features(2, 1)
    own = {name.removeprefix("image_proj."): t for name, t in tensors.items() if name.startswith("image")}
    expected = (seen[:, 0] @ own["proj.weight"].T + own["proj.bias"]).reshape(2, 4, 24)
    expected = expected - expected.mean(dim=-1, keepdim=True)
    expected = expected / (expected.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    expected = expected * own["norm.weight"] + own["norm.bias"]
    with torch.no_grad():
        torch.testing.assert_close(encoder(seen), expected, atol=1e-5, rtol=1e-5)
    keys, values = encoder.project(expected[0])[TINY_SITES[2].name]
    torch.testing.assert_close(keys[0], expected[0] @ tensors["ip_adapter.5.to_k_ip.weight"].T)
    torch.testing.assert_close(values[0], expected[0] @ tensors["ip_adapter.5.to_v_ip.weight"].T)
    save_subject_encoder(encoder, tmp_path / "ours.safetensors")
    again = load_subject_encoder(tmp_path / "ours.safetensors")
    assert again.fingerprint == encoder.fingerprint and again.config == encoder.config
    for wrong in (features(2, 9), features(2, 1)[:, 0]):
        with pytest.raises(NestedAttentionError, match=r"expects \(images, 1, 12\).*not a layer's"):
            encoder(wrong)


FACE_ID = {
    "FaceID": {"image_proj.proj.0.weight": torch.zeros(16, 512), "image_proj.norm.weight": torch.zeros(24)},
    "FaceID Plus": {"image_proj.perceiver_resampler.proj_in.weight": torch.zeros(24, 12)},
    "FaceID's LoRA": {**plain_tensors(), "ip_adapter.0.to_q_lora.down.weight": torch.zeros(4, 16)},
}


@pytest.mark.parametrize("kind", FACE_ID)
def test_face_id_is_refused_by_name_and_reason(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        NestedAttentionError, match="IP-Adapter FaceID .*non-commercial.*Use IP-Adapter Plus Face"
    ):
        load(tmp_path, {**encoder_tensors(sizes=PLUS), **FACE_ID[kind]})


def test_an_average_of_pictures_is_that_of_their_features(tmp_path: Path) -> None:
    encoder = load(tmp_path, encoder_tensors(sizes=PLUS))
    seen = features(3, 9)
    together = Subject.from_images(encoder, seen)
    average = Subject.from_images(encoder, seen, average=True)
    assert len(together.tokens) == 3 * 16 and len(average.tokens) == 16
    assert (average.images, average.fingerprint) == (3, encoder.fingerprint)
    with torch.no_grad():
        torch.testing.assert_close(average.tokens, encoder(seen.mean(dim=0, keepdim=True))[0])
        weighed = Subject.from_images(encoder, seen, [3, 0, 1], average=True)
        torch.testing.assert_close(weighed.tokens, encoder((3 * seen[:1] + seen[2:]) / 4)[0])
    assert weighed.images == 2
    assert torch.equal(Subject.from_images(encoder, seen[:1], average=True).tokens, together.tokens[:16])


@pytest.mark.parametrize("kind", ["plus", "plain"])
def test_sd15_s_files_are_told_by_the_width_of_their_tokens(tmp_path: Path, kind: str) -> None:
    """768, as SD 1.5's text; with one of its layers missing the file is refused, and so is another width."""
    sizes = Sizes(token_dim=768, queries=16 if kind == "plus" else 4)
    make = encoder_tensors if kind == "plus" else plain_tensors
    tensors = make(sizes=sizes, sites=sd15_sites())
    path = write(tmp_path / "x.safetensors", tensors)
    config = load_subject_encoder(path).config
    assert config.sites == sd15_sites() and config.injection == "decoupled"
    assert [(s.inner_dim, s.heads) for s in config.sites[:1] + config.sites[-1:]] == [(320, 8), (1280, 8)]
    short = {n: t for n, t in tensors.items() if ".31." not in n}
    with pytest.raises(NestedAttentionError, match="15 cross-attention layers.*expected one for SD 1.5"):
        load_subject_encoder(write(path, short))
    wider = make(sizes=Sizes(token_dim=769, queries=sizes.queries), sites=sd15_sites())
    with pytest.raises(NestedAttentionError, match="16 cross-attention layers.*expected one for SDXL"):
        load_subject_encoder(write(path, wider))


def test_sd15_in_diffusers() -> None:
    """The pipeline of SD 1.5, of its layout and tiny widths: one text encoder, 16 layers."""
    sdxl = make_pipeline()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=sdxl.text_encoder.config.hidden_size,
        norm_num_groups=8,
    ).eval()
    assert [site.name for site in diffusers_sites(unet)] == [site.name for site in sd15_sites()]
    pipeline = StableDiffusionPipeline(
        vae=sdxl.vae,
        text_encoder=sdxl.text_encoder,
        tokenizer=sdxl.tokenizer,
        unet=unet,
        scheduler=sdxl.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    encoder = SubjectEncoder(replace(make_encoder(unet).config, injection="decoupled")).eval()
    alice = make_subject(encoder)

    def draw(**settings: Any) -> Tensor:
        applied = AppliedSubject(alice, encoder, name="alice", **settings)
        with personalize(pipeline, [applied]):
            return pipeline(
                "a photo of <alice>", num_inference_steps=2, height=16, width=16, output_type="latent",
                generator=torch.Generator().manual_seed(0),
            ).images  # fmt: skip

    plain = pipeline(
        "a photo of person", num_inference_steps=2, height=16, width=16, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert torch.equal(draw(strength=0.0), plain)
    assert float((draw(weight=3.0) - plain).abs().max()) > 1e-3 * float(plain.abs().max())
