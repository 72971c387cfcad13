"""What one picture is drawn with from the command line: the small world, or an SDXL and an encoder for it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..avatars.drawing.canvas import SIZE
from ..avatars.drawing.identity import Person, Pet
from ..avatars.drawing.pose import width_of
from ..avatars.models.pipeline import world_pipeline
from ..avatars.models.world import Sampling
from ..checkpoint import load_subject_encoder, read_card
from ..encoder import SubjectEncoder
from ..errors import NestedAttentionError
from ..find_comfyui import find_comfyui
from ..hosts.diffusers.parts import load_part
from ..hosts.diffusers.vision import load_vision
from ..paths import SMALL_WORLD
from ..storage.registry import KnownWeights, find_weights, known_weights
from ..training.frozen import default_device

KINDS = ("person", "pet")
"""The words of the small world's encoders."""

_NOUNS = {*Person.NOUNS, *Pet.NOUNS}


class Models(NamedTuple):
    pipeline: Any
    encoder: SubjectEncoder
    vision: Any


def load_models(
    checkpoint: str | None,
    encoder: str | None = None,
    vision: str | None = None,
    *,
    prompt: str = "",
    device: str | None = None,
) -> Models:
    """checkpoint: of SDXL, a file, a folder in diffusers' layout or a name on the model hub; None: the small
    world. encoder: a file, a name of the registry, or one of the small world's words; None: the first that is
    installed, or that of a word of the prompt. vision: as `load_vision` takes it; None: the one that the
    registry names for the encoder, else the checkpoint's `image_encoder`, else CLIP ViT-H where it is
    installed. device: None is the GPU where there
    is one; the small world stays on the CPU.

    Raises NestedAttentionError for what is not there, saying how to get it.
    """
    if checkpoint is None:
        pipeline = world_pipeline()
        seer = pipeline.image_encoder if vision is None else load_vision(vision)
        return Models(pipeline, small_encoder(encoder, prompt), seer)
    where = torch.device(device) if device else default_device()
    dtype = torch.float32 if where.type == "cpu" else torch.float16
    path, known = _encoder_file(encoder)
    own = load_subject_encoder(path, dtype=dtype, **(_told(known) if known else {}))
    seer = _vision(vision, path, known, checkpoint, dtype)  # often what is missing, and small beside SDXL
    pipeline = _sdxl(checkpoint, dtype)
    return Models(pipeline.to(where), own.requires_grad_(False).to(where), seer.to(where))


def sampling(
    checkpoint: str | None,
    prompt: str,
    *,
    steps: int | None,
    guidance: float,
    size: int | None,
    seed: int,
) -> dict[str, Any]:
    """What the pipeline is called with, beside the prompts: None is what suits the checkpoint. The small
    world's pictures are as wide as the figures that the prompt names need.

    Raises NestedAttentionError for a size of the small world, whose pictures have their own, and for one that
    is no multiple of a latent's cell.
    """
    small = checkpoint is None
    if small and size is not None:
        raise NestedAttentionError("the small world's pictures have a size of their own; leave out --size")
    if size is not None and size % 8:
        raise NestedAttentionError(f"--size is {size}; expected a multiple of 8, such as {size // 8 * 8}")
    figures = sum(word in _NOUNS for word in re.findall(r"[a-z]+", prompt.lower()))
    shape = {"height": SIZE, "width": width_of(min(max(figures, 1), 2))}
    if not small:
        shape = {"height": size or 1024, "width": size or 1024}
    return {
        "num_inference_steps": steps or (Sampling().steps if small else 30),
        "guidance_scale": guidance,
        "generator": torch.Generator().manual_seed(seed),  # of the CPU: a seed is the same noise everywhere
        **shape,
    }


def small_encoder(named: str | None, prompt: str = "") -> SubjectEncoder:
    """The small world's encoder of a word, of the first word of the prompt, or of a file."""
    if named is not None and Path(named).is_file():
        path = Path(named)
    else:
        kind = named or next((word for word in KINDS if word in prompt.lower()), KINDS[0])
        if kind not in KINDS:
            raise NestedAttentionError(
                f"the small world has the encoders {' and '.join(KINDS)}, not {kind!r}. For another one name "
                "a file, or a checkpoint of SDXL with --checkpoint"
            )
        path = SMALL_WORLD / f"{kind}_encoder.safetensors"
    return load_subject_encoder(path, dtype=torch.float32).requires_grad_(False)


def _sdxl(checkpoint: str, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionXLPipeline

    options: dict[str, Any] = {"torch_dtype": dtype, "add_watermarker": False}
    if not Path(checkpoint).is_file():
        return load_part(StableDiffusionXLPipeline, checkpoint, **options)
    try:
        return StableDiffusionXLPipeline.from_single_file(checkpoint, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NestedAttentionError(
            f"no SDXL can be loaded from {checkpoint} ({' '.join(str(error).split())[:200]}). Expected a "
            "checkpoint file, a folder in diffusers' layout, or a name on the model hub"
        ) from error


def _told(known: KnownWeights) -> dict[str, Any]:
    """What the registry knows of an encoder and its tensors do not say."""
    return {
        name: known.layout[name] for name in ("word", "features", "norm", "alpha") if name in known.layout
    }


def _encoder_file(named: str | None) -> tuple[Path, KnownWeights | None]:
    if named is not None and Path(named).is_file():
        known = next((one for one in known_weights().values() if one.target == Path(named).name), None)
        return Path(named), known
    models = _models_folder()
    wanted = [find_weights(named)] if named else [k for k in known_weights().values() if k.kind == "encoder"]
    for known in wanted:
        if models is not None and known.place(models).is_file():
            return known.place(models), known
    raise NestedAttentionError(
        f"the encoder {wanted[0].name if named else 'for SDXL'} is not installed"
        f"{'' if models else ', and ComfyUI was not found'}. Fetch it with `nested-attention download "
        f"{wanted[0].name}`, or name a file with --encoder"
    )


def _vision(
    named: str | None, path: Path, encoder: KnownWeights | None, checkpoint: str, dtype: torch.dtype
) -> Any:
    models = _models_folder()
    if named is not None:
        return load_vision(named, dtype=dtype)
    for needed in map(find_weights, encoder.needs if encoder else ()):
        if models is not None and needed.place(models).is_file():
            return load_vision(needed.place(models), dtype=dtype)
        raise NestedAttentionError(
            f"the encoder {encoder.name if encoder else ''} needs the vision model {needed.name}, which is "
            f"not installed. Fetch it with `nested-attention download {needed.name}`, or name one with "
            "--vision"
        )
    if Path(checkpoint, "image_encoder").is_dir():
        return load_vision(checkpoint, "image_encoder", dtype=dtype)
    if not Path(checkpoint).exists():  # a name on the hub, where few have one
        with contextlib.suppress(NestedAttentionError):
            return load_vision(checkpoint, "image_encoder", dtype=dtype)
    usual = find_weights("clip-vit-h")
    if models is not None and usual.place(models).is_file():
        return load_vision(usual.place(models), dtype=dtype)
    told = read_card(path).vision_model
    raise NestedAttentionError(
        f"the vision model of {path.name} is {told or 'not known'}, and none is installed. Name it with "
        "--vision, or fetch CLIP ViT-H, which most encoders for SDXL read, with `nested-attention download "
        f"{usual.name}`"
    )


def _models_folder() -> Path | None:
    comfyui, _ = find_comfyui()
    return None if comfyui is None else comfyui / "models"
