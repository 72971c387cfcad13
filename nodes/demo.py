"""The small world that comes with the pack: Demo World in place of a checkpoint, Demo Pose in place of a pose
detector, and its ControlNet and LoRA among those that ComfyUI's own loaders list."""

from __future__ import annotations

from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..nested_attention.avatars.comfy.base import load_checkpoint
from ..nested_attention.avatars.comfy.world import load_world
from ..nested_attention.avatars.drawing.pose import Pose
from ..nested_attention.avatars.drawing.pose_map import pose_picture
from ..nested_attention.avatars.drawing.references import held_out, reference_picture
from ..nested_attention.errors import NestedAttentionError
from ..nested_attention.paths import SMALL_WORLD
from ..nested_attention.prompt import short
from .common import naming, schema

SMALL = "small world"

SIZES = {1: ((128, 128), (1024, 1024)), 2: ((192, 128), (1216, 832))}
"""Figures of a picture → its width and height in pixels: in the small world, and on SDXL."""

GAZES = {"left": -1, "ahead": 0, "right": 1}
"""The viewer's left and right, as `Pose` numbers them."""


def register_extras() -> None:
    """List the small world's ControlNet and LoRA in ComfyUI's own loaders."""
    for kind in ("controlnet", "loras"):
        folder_paths.add_model_folder_path(kind, str(SMALL_WORLD / kind))


register_extras()


class DemoWorld(io.ComfyNode):
    """NestedAttentionDemoWorld"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        seed = {"default": 0, "min": 0, "max": 2**32 - 1}
        return schema(
            "DemoWorld",
            "Demo World",
            description=(
                "A tiny SDXL that draws people and pets as pixel art, for trying the nodes without a "
                "download. Use it like a checkpoint, with pictures of 128 × 128 pixels, or of 192 × 128 "
                "for two figures. It also draws a reference picture of a person and of a pet whom it has "
                "never seen in training."
            ),
            search_aliases=["nested attention", "avatars", "example", "small world"],
            inputs=[
                io.Int.Input("person", tooltip="Which person is drawn as a reference.", **seed),
                io.Int.Input("pet", tooltip="Which pet is drawn as a reference.", **seed),
                io.Combo.Input(
                    "base",
                    options=[SMALL, *folder_paths.get_filename_list("checkpoints")],
                    default=SMALL,
                    optional=True,
                    tooltip=(
                        "The switch of our workflows: the small world, or an SDXL checkpoint of yours, "
                        "whose MODEL, CLIP and VAE then come out. Encoders and pictures have to be of the "
                        "same kind: an SDXL encoder, and a photograph in place of the drawn reference."
                    ),
                ),
                io.Int.Input(
                    "figures",
                    default=1,
                    min=1,
                    max=2,
                    optional=True,
                    tooltip=(
                        "How many figures a picture is to hold: two take a wider latent, 192 × 128 pixels "
                        "in the small world."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="The small world's UNet."),
                io.Clip.Output("CLIP", tooltip="The small world's two text encoders."),
                io.Vae.Output("VAE", tooltip="The small world's VAE: 8 pixels a latent, as SDXL's."),
                io.ClipVision.Output(
                    "CLIP_VISION",
                    tooltip=(
                        "The vision encoder, for Encode Subject with the avatars encoders; nothing for a "
                        "checkpoint, whose encoder's is chosen in Load Subject Encoder."
                    ),
                ),
                io.Image.Output(
                    "person_picture", display_name="person", tooltip="A reference picture of the person."
                ),
                io.Image.Output("pet_picture", display_name="pet", tooltip="A reference picture of the pet."),
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip=(
                        "An empty latent. For one figure: four pictures of 128 × 128 pixels, or for a "
                        "checkpoint one of 1024 × 1024. For two figures: 192 × 128, or 1216 × 832."
                    ),
                ),
                io.Float.Output(
                    "scale",
                    display_name="scale",
                    tooltip="How much larger pictures are best shown: 4, or 1 for a checkpoint.",
                ),
            ],
        )

    @classmethod
    def execute(cls, person: int, pet: int, base: str = SMALL, figures: int = 1) -> io.NodeOutput:
        references = _image("person", person), _image("pet", pet)
        embeddings = folder_paths.get_folder_paths("embeddings")
        with naming("Demo World"):
            small, large = SIZES[_checked(figures)]
            if base == SMALL:
                world = load_world(SMALL_WORLD, embeddings)
                return io.NodeOutput(*world, *references, _latent(4, *small), 4.0)
            path = folder_paths.get_full_path("checkpoints", base)
            if path is None:
                raise NestedAttentionError(
                    f"there is no checkpoint {short(base)!r}; put it into models/checkpoints, press R in the "
                    f"editor and choose it again, or take {SMALL!r}"
                )
            models = load_checkpoint(path, embeddings)
        return io.NodeOutput(*models, None, *references, _latent(1, *large), 1.0)


def _checked(figures: int) -> int:
    """A number that comes by a wire has not been held to the input's bounds."""
    if figures not in SIZES:
        raise NestedAttentionError(f"figures is {figures}; expected 1 or 2, which a picture can hold")
    return figures


def _latent(pictures: int, width: int, height: int) -> dict[str, Any]:
    """As Empty Latent Image's: samplers give an empty latent the channels of the model."""
    return {"samples": torch.zeros(pictures, 4, height // 8, width // 8)}


def _image(kind: str, seed: int) -> Any:
    rgb = reference_picture(held_out(kind, seed)).astype(np.float32) / 255
    return torch.from_numpy(rgb)[None]  # (1, H, W, 3)


class DemoPose(io.ComfyNode):
    """NestedAttentionDemoPose"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "DemoPose",
            "Demo Pose",
            description=(
                "Draws where a figure of the small world is to stand: a pose picture for Apply ControlNet. "
                "Use it with avatars_pose.safetensors in Load ControlNet Model. Chain two for a picture of "
                "two figures. On SDXL, a pose detector (OpenPose, DWPose) stands in its place."
            ),
            search_aliases=["nested attention", "avatars", "openpose", "skeleton", "controlnet"],
            inputs=[
                io.Int.Input(
                    "x",
                    default=16,
                    min=6,
                    max=42,
                    tooltip="How far right the figure stands, in art pixels: 11 is on the left, 16 in the "
                    "middle, 21 on the right of the 32 across a picture of one figure; 12 and 36 are left "
                    "and right of the 48 across one of two.",
                ),
                io.Int.Input(
                    "y",
                    default=8,
                    min=4,
                    max=12,
                    tooltip="How far down the face begins, in art pixels of 32 from the top; 8 and 9 are "
                    "usual.",
                ),
                io.Combo.Input(
                    "gaze",
                    options=list(GAZES),
                    default="ahead",
                    tooltip="Where the figure looks, as seen by the viewer.",
                ),
                io.Image.Input(
                    "behind",
                    optional=True,
                    tooltip="Another Demo Pose, for a picture of two figures. This one is in front.",
                ),
                io.Int.Input(
                    "figures",
                    default=1,
                    min=1,
                    max=2,
                    optional=True,
                    tooltip=(
                        "How many figures the picture is to hold: two take a wider one, 192 × 128 pixels, as "
                        "the latent is. Set it in the Demo Pose behind as well."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "pose", display_name="pose", tooltip="The pose picture, for Apply ControlNet."
                )
            ],
        )

    @classmethod
    def execute(cls, x: int, y: int, gaze: str, behind: Any = None, figures: int = 1) -> io.NodeOutput:
        pose = Pose(x, y, GAZES[gaze], "calm")
        with naming("Demo Pose"):
            there = None if behind is None else behind.cpu().numpy()
            picture = pose_picture([pose], there, _checked(figures))
        image = torch.from_numpy(picture)
        return io.NodeOutput(image if image.dim() == 4 else image[None])  # (B, 128, W, 3)
