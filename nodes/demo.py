"""Demo World: the small world that comes with the pack, in place of a checkpoint."""

from __future__ import annotations

from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..nested_attention.avatars.references import held_out, reference_picture
from ..nested_attention.hosts.comfy.world import load_world
from .common import naming, schema
from .load import SMALL_WORLD


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
                "download. Use it like a checkpoint, with pictures of 128 × 128 pixels (Empty Latent "
                "Image). It also draws a reference picture of a person and of a pet whom it has never seen "
                "in training."
            ),
            search_aliases=["nested attention", "avatars", "example", "small world"],
            inputs=[
                io.Int.Input("person", tooltip="Which person is drawn as a reference.", **seed),
                io.Int.Input("pet", tooltip="Which pet is drawn as a reference.", **seed),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="The small world's UNet."),
                io.Clip.Output("CLIP", tooltip="The small world's two text encoders."),
                io.Vae.Output("VAE", tooltip="The small world's VAE: 8 pixels a latent, as SDXL's."),
                io.ClipVision.Output(
                    "CLIP_VISION", tooltip="The vision encoder, for Encode Subject with the avatars encoders."
                ),
                io.Image.Output(
                    "person_picture", display_name="person", tooltip="A reference picture of the person."
                ),
                io.Image.Output("pet_picture", display_name="pet", tooltip="A reference picture of the pet."),
            ],
        )

    @classmethod
    def execute(cls, person: int, pet: int) -> io.NodeOutput:
        with naming("Demo World"):
            world = load_world(SMALL_WORLD, folder_paths.get_folder_paths("embeddings"))
        return io.NodeOutput(*world, _image("person", person), _image("pet", pet))


def _image(kind: str, seed: int) -> Any:
    rgb = reference_picture(held_out(kind, seed)).astype(np.float32) / 255
    return torch.from_numpy(rgb)[None]  # (1, H, W, 3)
