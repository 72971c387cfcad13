"""The document of what was observed, the page that shows it, and the command that writes it."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from tiny_sdxl import make_encoder, make_pipeline
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from nested_attention.checkpoint import save_subject_encoder
from nested_attention.cli.app import app
from nested_attention.inspection.document import document
from nested_attention.inspection.draw import (
    GAP,
    alike,
    enlarged,
    overlay,
    query_pictures,
    token_pictures,
    value_pictures,
    word_pictures,
)
from nested_attention.inspection.looks import reference
from nested_attention.inspection.maps import CHANGE, WORD, Observation, Selection, SubjectMaps
from nested_attention.inspection.page import page
from nested_attention.sites import diffusers_sites, sdxl_sites
from nested_attention.subject import Subject


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def seen() -> Observation:
    """Two pictures, with two subjects and with one; the first subject has two references, one of them
    known."""
    known = reference(rand(9, 9, 3), lambda: rand(4, 3, 3, seed=3))
    tokens = Subject(rand(8, 5), torch.zeros(8), "person", "made up", 2, (known, None))
    found = []
    for number, (title, picture) in enumerate((("<alice>", 0), ("bob", 0), ("bob", 1))):
        maps = {
            f"up_blocks.{at}.attn2": rand(2, 6, *grid, seed=10 * number + at)
            for at, grid in enumerate(((4, 6), (8, 12)))
        }
        nested = rand(8, 8, 12, seed=number).softmax(dim=0)
        found.append(SubjectMaps.of(title, "person", picture, tokens, maps, nested, strongest=3, queries=4))
    return Observation(tuple(found), ((0, 1), (2, 3)), steps=4, pictures=2)


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list((rand(2, 32, 48, 3) * 255).byte().numpy())


def read(part: dict[str, Any], kind: str, name: str = "data") -> np.ndarray:
    return np.frombuffer(base64.b64decode(part[name]), kind)


def test_a_document_holds_the_maps_to_a_255th_and_the_tokens_exactly(
    seen: Observation, pictures: list[np.ndarray]
) -> None:
    written = json.loads(json.dumps(document(seen, pictures, [(0.5, 0.5)])))
    assert [[s["title"] for s in p["subjects"]] for p in written["pictures"]] == [["<alice>", "bob"], ["bob"]]
    one, maps = written["pictures"][0]["subjects"][0], seen.subjects[0]
    for name, channel in (("word", WORD), ("change", CHANGE)):
        for part, selection in (
            (one, Selection()),
            (one["layers"][1], Selection(layers="up_blocks.1")),
            (one["steps"][1], Selection(steps=(2, 3))),
        ):
            expected = maps.mean(channel, selection, seen.spans)[0]
            assert part[name]["grid"] == list(expected.shape)
            values = read(part[name], "u1").reshape(expected.shape) / 255 * part[name]["max"]
            assert np.abs(values - expected.numpy()).max() <= part[name]["max"] / 510 + 1e-6
    tokens = one["tokens"]
    shape = (*tokens["grid"], tokens["count"])
    assert np.array_equal(
        read(tokens, "<u2", "indices").reshape(shape), maps.indices.permute(1, 2, 0).numpy()
    )
    shares = read(tokens, "<u2", "shares").reshape(shape) / 65535
    assert np.allclose(shares, maps.weights.permute(1, 2, 0).numpy(), atol=1e-5)
    first, second = one["references"]
    assert first["image"].startswith("data:image/png") and second == {
        "image": None, "queries": 4, "grid": [1, 1], "maps": {},
    }  # fmt: skip
    assert set(first["maps"]) <= {"0", "1", "2", "3"}
    image = Image.open(io.BytesIO(base64.b64decode(written["pictures"][0]["image"].split(",")[1])))
    assert np.array_equal(np.asarray(image), pictures[0])
    assert one["points"] == [[0.5, 0.5]]


def test_a_page_asks_for_nothing_and_no_text_ends_its_script(
    seen: Observation, pictures: list[np.ndarray]
) -> None:
    written = page(document(seen, pictures), "</script><b>")
    assert not re.search(r"""(src|href)=["']|@import|fetch\(|https?:""", written)
    assert written.count("</script>") == 2 and "<b>" not in written
    inside = re.search(r'id="maps">(.*?)</script>', written, re.S)
    assert inside is not None and json.loads(inside[1])["pictures"][0]["subjects"][0]["title"] == "<alice>"


def test_pictures_of_maps(seen: Observation, pictures: list[np.ndarray]) -> None:
    words = word_pictures(seen, pictures, Selection())
    assert [x.shape for x in words] == [x.shape for x in pictures]
    assert not np.array_equal(words[0], word_pictures(seen, pictures, Selection(), change=True)[0])
    for sheets in (
        value_pictures(seen, pictures, Selection()),
        token_pictures(seen, pictures, ()),
        token_pictures(seen, pictures, [(0.2, 0.9)]),
    ):
        assert len(sheets) == 2 and sheets[0].shape == sheets[1].shape
        assert sheets[0].dtype == np.uint8 and not np.array_equal(*sheets)
    assert query_pictures(seen).ndim == 3
    hot = torch.zeros(4, 6)
    hot[1, 2] = 1
    shown = overlay(np.full((40, 60, 3), 100, np.uint8), [(hot, (255, 0, 0))]).astype(int)
    row, column = np.unravel_index(shown[..., 0].argmax(), shown.shape[:2])
    assert (row * 4 // 40, column * 6 // 60) == (1, 2)
    assert np.array_equal(
        enlarged(np.eye(2, dtype=np.uint8)[..., None].repeat(3, -1), 4)[..., 0].sum(0), [2] * 4
    )
    assert {x.shape for x in alike([words[0], words[1][:8]])} == {words[0].shape}


def test_the_most_used_tokens_are_those_of_the_places_that_attend_to_the_word() -> None:
    """Two tokens share three places; the word is attended at the one place that has the second."""
    nested = torch.tensor([[0.9, 0.9, 0.2], [0.1, 0.1, 0.8]])[:, None]  # (N, 1, 3)
    word = torch.tensor([0.01, 0.01, 1.0]).expand(1, 6, 1, 3)
    tokens = Subject(rand(2, 5), torch.zeros(2), "person", "made up")
    maps = SubjectMaps.of("bob", "person", 0, tokens, {"x": word}, nested, strongest=2, queries=2)
    assert maps.most_used(1, ((0, 0),)) == [1]


def test_queries_of_a_picture_that_is_not_known_are_left_out(seen: Observation) -> None:
    """As where a fresh picture is mixed with a saved subject that counts for nearly all."""
    of_unknown = replace(seen.subjects[0], indices=torch.full_like(seen.subjects[0].indices, 6))
    known = reference(rand(9, 9, 3), lambda: rand(4, 3, 3, seed=3))
    one = replace(of_unknown, references=(known, None), weights=torch.rand_like(of_unknown.weights))
    only = replace(seen, subjects=(one,))
    assert query_pictures(only, number=1).shape == query_pictures(replace(only, subjects=())).shape


def test_halves_of_the_steps_are_shown_where_steps_are_told_apart(
    seen: Observation, pictures: list[np.ndarray]
) -> None:
    together = tuple(
        replace(one, maps={site: x[:1] for site, x in one.maps.items()}) for one in seen.subjects
    )
    one_group = Observation(together, ((0, 3),), steps=4, pictures=2)
    apart, whole = (value_pictures(x, pictures, Selection())[0].shape[1] for x in (seen, one_group))
    assert (apart - GAP) * 3 == (whole - GAP) * 5  # five pictures a row, and three


def test_the_command_draws_the_small_world_and_writes_a_page(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["inspect", "a photo of a pet", "--steps", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    written = out.read_text(encoding="utf-8")
    inside = re.search(r'id="maps">(.*?)</script>', written, re.S)
    assert inside is not None
    (picture,) = json.loads(inside[1])["pictures"]
    assert [one["title"] for one in picture["subjects"]] == ["pet"]
    assert picture["subjects"][0]["references"][0]["image"] is not None


def test_the_command_draws_an_sdxl_with_all_of_its_layers(tmp_path: Path) -> None:
    """Of SDXL's layout, 70 cross-attention layers, and tiny widths: the layers, grids and subject that the
    page shows, from a photograph that is not square."""
    pipeline = make_pipeline()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=pipeline.unet.config.cross_attention_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pipeline.text_encoder_2.config.projection_dim,
        norm_num_groups=4,
    )
    sites = [site.name for site in diffusers_sites(unet)]
    assert sites == [site.name for site in sdxl_sites()]
    pipeline.register_modules(unet=unet)
    pipeline.save_pretrained(tmp_path / "sdxl")
    save_subject_encoder(make_encoder(unet), tmp_path / "encoder.safetensors")
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=8)
    CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / "sdxl" / "image_encoder")
    Image.fromarray((rand(40, 30, 3) * 255).byte().numpy()).save(tmp_path / "photo.png")
    out = tmp_path / "page.html"
    names = ["--base", tmp_path / "sdxl", "--encoder", tmp_path / "encoder.safetensors"]
    more = ["--reference", tmp_path / "photo.png", "--size", 128, "--steps", 1, "--all-layers", "--out", out]
    done = CliRunner().invoke(app, ["inspect", "a photo of a person", *map(str, [*names, *more])])
    assert done.exit_code == 0, done.output
    inside = re.search(r'id="maps">(.*?)</script>', out.read_text(encoding="utf-8"), re.S)
    assert inside is not None
    (picture,) = json.loads(inside[1])["pictures"]
    (subject,) = picture["subjects"]
    assert (picture["width"], picture["height"], subject["title"]) == (128, 128, "person")
    layers = {layer["site"]: layer["word"]["grid"] for layer in subject["layers"]}
    assert set(layers) == set(sites)
    fine = {site for site, grid in layers.items() if site.split(".")[:2] in FINE}
    assert {site for site, grid in layers.items() if grid == [32, 32]} == fine and len(fine) == 10
    (reference,) = subject["references"]
    assert reference["queries"] == 6 and reference["grid"] == [4, 4]


FINE = (["down_blocks", "1"], ["up_blocks", "1"])
"""Where SDXL's attention has half the latent's grid."""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["a photo of a lamp"], "neither person nor pet"),
        (["a person", "--base", "somewhere"], "say whose picture it is"),
        (["a person", "--reference", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_the_command_cannot_do_is_said(options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["inspect", *options])
    assert done.exit_code == 1 and said in done.output
