"""The small world as any SDXL in diffusers: a pipeline, with an ordinary table of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTokenizer

from ...paths import SMALL_WORLD
from ..drawing.canvas import SIZE
from .model import SCHEDULER, time_ids
from .vocabulary import CompactEmbedding
from .world import World, load_world


class WorldPipeline(StableDiffusionXLPipeline):
    """SDXL's pipeline, which tells the UNet the size that the world's pictures are shown at, not that of its
    art pixels, unless a call says another."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        told = time_ids((options.get("width") or SIZE) // 2)
        return super().__call__(*args, **{"original_size": told[:2], "target_size": told[4:], **options})


def world_pipeline(world: World | None = None) -> WorldPipeline:
    """Its pictures have 32 pixels a side, one for each art pixel, and with `width=48` two figures; its vision
    model is `image_encoder`."""
    return WorldPipeline(**_parts(world))


def export_world(folder: Path, world: World | None = None) -> None:
    """Write a folder in diffusers' layout: unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2,
    scheduler and image_encoder."""
    StableDiffusionXLPipeline(**_parts(world)).save_pretrained(folder)


def _parts(world: World | None) -> dict[str, Any]:
    world = load_world() if world is None else world
    tokenizers = SMALL_WORLD / "tokenizer"
    return {
        "unet": world.unet,
        "vae": world.vae,
        "text_encoder": _with_full_table(world.text_encoder),
        "text_encoder_2": _with_full_table(world.text_encoder_2),
        "tokenizer": CLIPTokenizer.from_pretrained(tokenizers),
        "tokenizer_2": CLIPTokenizer.from_pretrained(tokenizers, pad_token="!"),  # id 0, as SDXL's
        "scheduler": DDIMScheduler(**SCHEDULER),
        "image_encoder": world.vision,
        "force_zeros_for_empty_prompt": False,  # it was trained with the empty prompt encoded
        "add_watermarker": False,
    }


def _with_full_table(encoder: Any) -> Any:
    """A text encoder of the same weights that looks up all of CLIP's tokens."""
    state = {key: value for key, value in encoder.state_dict().items() if "token_embedding" not in key}
    table: CompactEmbedding = getattr(encoder, "text_model", encoder).embeddings.token_embedding
    copy = type(encoder)(encoder.config)
    target = getattr(copy, "text_model", copy)
    target.embeddings.token_embedding = nn.Embedding.from_pretrained(table.full(), freeze=True)
    copy.load_state_dict(state, strict=False)
    return copy.eval().requires_grad_(False)
