"""`nested-attention draw`: whoever is on a photograph, in a picture of a prompt, with diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..avatars.models.model import TIME_IDS
from ..avatars.models.pipeline import world_pipeline
from ..checkpoint import load_subject_encoder
from ..encoder import SubjectEncoder
from ..errors import NestedAttentionError
from ..find_comfyui import find_comfyui
from ..hosts.diffusers import AppliedSubject, encode_subject, personalize
from ..hosts.diffusers.vision import load_vision
from ..paths import FACE_DETECTOR, SMALL_WORLD
from ..pictures.blazeface import load_blazeface
from ..pictures.prepare import Prepare, prepare_pictures
from ..pictures.pyramid import TiledFaceDetector
from ..pictures.upright import upright_on_white
from ..storage.files import replacing
from ..storage.registry import KnownWeights, find_weights, known_weights
from ..training.frozen import default_device

ENLARGE = 16
"""Pixels a side of a saved picture for each of the small world's."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn, and with what.

    photographs: of one subject. checkpoint: of SDXL, a file, a folder in diffusers' layout or a name on the
    model hub; None: the small world. encoder: a name of the registry, a file, or one of the small world's
    words; None: the first that is installed. vision: the encoder's vision model, as `load_vision` takes it;
    None: the one that the registry names. word: of the prompt; None: the encoder's. prepare:
    `prepare_pictures`. steps, guidance, size: None is what suits the checkpoint. device: None is the GPU
    where there is one.
    """

    prompt: str
    photographs: tuple[Path, ...]
    checkpoint: str | None = None
    encoder: str | None = None
    vision: str | None = None
    word: str | None = None
    prepare: Prepare = "auto"
    attention_scale: float = 1.0
    strength: float = 1.0
    negative: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    device: str | None = None


class _Models(NamedTuple):
    pipeline: Any
    encoder: SubjectEncoder
    vision: Any


def draw_photograph(drawing: Drawing, out: Path) -> list[str]:
    """Draws one picture, saves it, and returns what to print.

    Raises NestedAttentionError for a photograph that cannot be read or shows no face where one is asked for,
    for models that are not there, and as `personalize`.
    """
    photographs = [read_photograph(path) for path in drawing.photographs]
    models = _small_world(drawing) if drawing.checkpoint is None else _sdxl(drawing, drawing.checkpoint)
    word = drawing.word or models.encoder.config.word
    detect = TiledFaceDetector(load_blazeface(FACE_DETECTOR))
    small = drawing.checkpoint is None
    prepared = prepare_pictures(photographs, drawing.prepare, detect, word=word, drawings=small)
    subject = encode_subject(models.encoder, models.vision, prepared.pictures)
    applied = AppliedSubject(
        subject=subject,
        encoder=models.encoder,
        word=word,
        attention_scale=drawing.attention_scale,
        strength=drawing.strength,
    )
    with personalize(models.pipeline, [applied]):
        image = models.pipeline(**_options(drawing, models.pipeline)).images[0]
    if small:
        image = image.resize((image.width * ENLARGE, image.height * ENLARGE), Image.Resampling.NEAREST)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        image.save(temporary)
    lines = [f"{path.name}: {taken}" for path, taken in zip(drawing.photographs, prepared.taken, strict=True)]
    if small and "face" in prepared.taken:
        lines.append(
            "The small world draws pixel figures and has never seen a photograph: nobody will recognise the "
            "person. For photographs name a checkpoint of SDXL with --checkpoint"
        )
    return [*lines, *prepared.doubts, f"The picture: {out.resolve()}"]


def read_photograph(path: Path) -> Tensor:
    """A picture file, upright → (height, width, 3) in [0, 1]. What is transparent becomes white.

    Raises NestedAttentionError, naming the file, if it is no picture.
    """
    try:
        with Image.open(path) as file:
            upright = upright_on_white(file)
    except (OSError, Image.DecompressionBombError) as error:
        raise NestedAttentionError(
            f"{path} cannot be read as a picture ({error}); expected a PNG, JPEG or WebP file"
        ) from error
    return torch.from_numpy(np.array(upright)).float() / 255


def _small_world(drawing: Drawing) -> _Models:
    words = ("person", "pet")
    kind = drawing.encoder or next((word for word in words if word in drawing.prompt.lower()), words[0])
    if kind not in words:
        raise NestedAttentionError(
            f"the small world has the encoders {' and '.join(words)}, not {kind!r}. For another one name a "
            "checkpoint of SDXL with --checkpoint"
        )
    pipeline = world_pipeline()
    encoder = load_subject_encoder(SMALL_WORLD / f"{kind}_encoder.safetensors", dtype=torch.float32)
    return _Models(pipeline, encoder, pipeline.image_encoder)


def _sdxl(drawing: Drawing, checkpoint: str) -> _Models:
    from diffusers import StableDiffusionXLPipeline

    device = torch.device(drawing.device) if drawing.device else default_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    path, known = _encoder_file(drawing.encoder)
    encoder = load_subject_encoder(path, dtype=dtype, **(_told(known) if known else {}))
    vision = load_vision(drawing.vision or _vision_file(known), dtype)
    load = (
        StableDiffusionXLPipeline.from_single_file
        if Path(checkpoint).is_file()
        else StableDiffusionXLPipeline.from_pretrained
    )
    try:
        pipeline = load(checkpoint, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise NestedAttentionError(
            f"no SDXL can be loaded from {checkpoint} ({' '.join(str(error).split())[:200]}). Expected a "
            "checkpoint file, a folder in diffusers' layout, or a name on the model hub"
        ) from error
    return _Models(pipeline.to(device), encoder.to(device), vision.to(device))


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


def _vision_file(encoder: KnownWeights | None) -> Path:
    models = _models_folder()
    for name in encoder.needs if encoder else ():
        needed = find_weights(name)
        if models is not None and needed.place(models).is_file():
            return needed.place(models)
        raise NestedAttentionError(
            f"the encoder {encoder.name if encoder else ''} needs the vision model {name}, which is not "
            f"installed. Fetch it with `nested-attention download {name}`, or name one with --vision"
        )
    raise NestedAttentionError("which vision model the encoder needs is not known; name it with --vision")


def _models_folder() -> Path | None:
    comfyui, _ = find_comfyui()
    return None if comfyui is None else comfyui / "models"


def _options(drawing: Drawing, pipeline: Any) -> dict[str, Any]:
    small = drawing.checkpoint is None
    if small and drawing.size is not None:
        raise NestedAttentionError("the small world draws pictures of one size; leave out --size")
    options: dict[str, Any] = {
        "prompt": drawing.prompt,
        "negative_prompt": drawing.negative,
        "num_inference_steps": drawing.steps or (20 if small else 30),
        "guidance_scale": (3.0 if small else 5.0) if drawing.guidance is None else drawing.guidance,
        "generator": torch.Generator().manual_seed(drawing.seed),
    }
    if small:
        return {**options, "original_size": TIME_IDS[:2], "target_size": TIME_IDS[:2]}
    size = drawing.size or 1024
    return {**options, "height": size, "width": size}
