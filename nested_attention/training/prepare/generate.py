"""The recipe `synthetic`: the base model draws the pictures from a list of prompts, which are their
captions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from ...errors import NestedAttentionError
from ...storage.files import replacing
from ..frozen import DTYPES, BaseModel, folder_name, load_pipeline
from .plan import digest
from .settings import GenerateSettings, SourceSettings

_OURS = "Software", "nested-attention"
"""What the files of pictures say that are drawn here."""


def generate(model: BaseModel, settings: GenerateSettings, device: torch.device) -> SourceSettings:
    """Draw what is not in the folder yet; the folder, as a source. The noise of each picture follows from its
    prompt, number and the seed. Pictures that were drawn here of other prompts or settings are deleted once
    these are complete; other files stay. Raises NestedAttentionError for a list of prompts that cannot be
    read."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[Path, tuple[str, int]] = {}
    for prompt in _prompts(settings.prompts):
        for number in range(settings.each):
            made = [
                prompt,
                number,
                settings.seed,
                settings.size,
                settings.steps,
                settings.guidance,
                folder_name(model.base),  # wherever it lies
            ]
            wanted[settings.folder / f"{digest(made)}.png"] = prompt, number
    missing = {path: each for path, each in wanted.items() if not path.exists()}
    if missing:
        pipeline = load_pipeline(model, DTYPES[model.precision], device)
        for path, (prompt, number) in tqdm(missing.items(), desc="drawing", unit="picture", disable=None):
            _save(_draw(pipeline, settings, prompt, number), path, prompt)
    for old in settings.folder.glob("*.png"):
        if old not in wanted and _is_ours(old):
            old.unlink()
            old.with_suffix(".txt").unlink(missing_ok=True)
    return SourceSettings(kind="folder", path=settings.folder)


def _is_ours(path: Path) -> bool:
    """Whether a picture was drawn here, whatever it is called."""
    try:
        with Image.open(path) as picture:
            return bool(picture.info.get(_OURS[0]) == _OURS[1])
    except OSError:
        return False


def _prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NestedAttentionError(f"generate.prompts: {path} cannot be read ({error})") from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise NestedAttentionError(f"generate.prompts: {path} is empty; expected a prompt a line")
    return prompts


def _draw(pipeline: Any, settings: GenerateSettings, prompt: str, number: int) -> Image.Image:
    seed = int(digest([settings.seed, prompt, number])[:12], 16)
    picture: Image.Image = pipeline(
        prompt,
        height=settings.size,
        width=settings.size,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return picture


def _save(picture: Image.Image, path: Path, prompt: str) -> None:
    """The caption first: a picture that is there has one."""
    content, said = io.BytesIO(), PngInfo()
    said.add_text(*_OURS)
    picture.save(content, "PNG", pnginfo=said)
    path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
