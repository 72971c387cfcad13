"""`nested-attention inspect`: a picture is drawn, and a page shows what its subjects did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .stopping import busy, stop, stopping

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..hosts.diffusers import Recorder

SMALL = {"person": 7, "pet": 3}
"""Whom the small world draws where no reference is given: the seeds of Demo World's in the workflows."""


def inspect(
    prompt: Annotated[str, typer.Argument(help="With the word of each subject.")] = (
        "a photo of a person on the left and a pet on the right at the beach"
    ),
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            "--photo",
            "--reference",
            help="A photograph; several of one subject, one option each. Without one, a drawn person and a "
            "drawn pet.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="The subject's encoder, a file or a name of `download`; as `draw` finds one."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "--base",
            help="SDXL: a file, a folder in diffusers' layout, or a name on the hub. Without it, the small "
            "world.",
        ),
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="The CLIP vision model; the encoder's own if left out.")
    ] = None,
    word: Annotated[str | None, typer.Option(help="The subject's word; the encoder's if left out.")] = None,
    attention_scale: Annotated[float, typer.Option(help="λ")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="30, or the small world's 20.")] = None,
    guidance: Annotated[float, typer.Option(help="More: more of the prompt and of the subject.")] = 5.0,
    size: Annotated[
        int | None,
        typer.Option(
            min=64,
            help="A side in pixels: 1024 for SDXL. The small world's pictures are as wide as the nouns in "
            "the prompt need.",
        ),
    ] = None,
    all_layers: Annotated[
        bool, typer.Option(help="Every layer, not the decoder's first ones alone.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("output/inspect.html"),
) -> None:
    """Draw a picture, and write one HTML page to point at: what each place took of the subjects."""
    if base is not None and not reference:
        stop("with --checkpoint, say whose picture it is: --photo FILE, and --encoder if none is installed")
    with stopping():
        with busy("Loading"):
            import numpy as np

            from ..demo.models import sampling
            from ..demo.photograph import Drawing, drawn
            from ..hosts.diffusers import Recorder
            from ..inspection.document import document
            from ..inspection.draw import enlarged
            from ..inspection.page import page
            from ..inspection.recording import Watch
        recorder = Recorder(Watch(layers="all" if all_layers else "decoder"))
        if reference:
            picture, _ = drawn(
                Drawing(
                    prompt=prompt,
                    photographs=tuple(reference),
                    checkpoint=base,
                    encoder=encoder,
                    vision=vision,
                    word=word,
                    attention_scale=attention_scale,
                    seed=seed,
                    steps=steps,
                    guidance=guidance,
                    size=size,
                ),
                recorder,
            )
        else:
            options = sampling(None, prompt, steps=steps, guidance=guidance, size=size, seed=seed)
            picture = _drawn_people(prompt, attention_scale, options, recorder)
        shown = np.asarray(picture)
        shown = enlarged(shown, 128) if max(shown.shape) < 128 else shown
        text = page(document(recorder.observation(), [shown]), prompt)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"The page: {out.resolve()}")


def _drawn_people(
    prompt: str, attention_scale: float, options: dict[str, object], recorder: Recorder
) -> Image:
    """The small world's picture of drawn subjects, of the words that the prompt has."""
    import torch

    from ..avatars.drawing.references import held_out, reference_picture
    from ..avatars.models.pipeline import world_pipeline
    from ..demo.models import small_encoder
    from ..errors import NestedAttentionError
    from ..hosts.diffusers import AppliedSubject, encode_subject, personalize
    from ..prompt import words_in

    pipeline, subjects = world_pipeline(), []
    for kind, number in SMALL.items():
        if kind in words_in(prompt):
            encoder = small_encoder(kind)
            picture = torch.from_numpy(reference_picture(held_out(kind, number))).float()[None] / 255
            subject = encode_subject(encoder, pipeline.image_encoder, picture)
            subjects.append(AppliedSubject(subject, encoder, attention_scale=attention_scale))
    if not subjects:
        raise NestedAttentionError(
            f"the prompt {prompt!r} has neither {' nor '.join(SMALL)}, which the small world's subjects go by"
        )
    with personalize(pipeline, subjects, recorder=recorder):
        return pipeline(prompt, **options).images[0]
