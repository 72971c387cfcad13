"""`nested-attention inspect`: a picture is drawn, and a page shows what its subjects did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .stopping import stop, stopping

if TYPE_CHECKING:
    from ..hosts.diffusers import AppliedSubject

SMALL = {"person": 7, "pet": 3}
"""Whom the small world draws where no reference is given: the seeds of Demo World's in the workflows."""


def inspect(
    prompt: Annotated[str, typer.Argument(help="With the word of each subject.")] = (
        "a photo of a person on the left and a pet on the right at the beach"
    ),
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="A picture of the subject; several times for several. Without one, drawn people."),
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="The subject's encoder; the small world's if left out.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="An SDXL model in diffusers' layout; the small world if left out."),
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="The CLIP vision model; the base's image_encoder if left out.")
    ] = None,
    word: Annotated[str | None, typer.Option(help="The subject's word; the encoder's if left out.")] = None,
    attention_scale: Annotated[float, typer.Option(help="λ")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="30, or the small world's 20.")] = None,
    guidance: Annotated[float | None, typer.Option(help="5, or the small world's 3.")] = None,
    size: Annotated[int | None, typer.Option(help="A side in pixels: 1024, or the small world's 32.")] = None,
    all_layers: Annotated[
        bool, typer.Option(help="Every layer, not the decoder's first ones alone.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("output/inspect.html"),
) -> None:
    """Draw a picture, and write one HTML page to point at: what each place took of the subjects."""
    if base is not None and (encoder is None or not reference):
        stop("with --base, say whose picture it is: --encoder FILE and --reference PICTURE")
    with stopping():
        pipeline, subjects = _subjects(prompt, reference or [], encoder, base, vision, word, attention_scale)
        small = base is None
        sampling = {
            "num_inference_steps": steps or (20 if small else 30),
            "guidance_scale": guidance or (3.0 if small else 5.0),
            "height": size or (32 if small else 1024),
            "width": size or (32 if small else 1024),
        }
        text = _page(pipeline, subjects, prompt, seed, sampling, all_layers)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"The page: {out.resolve()}")


def _page(
    pipeline: Any,
    subjects: list[AppliedSubject],
    prompt: str,
    seed: int,
    sampling: dict[str, Any],
    all_layers: bool,
) -> str:
    import numpy as np
    import torch

    from ..hosts.diffusers import Recorder, personalize
    from ..inspection.document import document
    from ..inspection.draw import enlarged
    from ..inspection.page import page
    from ..inspection.recording import Watch

    recorder = Recorder(Watch(layers="all" if all_layers else "decoder"))
    pipeline.set_progress_bar_config(disable=True)
    with personalize(pipeline, subjects, recorder=recorder):
        generator = torch.Generator("cpu").manual_seed(seed)
        pictures = pipeline(prompt, generator=generator, output_type="np", **sampling).images
    shown = [np.rint(picture * 255).astype(np.uint8) for picture in pictures]
    shown = [enlarged(picture, 128) if max(picture.shape) < 128 else picture for picture in shown]
    return page(document(recorder.observation(), shown), prompt)


def _subjects(
    prompt: str,
    references: list[Path],
    encoder: Path | None,
    base: str | None,
    vision: str | None,
    word: str | None,
    attention_scale: float,
) -> tuple[Any, list[AppliedSubject]]:
    """The pipeline, and the subjects that are attached: of the pictures that are given, or drawn ones of the
    words that the prompt has."""
    import torch

    from ..checkpoint import load_subject_encoder
    from ..errors import NestedAttentionError
    from ..evaluation.judges import load_vision
    from ..evaluation.samples import read_picture
    from ..hosts.diffusers import AppliedSubject, encode_subject
    from ..paths import SMALL_WORLD
    from ..prompt import words_in

    if base is None:
        from ..avatars.models.pipeline import world_pipeline

        pipeline = world_pipeline()
        seer = pipeline.image_encoder
    else:
        from diffusers import StableDiffusionXLPipeline

        from ..training.frozen import default_device, load_part

        pipeline = load_part(StableDiffusionXLPipeline, base, None, add_watermarker=False)
        pipeline = pipeline.to(default_device())
        seer = load_vision(vision or base, None if vision else "image_encoder").to(pipeline.device)
    if references:
        pictures = [read_picture(path) for path in references]
        if len({picture.shape for picture in pictures}) > 1:
            raise NestedAttentionError(
                "the references have different sizes; cut them to one size, such as squares around the face"
            )
        loaded = load_subject_encoder(encoder or SMALL_WORLD / "person_encoder.safetensors").eval()
        loaded = loaded.to(pipeline.device).requires_grad_(False)
        subject = encode_subject(loaded, seer, torch.stack(pictures))
        return pipeline, [AppliedSubject(subject, loaded, word=word, attention_scale=attention_scale)]
    from ..avatars.drawing.references import held_out, reference_picture

    found = []
    for kind, number in SMALL.items():
        if kind in words_in(prompt):
            loaded = load_subject_encoder(SMALL_WORLD / f"{kind}_encoder.safetensors").eval()
            drawn = torch.from_numpy(reference_picture(held_out(kind, number))).float()[None] / 255
            subject = encode_subject(loaded, seer, drawn)
            found.append(AppliedSubject(subject, loaded, attention_scale=attention_scale))
    if not found:
        raise NestedAttentionError(
            f"the prompt {prompt!r} has neither {' nor '.join(SMALL)}, which the small world's subjects go by"
        )
    return pipeline, found
