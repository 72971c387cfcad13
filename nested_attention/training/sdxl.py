"""SDXL's sizes: for dry runs where no base model is at hand, and for SDXL with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}
TEXT_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
TEXT_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
VISION_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
PATCHES, VISION_DIM, TOKENS = 257, 1280, 77
"""Of CLIP ViT-H: patches with the class token, and their width; of both text encoders: tokens."""


def random_parts(tokenizer: Path, unet: dict[str, Any] = UNET) -> dict[str, Any]:
    """SDXL and CLIP ViT-H with random weights in the default dtype, by diffusers' folders. tokenizer: CLIP's
    folder. unet: another one's sizes, such as a shortened one's."""
    return {
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_L)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_G)),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_H)),
        "scheduler": DDPMScheduler(**SCHEDULER),
        "tokenizer": CLIPTokenizer.from_pretrained(tokenizer),
        "tokenizer_2": CLIPTokenizer.from_pretrained(tokenizer, pad_token="!"),
    }


def write_random(folder: Path, tokenizer: Path, unet: dict[str, Any] = UNET) -> None:
    """`random_parts` in bf16 as a folder in diffusers' layout: SDXL's shapes, and its time and memory."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for name, part in random_parts(tokenizer, unet).items():
            part.save_pretrained(folder / name)
    finally:
        torch.set_default_dtype(before)
