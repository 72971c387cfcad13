"""Ten references, one after the other, at SDXL's full width: what stays in memory after ComfyUI unloads.

A process of its own, started by test_ten_references.py: prints one JSON object. The UNet and the Q-Former
are shallow and the text context is narrow; the encoder and the subjects have the published widths (1024
queries, tokens of 2048, layers of 640 and 1280), so that each tensor left behind is as large as in earnest.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import weakref
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), sys.argv[1]]

import conftest  # noqa: E402, F401  makes the library importable
from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.model_management  # noqa: E402
import torch  # noqa: E402
from tiny import apply_with, encode, make_clip, make_encoder, make_model, sample  # noqa: E402

from nested_attention.hosts.comfy import encode_subject  # noqa: E402
from nested_attention.hosts.comfy.sampling.chain import SubjectChain  # noqa: E402

PUBLISHED = {
    "vision_dim": 1280,
    "token_dim": 2048,
    "num_queries": 1024,
    "width": 1280,
    "depth": 1,
    "heads": 20,
    "head_dim": 64,
}
UNET = {
    "model_channels": 640,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [0, 1, 0, 1],
    "transformer_depth_middle": 1,
}
SETTINGS = {
    "word": "person",
    "attention_scale": 1.0,
    "alpha": 2.0,
    "strength": 1.0,
    "when_missing": "error",
}


class Vision:
    """Features that follow from the picture, in CLIP ViT-H's shape."""

    def encode_image(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(int(image.sum()))
        return {"last_hidden_state": torch.randn(1, 257, 1280, generator=generator)}


def resident() -> int:
    """Bytes of the process in memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


def unload() -> None:
    """What ComfyUI's button does, once nothing in a graph is held any more."""
    with torch.inference_mode(False):
        comfy.model_management.unload_all_models()
    gc.collect()


def one_run(model: Any, clip: Any, number: int, watched: list[Any]) -> torch.Tensor:
    """A graph from the encoder's file to latents; everything it made is watched, and let go at its end."""
    encoder = make_encoder(model, seed=1, **PUBLISHED)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(number))
    subject = encode_subject(encoder, Vision(), picture)
    applied, marked = apply_with(model, clip, encoder, subject, **SETTINGS)
    latents = sample(applied, encode(marked, "a person at sea"), encode(marked, "bad"), steps=1)
    values = [s.values.model for s in SubjectChain.of(applied).subjects]
    tensors = [*encoder.encoder.parameters(), subject.tokens, *(p for v in values for p in v.parameters())]
    watched += map(weakref.ref, [encoder.encoder, subject, *values, *tensors])
    return latents


@torch.inference_mode()
def main() -> None:
    start = time.monotonic()
    model, clip = make_model(**UNET), make_clip()
    warm: list[Any] = []
    one_run(model, clip, 0, warm)  # whatever is imported or allocated once
    unload()
    before, peak = resident(), 0
    watched: list[Any] = []
    pictures = []
    for number in range(1, 11):
        pictures.append(one_run(model, clip, number, watched))
        peak = max(peak, resident())
    unload()
    alive = [type(thing).__name__ for reference in warm + watched if (thing := reference()) is not None]
    result = {
        "watched": len(watched),
        "alive": alive,
        "before": before,
        "after": resident(),
        "peak": peak,
        "different": len({picture.numpy().tobytes() for picture in pictures}),
        "finite": all(bool(picture.isfinite().all()) for picture in pictures),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
