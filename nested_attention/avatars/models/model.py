"""The tiny SDXL of the small world: its sizes, and its modules with random weights.

Same building blocks and text conditioning as SDXL: a UNet of `CrossAttnDownBlock2D`, `DownBlock2D` and
their counterparts with linear projections, two CLIP text encoders whose penultimate states are
concatenated, a pooled projection and size conditioning; a KL autoencoder; a CLIP vision model for
references. Only the sizes differ, and the order of the blocks: latents are 16×16 (two figures: 16×24), so
attention starts at the first level.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

LATENT, LATENT_WIDE = 16, 24
"""Latent cells a side, and across a picture of two figures: one cell is 2×2 art pixels."""

LATENT_CHANNELS = 12
"""As many numbers as a cell of 2×2 art pixels has, so that nothing has to be lost."""

TEXT_WIDTH_L = 96
TEXT_WIDTH_G = 160
POOLED = 160
CONTEXT = TEXT_WIDTH_L + TEXT_WIDTH_G
VISION_WIDTH = 128
VISION_SIZE = 56


def time_ids(latent_width: int) -> tuple[int, ...]:
    """The size conditioning of a picture so many latent cells wide, as shown: height, width, crop top, crop
    left, target height, target width."""
    return (128, 8 * latent_width, 0, 0, 128, 8 * latent_width)


TIME_IDS = time_ids(LATENT)
"""Of a picture of one figure."""


# What ComfyUI can build limits these sizes: widths of the UNet and of the VAE are whole multiples of the
# first one, those of the VAE also of 32; both text encoders have at least 3 layers, and a projection as wide
# as themselves.
UNET: dict[str, Any] = {
    "sample_size": LATENT,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": [2, 4, 4],  # in this class: the number of heads
    "cross_attention_dim": CONTEXT,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": POOLED + 6 * 256,
    "norm_num_groups": 32,
}

VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 8,
    "sample_size": 32,
    "scaling_factor": 1.0,
}

_TOKENS: dict[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}

TEXT_L: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": TEXT_WIDTH_L,
    "intermediate_size": 4 * TEXT_WIDTH_L,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "hidden_act": "quick_gelu",
    "projection_dim": TEXT_WIDTH_L,
    "pad_token_id": 49407,
}

TEXT_G: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": TEXT_WIDTH_G,
    "intermediate_size": 4 * TEXT_WIDTH_G,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "hidden_act": "gelu",
    "projection_dim": POOLED,
    "pad_token_id": 0,
}

VISION: dict[str, Any] = {
    "hidden_size": VISION_WIDTH,
    "intermediate_size": 4 * VISION_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": VISION_SIZE,
    "patch_size": 4,
    "projection_dim": POOLED,
    "hidden_act": "gelu",
}

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def new_unet(config: dict[str, Any] = UNET) -> UNet2DConditionModel:
    """The denoiser, randomly initialised."""
    return UNet2DConditionModel(**config)


def new_vae(config: dict[str, Any] = VAE) -> AutoencoderKL:
    """The autoencoder: (B, 3, 32, W) in [−1, 1] ↔ (B, 12, 16, W/2)."""
    return AutoencoderKL(**config)


def new_text_l(config: dict[str, Any] = TEXT_L) -> CLIPTextModel:
    """The first text encoder, as SDXL's CLIP-L."""
    return CLIPTextModel(CLIPTextConfig(**config))


def new_text_g(config: dict[str, Any] = TEXT_G) -> CLIPTextModelWithProjection:
    """The second text encoder, as SDXL's bigG, with the pooled projection."""
    return CLIPTextModelWithProjection(CLIPTextConfig(**config))


def new_vision(config: dict[str, Any] = VISION) -> CLIPVisionModelWithProjection:
    """The vision encoder: (B, 3, 56, 56) normalised → 1 + 14·14 tokens."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config))


def new_scheduler() -> DDPMScheduler:
    """The noise schedule the world is trained with."""
    return DDPMScheduler(**SCHEDULER)


def encode_text(
    text_l: CLIPTextModel, text_g: CLIPTextModelWithProjection, ids_l: torch.Tensor, ids_g: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, 77) of both encoders → context (B, 77, 256) and pooled (B, 160), as SDXL conditions its
    UNet."""
    states_l = text_l(ids_l, output_hidden_states=True).hidden_states[-2]
    out_g = text_g(ids_g, output_hidden_states=True)
    return torch.cat([states_l, out_g.hidden_states[-2]], dim=-1), out_g.text_embeds
