"""Apply Subject: a subject, a word, and how strongly the one is the other."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from ...blocks import parse_blocks
from ...encoder import SubjectEncoderConfig
from ...errors import NestedAttentionError
from ...placeholders import SubjectWord
from ...prompt import check_word
from ...sites import ComfyAddress, UNetLayout, check_sites
from ...subject import Subject
from ...subject_batch import SubjectBatch, subjects_of
from .encoding.memory import SubjectEncoderHandle, subject_values
from .prompts.clip import SubjectCLIP, with_subject
from .prompts.marks import warn_once
from .sampling.chain import SubjectChain
from .sampling.layer import AppliedSubject
from .sampling.regions import RegionMode, subject_region


def apply_subject(
    model: Any,
    clip: Any,
    encoder: SubjectEncoderHandle,
    subject: Subject | SubjectBatch,
    *,
    word: str,
    attention_scale: float,
    alpha: float | None,
    strength: float,
    start_percent: float,
    end_percent: float,
    when_missing: Literal["error", "warn"],
    name: str | None = None,
    apply_to_negative: bool = False,
    region: Tensor | None = None,
    region_mode: RegionMode = "mask",
    bounded: bool = False,
    bound_self_attention: bool = False,
    blocks: str = "all",
) -> tuple[Any, SubjectCLIP]:
    """MODEL and CLIP → clones of them that carry one more subject; chain it once a subject.

    subject: a SubjectBatch gives each picture of the latent batch its own, in order, from the first again
        where there are more pictures.
    word: what carries the subject in a prompt.
    name: what `<name>` calls it in a prompt; the word if left out.
    attention_scale: λ > 0.
    alpha: length of v* as a multiple of |V[s*]|, > 0; None switches the regularisation off.
    strength: in [0, 1]; 0 leaves MODEL and pictures as they are.
    start_percent, end_percent: the part of the sampling in which it counts, 0 ≤ start ≤ end ≤ 1.
    when_missing: what happens when no prompt carries it.
    apply_to_negative: whether a word in a negative prompt carries it too.
    region: (pictures, height, width) in [0, 1], where in the picture it counts; pictures as for `subject`.
    region_mode: "mask" takes `region`; "auto" finds it in the word's attention if there is none; "none"
        leaves regions and all that follows from them alone.
    bounded: whether the word itself is not attended outside the region.
    bound_self_attention: whether self-attention is kept apart between this region and those of other
    subjects. blocks: factors on the strength, `blocks.parse_blocks`.

    Raises NestedAttentionError, naming Apply Subject, for a value out of range, a subject of another encoder,
    a model the encoder was not trained for, and a name that a subject applied before has.
    """
    name = word if name is None or not name.strip() else " ".join(name.split())
    _check_settings(attention_scale, alpha, strength, start_percent, end_percent, when_missing)
    check_word(word, "Apply Subject: word")
    check_word(name, "Apply Subject: name")
    called = SubjectWord(name, " ".join(word.split()))
    try:
        subject.check_encoder(encoder)
        addresses = _addresses(model, encoder)
    except NestedAttentionError as error:
        raise NestedAttentionError(f"Apply Subject: {error}. The encoder is {encoder.source}") from error
    try:
        factors = parse_blocks(blocks, [site for _, site in addresses])
        placed = subject_region(region, region_mode, bounded, bound_self_attention)
    except NestedAttentionError as error:
        raise NestedAttentionError(f"Apply Subject: {error}") from error
    trained = encoder.config.alpha
    if alpha == SubjectEncoderConfig.alpha != trained:  # nobody chose it
        warn_once(
            f"Apply Subject: {name!r} is applied with α = {alpha}, and {encoder.source} was trained with "
            f"{trained or 0}; set alpha to that"
        )
    if placed.mask is not None and not placed.mask.any():
        warn_once(
            f"Apply Subject: the region of {name!r} is empty (0 everywhere), so the subject is attached "
            "nowhere. Load Image gives such a mask for a picture without transparency: paint the region in "
            "its mask editor, invert the mask, or disconnect region"
        )
    clip = with_subject(clip, called)
    subjects = subjects_of(subject)
    managed: list[Any] = [None]
    if strength > 0 and any(factors.values()):  # off takes no memory either
        managed = [
            subject_values(
                encoder,
                one,
                dtype=model.model.manual_cast_dtype or model.model_dtype(),
                load_device=model.load_device,
                offload_device=model.offload_device,
            )
            for one in subjects
        ]
    else:
        strength = 0.0
    biases = [one.token_bias for one in subjects]
    alone = len(managed) == 1
    applied = AppliedSubject(
        called=called,
        values=managed[0] if alone else None,
        token_bias=biases[0] if alone and bool(biases[0].any()) else None,
        attention_scale=float(attention_scale),
        alpha=None if alpha is None else float(alpha),
        norm=encoder.config.norm,
        strength=float(strength),
        start_percent=float(start_percent),
        end_percent=float(end_percent),
        when_missing=when_missing,
        apply_to_negative=apply_to_negative,
        region=placed,
        blocks=factors,
        batch=() if alone else tuple(zip(managed, biases, strict=True)),
    )
    earlier = SubjectChain.of(model)
    _check_name(applied, earlier)
    chain = SubjectChain((*(earlier.subjects if earlier else ()), applied), addresses)
    model = model.clone()
    chain.install(model)
    return model, clip


def _check_settings(
    attention_scale: float, alpha: float | None, strength: float, start: float, end: float, when_missing: str
) -> None:
    wrong: list[str] = []
    if not 0 < attention_scale < math.inf:
        wrong.append(f"attention scale (λ) is {attention_scale}; expected a number above 0, 1 for no change")
    if alpha is not None and not 0 < alpha < math.inf:
        wrong.append(f"alpha is {alpha}; expected a number above 0, or none for no regularisation")
    if not 0 <= strength <= 1:
        wrong.append(f"strength is {strength}; expected 0 to 1")
    if not 0 <= start <= end <= 1:
        wrong.append(f"start is {start} and end is {end}; expected 0 ≤ start ≤ end ≤ 1")
    if when_missing not in ("error", "warn"):
        wrong.append(f"when missing is {when_missing!r}; expected 'error' or 'warn'")
    if wrong:
        raise NestedAttentionError("Apply Subject: " + "; ".join(wrong))


def _addresses(model: Any, encoder: SubjectEncoderHandle) -> tuple[tuple[ComfyAddress, str], ...]:
    """Where the model has the encoder's sites. Raises NestedAttentionError if they are not the same."""
    config = getattr(getattr(model, "model", None), "model_config", None)
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if config is None or not hasattr(unet, "input_blocks"):
        raise NestedAttentionError(
            f"the MODEL is {type(getattr(model, 'model', model)).__name__}; expected a UNet of SDXL's kind. "
            "Connect an SDXL checkpoint"
        )
    layout = UNetLayout.from_comfy_config(config.unet_config)
    check_sites(encoder.config.sites, layout.sites)
    return tuple((address, site.name) for address, site in layout.comfy_sites.items())


def _check_name(applied: AppliedSubject, earlier: SubjectChain | None) -> None:
    """The CLIP refuses equal names first; this is for a MODEL wire that comes from elsewhere than the CLIP
    wire."""
    for other in earlier.subjects if earlier else ():
        if other.mark == applied.mark:
            raise NestedAttentionError(
                f"Apply Subject: the MODEL already carries a subject called {other.called.name!r}, so no "
                "prompt could tell it from this one. Give one of them another name, or connect MODEL and "
                "CLIP of one chain"
            )
