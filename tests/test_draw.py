"""`nested-attention draw`: from a photograph on disk to a picture on disk, on the small world and on an SDXL
of the smallest sizes."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from tiny_sdxl import make_encoder, make_pipeline
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from nested_attention.avatars.drawing.references import held_out, reference_picture
from nested_attention.card import EncoderCard
from nested_attention.checkpoint import load_subject_encoder, save_subject_encoder
from nested_attention.cli.app import app
from nested_attention.demo import models, photograph
from nested_attention.demo.models import sampling
from nested_attention.encoder import SubjectEncoder
from nested_attention.errors import NestedAttentionError
from nested_attention.hosts.diffusers.vision import load_vision
from nested_attention.pictures.files import read_picture
from nested_attention.storage.registry import find_weights

PROMPT = "a photo of a person at the beach"


def draw(out: Path, *arguments: Any) -> Any:
    return CliRunner().invoke(
        app, ["draw", PROMPT, *map(str, arguments), "--steps", "2", "--out", str(out)], terminal_width=200
    )


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    """A held-out person of the small world, as a file."""
    path = tmp_path / "portrait.png"
    Image.fromarray(reference_picture(held_out("person", 3))).save(path)
    return path


@pytest.fixture
def sdxl(tmp_path: Path) -> dict[str, Path]:
    """An SDXL, an encoder for it and a vision model for that, on disk."""
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "sdxl")
    config = dataclasses.replace(make_encoder(pipeline.unet).config, vision_dim=64)
    torch.manual_seed(0)
    save_subject_encoder(SubjectEncoder(config), tmp_path / "encoder.safetensors")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**sizes, projection_dim=32, image_size=56, patch_size=14, hidden_act="gelu")
    ).eval()
    vision.save_pretrained(tmp_path / "vision")
    weights = {name: x.half() for name, x in vision.state_dict().items() if "position_ids" not in name}
    save_file(weights, tmp_path / "vision.safetensors")
    names = ("sdxl", "encoder.safetensors", "vision", "vision.safetensors")
    return {name: tmp_path / name for name in names}


def test_the_small_world_draws_the_person_of_a_picture(tmp_path: Path, portrait: Path) -> None:
    done = draw(tmp_path / "new" / "one.png", "--photo", portrait)
    assert done.exit_code == 0, done.output
    assert "portrait.png: as it is" in done.output
    assert "never seen a photograph" not in done.output
    with Image.open(tmp_path / "new" / "one.png") as picture:
        one = np.asarray(picture)
    assert one.shape == (512, 512, 3)
    for name, *options in (("again.png",), ("off.png", "--strength", 0), ("other.png", "--seed", 1)):
        assert draw(tmp_path / name, "--photo", portrait, *options).exit_code == 0
        with Image.open(tmp_path / name) as picture:
            assert np.array_equal(np.asarray(picture), one) == (name == "again.png")


@pytest.mark.parametrize(
    ("prompt", "size"),
    [
        ("a house", (32, 32)),
        ("a photo of a woman", (32, 32)),
        ("a man and a Man in the snow", (48, 32)),
        ("a person and a cat and a dog", (48, 32)),
    ],
)
def test_the_small_world_s_pictures_are_as_wide_as_their_figures_need(
    prompt: str, size: tuple[int, int]
) -> None:
    told = sampling(None, prompt, steps=None, guidance=5.0, size=None, seed=0)
    assert (told["width"], told["height"]) == size
    big = sampling("sdxl", prompt, steps=None, guidance=5.0, size=None, seed=0)
    assert (big["width"], big["height"]) == (1024, 1024)


def test_an_sdxl_with_files_of_its_own(tmp_path: Path, portrait: Path, sdxl: dict[str, Path]) -> None:
    names = ["--checkpoint", sdxl["sdxl"], "--encoder", sdxl["encoder.safetensors"], "--device", "cpu"]
    pictures = []
    for vision in ("vision", "vision.safetensors"):
        out = tmp_path / f"{vision}.png"
        more = ("--photo", portrait, "--size", 64, "--prepare", "none", "--vision", sdxl[vision])
        done = draw(out, *names, *more, "--photo", portrait)
        assert done.exit_code == 0, done.output
        with Image.open(out) as picture:
            pictures.append(np.asarray(picture).astype(int))
    assert pictures[0].shape == (64, 64, 3)
    assert np.abs(pictures[0] - pictures[1]).max() <= 2  # the file holds half precision


def test_without_a_vision_model_it_is_named_before_sdxl_is_read(
    tmp_path: Path, portrait: Path, sdxl: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an encoder of one's own has it: the registry knows nothing of that, its card does."""
    monkeypatch.setattr(models, "_models_folder", lambda: tmp_path / "models")
    monkeypatch.setattr(models, "_sdxl", pytest.fail)
    own = load_subject_encoder(sdxl["encoder.safetensors"])
    save_subject_encoder(own, tmp_path / "album.safetensors", card=EncoderCard(vision_model="CLIP-H"))
    names = ["--photo", portrait, "--checkpoint", sdxl["sdxl"], "--device", "cpu", "--size", 64]
    for file, told in (("encoder.safetensors", "not known"), ("album.safetensors", "CLIP-H")):
        done = draw(tmp_path / "out.png", *names, "--encoder", tmp_path / file)
        said = " ".join(done.output.split())
        assert f"the vision model of {file} is {told}, and none is installed" in said
        assert "--vision" in said and "download clip-vit-h" in said


def test_the_usual_vision_model_is_taken_where_it_is_installed(
    tmp_path: Path, portrait: Path, sdxl: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_models_folder", lambda: tmp_path / "models")
    place = find_weights("clip-vit-h").place(tmp_path / "models")
    place.parent.mkdir(parents=True)
    shutil.copy(sdxl["vision.safetensors"], place)
    names = ["--checkpoint", sdxl["sdxl"], "--encoder", sdxl["encoder.safetensors"], "--device", "cpu"]
    done = draw(tmp_path / "one.png", *names, "--photo", portrait, "--size", 64, "--prepare", "none")
    assert done.exit_code == 0, done.output


def test_the_readme_s_example_for_sdxl_runs_on_small_files(tmp_path: Path, sdxl: dict[str, Path]) -> None:
    """As it stands, but for the checkpoint, which is a folder here, and the GPU."""
    page = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    _, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for there, here in (
        ("from_single_file", "from_pretrained"),
        ("sd_xl_base_1.0.safetensors", "sdxl"),
        ("float16", "float32"),
        ('"cuda"', '"cpu"'),
    ):
        assert there in example
        example = example.replace(there, here)
    encoder, vision = re.findall(r'"([^"]+\.safetensors)"', example)
    shutil.copy(sdxl["encoder.safetensors"], tmp_path / encoder)
    shutil.copy(sdxl["vision.safetensors"], tmp_path / vision)
    Image.fromarray(data.astronaut()).save(tmp_path / "me.jpg")
    script = tmp_path / "example.py"
    script.write_text(f"{example}print(pipeline.device, len(alice.tokens), tuple(photos.shape))", "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[-2].endswith("(1, 512, 512, 3)"), done.stdout


def test_a_vision_model_from_one_file(sdxl: dict[str, Path]) -> None:
    folder, file = load_vision(sdxl["vision"]), load_vision(sdxl["vision.safetensors"])
    told = ("hidden_size", "num_hidden_layers", "image_size", "patch_size", "projection_dim", "hidden_act")
    assert all(getattr(folder.config, name) == getattr(file.config, name) for name in told)
    pixels = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    expected = folder.half().float()(pixels).last_hidden_state
    torch.testing.assert_close(file(pixels).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photo", "none.png"], "none.png cannot be read as a picture"),
        (["--photo", "PORTRAIT", "--word", "horse"], "horse"),
        (["--photo", "PORTRAIT", "--prepare", "face"], "no face was found"),
        (["--photo", "PORTRAIT", "--encoder", "alien"], "the small world has the encoders person and pet"),
        (["--photo", "PORTRAIT", "--size", "512"], "a size of their own; leave out --size"),
        (
            ["--photo", "PORTRAIT", "--checkpoint", "x", "--encoder", "alien"],
            "no known weights called .alien",
        ),
        (["--photo", "PORTRAIT", "--checkpoint", "x"], "not installed.*nested-attention download"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, portrait: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    done = draw(tmp_path / "out.png", *[portrait if one == "PORTRAIT" else one for one in arguments])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert said.startswith("nested-attention: ")
    assert re.search(message, said), said
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("name", ["me", "me.foo", "me.psd"])
def test_a_picture_that_cannot_be_saved_is_refused_before_anything_is_loaded(
    tmp_path: Path, portrait: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photograph, "load_models", lambda *given, **more: pytest.fail("loaded"))
    done = draw(tmp_path / name, "--photo", portrait)
    assert done.exit_code == 1 and "expected a picture's file name" in done.stderr
    odd = draw(tmp_path / "me.png", "--photo", portrait, "--checkpoint", "sdxl", "--size", "100")
    assert odd.exit_code == 1 and "expected a multiple of 8, such as 96" in odd.stderr


def test_photographs_are_turned_and_lie_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20), "black")
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held upright
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (30, 20, 3)
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert bool((read_picture(tmp_path / "clear.png") == 1).all())
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(NestedAttentionError, match=r"text.png cannot be read.*expected a PNG"):
        read_picture(tmp_path / "text.png")


def test_photographs_of_different_files_are_one_subject(tmp_path: Path, portrait: Path) -> None:
    done = draw(tmp_path / "two.png", "--photo", portrait, "--photo", portrait)
    assert done.output.count("portrait.png: as it is") == 2


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_help_goes_into_a_file_that_lacks_some_of_its_letters(encoding: str) -> None:
    """As PowerShell's `>` on Windows."""
    done = subprocess.run(
        [sys.executable, "-m", "nested_attention.cli", "draw", "--help"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert b"more is more of the subject" in done.stdout
