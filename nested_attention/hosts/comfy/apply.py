"""Apply Subject: a subject, a word, and how strongly the one is the other."""

from __future__ import annotations

from typing import Any

from ...encoder import SubjectEncoderConfig
from ...errors import NestedAttentionError
from ...settings import SubjectSettings
from ...sites import ComfyAddress, UNetLayout, check_sites
from ...subject import Subject
from ...subject_batch import SubjectBatch, subjects_of
from .encoding.memory import SubjectEncoderHandle, subject_values
from .graph import APPLY_SUBJECT, Applier
from .identity import running_identity
from .notices import warn_once
from .prompts.clip import SubjectCLIP, with_subject
from .sampling.applied import AppliedSubject
from .sampling.chain import SubjectChain


def apply_subject(
    model: Any,
    clip: Any,
    encoder: SubjectEncoderHandle,
    subject: Subject | SubjectBatch,
    settings: SubjectSettings,
    by: Applier = APPLY_SUBJECT,
) -> tuple[Any, SubjectCLIP]:
    """MODEL and CLIP → clones of them that carry one more subject; chain it once a subject.

    subject: a SubjectBatch gives each picture of the latent batch its own, in order, from the first again
        where there are more pictures. by: the node that does it, which messages name.

    Raises NestedAttentionError, naming the node, for a subject of another encoder, a model the encoder
    was not trained for, blocks that it does not have, and a name that a subject applied before has.
    """
    settings = settings.trained_as(encoder.config)
    name = settings.called.name
    try:
        subject.check_encoder(encoder)
        addresses = _addresses(model, encoder)
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{by.title}: {error}. The encoder is {encoder.source}") from error
    try:
        factors = settings.factors(site for _, site in addresses)
    except NestedAttentionError as error:
        raise NestedAttentionError(f"{by.title}: {error}") from error
    trained = encoder.config.alpha
    nested = settings.injection == "nested"
    if nested and settings.alpha == SubjectEncoderConfig.alpha != trained:  # nobody chose it
        warn_once(
            f"{by.title}: {name!r} is applied with α = {settings.alpha}, and {encoder.source} was trained "
            f"with {trained or 0}; set alpha to that"
        )
    if settings.region is not None and not settings.region.any():
        warn_once(
            f"{by.title}: the region of {name!r} is empty (0 everywhere), so the subject is attached "
            "nowhere. Load Image gives such a mask for a picture without transparency: paint the region in "
            "its mask editor, invert the mask, or disconnect region"
        )
    on = settings.strength > 0 and any(factors.values())
    clip = with_subject(clip, settings.called, required=on and settings.when_missing == "error", by=by)
    subjects = subjects_of(subject)
    managed: list[Any] = [None]
    if on:  # off takes no memory either
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
    biases = [one.token_bias for one in subjects]
    alone = len(managed) == 1
    applied = AppliedSubject(
        settings=settings,
        values=managed[0] if alone else None,
        token_bias=biases[0] if alone and bool(biases[0].any()) else None,
        factors=factors,
        node=running_identity(),
        by=by,
        subjects=tuple(subjects),
        queries=encoder.config.num_queries,
        batch=() if alone else tuple(zip(managed, biases, strict=True)),
    )
    earlier = SubjectChain.of(model)
    _check_name(applied, earlier)
    chain = SubjectChain((*(earlier.subjects if earlier else ()), applied), addresses)
    model = model.clone()
    chain.install(model)
    return model, clip


def check_fits(model: Any, config: SubjectEncoderConfig) -> None:
    """Raises NestedAttentionError if an encoder of this configuration was not trained for the MODEL."""
    check_sites(config.sites, _layout(model).sites)


def fits_model(model: Any, config: SubjectEncoderConfig) -> bool:
    """Whether an encoder of this configuration was trained for the MODEL."""
    try:
        check_fits(model, config)
    except NestedAttentionError:
        return False
    return True


def _addresses(model: Any, encoder: SubjectEncoderHandle) -> tuple[tuple[ComfyAddress, str], ...]:
    """Where the model has the encoder's sites. Raises NestedAttentionError if they are not the same."""
    layout = _layout(model)
    check_sites(encoder.config.sites, layout.sites)
    return tuple((address, site.name) for address, site in layout.comfy_sites.items())


def _layout(model: Any) -> UNetLayout:
    config = getattr(getattr(model, "model", None), "model_config", None)
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    if config is None or not hasattr(unet, "input_blocks"):
        raise NestedAttentionError(
            f"the MODEL is {type(getattr(model, 'model', model)).__name__}; expected a UNet of SDXL's kind. "
            "Connect an SDXL checkpoint"
        )
    return UNetLayout.from_comfy_config(config.unet_config)


def _check_name(applied: AppliedSubject, earlier: SubjectChain | None) -> None:
    """The CLIP refuses equal names first; this is for a MODEL wire that comes from elsewhere than the CLIP
    wire."""
    for other in earlier.subjects if earlier else ():
        if other.key == applied.key:
            raise NestedAttentionError(
                f"{applied.by.title}: the MODEL already carries a subject called "
                f"{other.settings.called.name!r}, so no prompt could tell it from this one. Give one of "
                "them another name, or connect MODEL and CLIP of one chain"
            )
