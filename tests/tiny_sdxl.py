"""A random SDXL pipeline of the smallest sizes, and a subject encoder for its UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from nested_attention.encoder import SubjectEncoder, SubjectEncoderConfig
from nested_attention.sites import diffusers_sites
from nested_attention.subject import Subject

ROOT = Path(__file__).resolve().parent.parent

TEXT_WIDTHS = (16, 32)
STEPS = 3


def make_unet() -> UNet2DConditionModel:
    """Two resolutions with cross-attention, one without, and text conditioning as SDXL has it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4, 4),  # diffusers means the number of heads
        cross_attention_dim=sum(TEXT_WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTHS[1],
        norm_num_groups=8,
    )
    return unet.eval()


def make_pipeline() -> StableDiffusionXLPipeline:
    unet = make_unet()
    texts = [
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=width,
            bos_token_id=49406,
            eos_token_id=49407,
        )
        for width in TEXT_WIDTHS
    ]
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(texts[0]).eval(),
        text_encoder_2=CLIPTextModelWithProjection(texts[1]).eval(),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(ROOT / "weights" / "avatars" / "tokenizer")


def make_encoder(unet: nn.Module, seed: int = 0, word: str = "person") -> SubjectEncoder:
    torch.manual_seed(seed)
    config = SubjectEncoderConfig(
        vision_dim=12,
        token_dim=20,
        num_queries=6,
        width=16,
        depth=1,
        heads=2,
        head_dim=8,
        sites=diffusers_sites(unet),
        word=word,
    )
    return SubjectEncoder(config).eval()


def make_subject(encoder: SubjectEncoder, seed: int = 0, images: int = 1, weights: Any = None) -> Subject:
    features = torch.randn(images, 9, 12, generator=torch.Generator().manual_seed(seed))
    return Subject.from_images(encoder, features, weights)
