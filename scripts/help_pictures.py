#!/usr/bin/env python3
"""Draws the pictures of the help pages about the small world, sheets and Likeness.

python scripts/help_pictures.py

Demo Pose's is drawn by the shipped weights: run it again when they change.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nested_attention.avatars.drawing.picture import enlarge  # noqa: E402
from nested_attention.avatars.drawing.pose import Pose  # noqa: E402
from nested_attention.avatars.drawing.pose_map import pose_map  # noqa: E402
from nested_attention.avatars.drawing.references import (  # noqa: E402
    KINDS,
    held_out,
    reference_crop,
    reference_picture,
)
from nested_attention.avatars.models.control import Control, load_control  # noqa: E402
from nested_attention.avatars.models.model import LATENT_WIDE  # noqa: E402
from nested_attention.avatars.models.world import load_world  # noqa: E402
from nested_attention.checkpoint import load_subject_encoder  # noqa: E402
from nested_attention.demo.draw import load_workflow, node_of  # noqa: E402
from nested_attention.demo.server import ComfyServer  # noqa: E402
from nested_attention.find_comfyui import find_comfyui  # noqa: E402
from nested_attention.paths import ADAPTERS, FACE_RECOGNISER, SMALL_WORLD  # noqa: E402
from nested_attention.pictures.pyramid import face_detector  # noqa: E402
from nested_attention.pictures.recognise import compare, load_face_recogniser  # noqa: E402
from nested_attention.settings import SubjectSettings  # noqa: E402

SIDE, GAP, SEEDS = 112, 8, range(6)


def references() -> Image.Image:
    """What Demo World draws for the first seeds: a row of people, a row of pets."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (len(SEEDS) * step + GAP, len(KINDS) * step + GAP), (250, 249, 246))
    for row, kind in enumerate(KINDS):
        for column, seed in enumerate(SEEDS):
            picture = Image.fromarray(reference_picture(held_out(kind, seed)))
            shown = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (GAP + column * step, GAP + row * step))
    return sheet


POSES = ((9, 6, 1), (16, 8, 0), (20, 12, -1), (23, 8, -1))
"""Column, row and gaze of the figures in Demo Pose's picture."""


def poses() -> Image.Image:
    """Pose pictures, and one person whom the small world draws in them."""
    maps = np.stack([pose_map([Pose(x, y, gaze, "calm")]) for x, y, gaze in POSES])
    world, encoder = load_world(), load_subject_encoder(SMALL_WORLD / "person_encoder.safetensors").eval()
    crops = np.stack([reference_crop(held_out("person", 7))] * len(POSES))
    drawn = world.generate(
        ["a photo of a person wearing a yellow raincoat at the beach"] * len(POSES),
        range(len(POSES)),
        [world.attach(encoder, crops, "person")],
        control=Control(load_control(), maps),
    )
    shown = enlarge(np.concatenate([np.concatenate(list(row), axis=1) for row in (maps, drawn)]), 3)
    return Image.fromarray(shown)


INJECTIONS = ("no subject", "everywhere", "anchored", "nested")
"""What stands over the columns of Apply Subject's picture, beside the references."""


def injections(rows: int = 3) -> Image.Image:
    """A person and a pet in one picture: an adapter added everywhere, the same anchored, nested encoders."""
    prompts = [
        "a photo of a person on the left with a scarf and a pet on the right in the snow",
        "a cartoon of a person on the left and a pet on the right in a forest",
        "a photo of a person on the right wearing a yellow raincoat and a pet on the left at the beach",
    ][:rows]
    world = load_world()
    crops = {
        kind: np.stack([reference_crop(held_out(kind, 7 + row)) for row in range(rows)]) for kind in KINDS
    }
    columns = [world.generate(prompts, range(rows), latent_width=LATENT_WIDE)]
    for injection in INJECTIONS[1:]:
        attached = []
        for kind in KINDS:
            folder, name = (SMALL_WORLD, f"{kind}_encoder") if injection == "nested" else (ADAPTERS, kind)
            encoder = load_subject_encoder(folder / f"{name}.safetensors").eval()
            one = world.attach(encoder, crops[kind], kind)
            attached.append(replace(one, settings=SubjectSettings(injection=injection)))
        columns.append(world.generate(prompts, range(rows), attached, latent_width=LATENT_WIDE))
    width, height, top = 192, 128, 26
    half = height // 2
    size = GAP + (half + GAP) + 4 * (width + GAP), top + rows * (height + GAP)
    sheet = Image.new("RGB", size, (250, 249, 246))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)

    def paste(rgb: np.ndarray, left: int, upper: int, width: int, height: int) -> None:
        sheet.paste(Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST), (left, upper))

    for row in range(rows):
        upper = top + row * (height + GAP)
        for number, kind in enumerate(KINDS):
            paste(crops[kind][row], GAP, upper + number * half, half, half)
        for number, (name, drawn) in enumerate(zip(INJECTIONS, columns, strict=True)):
            left = 2 * GAP + half + number * (width + GAP)
            paste(drawn[row], left, upper, width, height)
            draw.text((left, 5), name, fill=(40, 40, 40), font=font)
    return sheet


def likeness() -> Image.Image:
    """The photographs that scikit-image ships, and what Likeness says of them."""
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    pictures = {
        "reference": astronaut,
        "darker": astronaut.point(lambda value: value * 0.35),
        "cropped": astronaut.crop((110, 20, 350, 260)),
        "a photographer": Image.fromarray(data.camera()).convert("RGB"),
        "a cat": Image.fromarray(data.chelsea()[:, 80:380]),
    }
    side = 120
    shown = {
        name: picture.resize((side, side), Image.Resampling.LANCZOS) for name, picture in pictures.items()
    }
    batches = {name: torch.from_numpy(np.asarray(p)).float()[None] / 255 for name, p in pictures.items()}
    detect, network = face_detector(), load_face_recogniser(FACE_RECOGNISER)
    sheet = Image.new("RGB", (len(shown) * (side + GAP) + GAP, side + 64), (250, 249, 246))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (name, picture) in enumerate(shown.items()):
        left = GAP + column * (side + GAP)
        sheet.paste(picture, (left, GAP))
        lines = [name]
        if name != "reference":
            (found,) = compare(batches["reference"], batches[name], detect, network)
            verdict, _, figure = found.verdict.partition(": ")
            lines = [verdict, figure.partition(",")[0]]
        draw.multiline_text((left, side + GAP + 6), "\n".join(lines), fill=(40, 40, 40), font=font)
    return sheet


def subject_sheet() -> Image.Image:
    """What the workflow of Subject Sheet draws, in ComfyUI."""
    comfyui, where = find_comfyui()
    if comfyui is None:
        sys.exit(f"ComfyUI was not found: {where}")
    workflow = load_workflow("avatar_grid")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        (path,) = server.run(workflow)[node_of(workflow, "SaveImage")]
        with Image.open(path) as picture:
            return picture.convert("RGB")


if __name__ == "__main__":
    likeness().save(ROOT / "web" / "docs" / "likeness.jpg", quality=85)
    for name, picture in (
        ("demo_world", references()),
        ("demo_pose", poses()),
        ("injection", injections()),
        ("sheet", subject_sheet()),
    ):
        place = ROOT / "web" / "docs" / f"{name}.png"
        picture.quantize(128, dither=Image.Dither.NONE).save(place, optimize=True)
