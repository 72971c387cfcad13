"""The small world as any SDXL in diffusers: a pipeline, with an ordinary table of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTokenizer

from ...paths import SMALL_WORLD
from .model import SCHEDULER
from .vocabulary import CompactEmbedding
from .world import World, load_world


def world_pipeline(world: World | None = None) -> StableDiffusionXLPipeline:
    """Its pictures have 32 pixels a side, one for each art pixel; its vision model is `image_encoder`."""
    world = load_world() if world is None else world
    return StableDiffusionXLPipeline(
        unet=world.unet,
        vae=world.vae,
        text_encoder=_with_full_table(world.text_encoder),
        text_encoder_2=_with_full_table(world.text_encoder_2),
        tokenizer=CLIPTokenizer.from_pretrained(SMALL_WORLD / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(
            SMALL_WORLD / "tokenizer", pad_token="!"
        ),  # id 0, as SDXL's
        scheduler=DDIMScheduler(**SCHEDULER),
        image_encoder=world.vision,
        force_zeros_for_empty_prompt=False,  # it was trained with the empty prompt encoded
        add_watermarker=False,
    )


def export_world(folder: Path, world: World | None = None) -> None:
    """Write a folder in diffusers' layout: unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2,
    scheduler and image_encoder."""
    world_pipeline(world).save_pretrained(folder)


def _with_full_table(encoder: Any) -> Any:
    """A text encoder of the same weights that looks up all of CLIP's tokens."""
    state = {key: value for key, value in encoder.state_dict().items() if "token_embedding" not in key}
    table: CompactEmbedding = getattr(encoder, "text_model", encoder).embeddings.token_embedding
    copy = type(encoder)(encoder.config)
    target = getattr(copy, "text_model", copy)
    target.embeddings.token_embedding = nn.Embedding.from_pretrained(table.full(), freeze=True)
    copy.load_state_dict(state, strict=False)
    return copy.eval().requires_grad_(False)
