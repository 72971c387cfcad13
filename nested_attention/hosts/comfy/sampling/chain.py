"""A MODEL whose prompts can carry subjects.

Three wrappers, however many subjects there are, do it while sampling: one decides which prompts count, one
which subjects count at this step, one puts the nested values into the cross-attention layers for a single
forward pass. Nothing of ours stays in the places where other packs put their patches, so their order does not
matter; and where nothing is marked, the model runs exactly as without us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....errors import NestedAttentionError
from ....placeholders import SubjectWord, why_missing
from ....sites import ComfyAddress
from ..prompts.marks import (
    COND,
    KEY,
    PromptMarks,
    UnclaimedMarks,
    fit,
    logger,
    mark_of,
    marks_in,
    warn_of_lost_words,
    warn_once,
)
from .applied import AppliedSubject
from .batches import row_values
from .copies import Shared
from .layer import CarriedSubject
from .places import PLACES, Pass, Places, places_of
from .regions import PassRegion, SamplingRun
from .slots import fill_slots


@dataclass(frozen=True, eq=False)
class SubjectChain(Shared):
    """All subjects of one MODEL and where its cross-attention is. Immutable: a longer chain is another
    one."""

    subjects: tuple[AppliedSubject, ...]
    addresses: tuple[tuple[ComfyAddress, str], ...]  # ComfyUI's address of each layer, and the site's name

    @classmethod
    def of(cls, model: Any) -> SubjectChain | None:
        return model.attachments.get(KEY)

    def install(self, model: Any) -> None:
        """Makes this the chain of `model`, a fresh clone, in place of the one it was cloned with."""
        model.set_attachments(KEY, self)
        model.set_additional_models(KEY, self._patchers())
        for kind, wrapper in (
            (WrappersMP.OUTER_SAMPLE, self.outer_sample),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.APPLY_MODEL, self.apply_model),
        ):
            model.remove_wrappers_with_key(kind, KEY)
            model.add_wrapper_with_key(kind, KEY, wrapper)

    def outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Before sampling: claims the marks of the prompts that count, and checks that each subject has one.

        Which prompts are negative is told by the names under which a guider keeps them, never by their order.
        Raises NestedAttentionError if no prompt carries a subject, unless it is to warn only.
        """
        guider = executor.class_obj
        positive: list[dict[str, Any]] = []
        negative: list[dict[str, Any]] = []
        for role, conds in guider.conds.items():
            for cond in conds or ():
                (negative if _negative(role, cond) else positive).append(cond)
        self._check(positive, negative)
        for cond in positive:
            warn_of_lost_words(cond)
        guider.conds = {
            role: conds if conds is None else [self._claim(cond, _negative(role, cond)) for cond in conds]
            for role, conds in guider.conds.items()
        }
        # The guider's options are this sampling's own copy, so what is kept in them ends with it.
        options = guider.model_options.setdefault("transformer_options", {})
        options[KEY] = SamplingRun(self.subjects, len(noise), sigmas)
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def calc_cond_batch(
        self,
        executor: Any,
        model: Any,
        conds: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: Mapping[str, Any],
        *args: Any,
    ) -> Any:
        """At each step: keeps the marks of the subjects in force, and gives every prompt marks of its
        context's length if any has one, so that prompts run together that would run together without us."""
        active = self._active(model, timestep)
        codes = [[self._codes(cond, active) for cond in prompt or ()] for prompt in conds]
        marked = any(one is not None for prompt in codes for one in prompt)
        options = model_options.get("transformer_options", {})
        run, places = SamplingRun.of(options), None
        if run is not None and run.needs_places and marked:
            run.step(timestep)
            places = places_of(x, run.batch, options)
        prepared = [
            prompt
            if prompt is None
            else [_with_codes(*pair, marked, places) for pair in zip(prompt, one, strict=True)]
            for prompt, one in zip(conds, codes, strict=True)
        ]
        return executor(model, prepared, x, timestep, model_options, *args)

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """For one forward pass: nested values in the layers, on top of whatever other packs have there."""
        options = dict(transformer_options or {})
        codes, places = kwargs.pop(COND, None), kwargs.pop(PLACES, None)
        if codes is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, *args, **kwargs)
        run, where = SamplingRun.of(options), None if places is None else Pass.read(places)
        values = self._values(executor.class_obj)
        carried = self._carried(codes[..., 0].cpu(), x.device, values, run, where)
        if not carried:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, *args, **kwargs)
        there = options.get("patches_replace", {})
        options["patches_replace"] = fill_slots(there, self.addresses, carried, x.device)
        return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)

    def _check(self, positive: Sequence[Mapping[str, Any]], negative: Sequence[Mapping[str, Any]]) -> None:
        found, driven_away = (
            [marks for cond in prompts if (marks := marks_in(cond)) is not None]
            for prompts in (positive, negative)
        )
        names = {name for marks in found for name in marks.names}
        conflicts = [conflict for marks in found for conflict in marks.conflicts]
        for subject in self.subjects:
            read = found + driven_away if subject.settings.apply_to_negative else found
            carried = {mark_of(name) for marks in read for name in marks.names}
            if subject.strength == 0 or subject.mark in carried:
                continue
            called = subject.settings.called
            reason = conflicts[0] if conflicts else _why_missing(called, read)
            who = f"the subject {called.name!r} (word {called.word!r})"
            message = f"Apply Subject: no prompt carries {who}: {reason}"
            if subject.settings.when_missing == "error":
                raise NestedAttentionError(message)
            logger.warning(f"Nested Attention: {message}")
        for conflict in conflicts:
            warn_once(f"Nested Attention: {conflict}")
        strangers = sorted(name for name in names if mark_of(name) not in {s.mark for s in self.subjects})
        if strangers:
            warn_once(
                f"Nested Attention: a prompt carries {', '.join(map(repr, strangers))}, which this MODEL "
                "does not have; connect the MODEL output of the last Apply Subject to the sampler"
            )

    def _claim(self, cond: dict[str, Any], negative: bool) -> dict[str, Any]:
        """The conditioning with the marks that count as plain marks, and no others."""
        marks = marks_in(cond)
        kept = {
            s.mark for s in self.subjects if s.strength > 0 and (s.settings.apply_to_negative or not negative)
        }
        codes = None if marks is None else _only(marks.codes, kept)
        model_conds = {k: v for k, v in cond.get("model_conds", {}).items() if k != COND}
        if codes is not None:
            model_conds[COND] = comfy.conds.CONDCrossAttn(codes[..., None])
        return {**cond, "model_conds": model_conds}

    def _active(self, model: Any, timestep: Tensor) -> set[int]:
        """Marks of the subjects in force at this step. Reads the timestep from the device only where it
        matters."""
        sampling = model.model_sampling
        sigma = None if all(s.settings.always for s in self.subjects) else float(timestep[0])
        return {
            s.mark
            for s in self.subjects
            if s.settings.always
            or sampling.percent_to_sigma(s.settings.start)
            >= sigma
            >= sampling.percent_to_sigma(s.settings.end)
        }

    def _codes(self, cond: Mapping[str, Any], active: set[int]) -> Tensor | None:
        marks = cond["model_conds"].get(COND)
        if isinstance(marks, UnclaimedMarks):
            warn_once(
                "Nested Attention: a prompt that carries a subject reached the model by a way that does not "
                "say whether it is positive or negative, and goes without its subject; use a sampler or "
                "guider node of ComfyUI"
            )
            return None
        return None if marks is None else _only(marks.cond[..., 0], active)

    def _patchers(self) -> list[Any]:
        everything = [values for s in self.subjects for values in (s.values, *(v for v, _ in s.batch))]
        return list(dict.fromkeys(values for values in everything if values is not None))

    def _values(self, model: Any) -> dict[Any, Any]:
        """The SubjectValues behind each patcher of ours. Newer versions of ComfyUI run one copy of the model
        per GPU, each with copies of the models beside it, in the same order."""
        ours = self._patchers()
        patcher = getattr(model, "current_patcher", None)
        beside = [] if patcher is None else patcher.get_additional_models_with_key(KEY)
        here = beside if len(beside) == len(ours) else ours
        return {one: other.model for one, other in zip(ours, here, strict=True)}

    def _carried(
        self,
        codes: Tensor,
        device: torch.device,
        values: Mapping[Any, Any],
        run: SamplingRun | None = None,
        where: Pass | None = None,
    ) -> list[CarriedSubject]:
        """codes: (B, T) on the CPU."""
        found = []
        for subject in self.subjects:
            mask = codes == 2 * subject.mark
            if not bool(mask.any()):
                continue
            word, region = (codes >> 1) == subject.mark, None
            own, bias = values.get(subject.values), subject.token_bias
            if subject.batch or subject.settings.placed:
                if run is None or where is None:
                    raise NestedAttentionError(
                        f"Apply Subject: {subject.settings.called.name!r} differs from picture to picture "
                        "or place to place, and another node runs the model without telling which pictures "
                        "it runs. Take it out, or give Apply Subject one subject and no region"
                    )
                if subject.batch:
                    own, bias = row_values(
                        [values[one] for one, _ in subject.batch],
                        [bias for _, bias in subject.batch],
                        where.pictures,
                    )
                if subject.settings.placed:
                    region = PassRegion(run, subject, where)
                    if not subject.settings.bounded:  # rows it leaves out are the base model's, exactly
                        mask = mask & ~run.empty(subject, where)[:, None]
                        if not bool(mask.any()):
                            continue
            bias = None if bias is None else bias.to(device, non_blocking=True)
            found.append(CarriedSubject(subject, own, mask, word, bias, region))
        return found


def _negative(role: str, cond: Mapping[str, Any]) -> bool:
    """Whether a guider's prompt is one to steer away from: by its key, or by what the guider says of it."""
    kind = str(cond.get("prompt_type", role)).lower()
    return any(word in name for name in (role.lower(), kind) for word in ("negative", "uncond", "empty"))


def _only(codes: Tensor, marks: Iterable[int]) -> Tensor | None:
    """The codes (B, T) of these marks, others as unmarked; None if nothing is left."""
    kept = torch.isin(codes >> 1, torch.tensor(sorted(marks), dtype=codes.dtype))
    return torch.where(kept, codes, 0) if bool(kept.any()) else None


def _with_codes(
    cond: dict[str, Any], codes: Tensor | None, marked: bool, places: Places | None
) -> dict[str, Any]:
    """The conditioning with exactly these codes, in its context's length, and places; without any if nothing
    is marked."""
    model_conds = {k: v for k, v in cond["model_conds"].items() if k != COND}
    context = model_conds.get("c_crossattn")
    if marked and context is not None:
        codes = torch.zeros(1, 1, dtype=torch.int64) if codes is None else codes
        model_conds[COND] = comfy.conds.CONDCrossAttn(fit(codes, context.cond.shape[1])[..., None])
        if places is not None:
            model_conds[PLACES] = places
    return {**cond, "model_conds": model_conds}


def _why_missing(called: SubjectWord, found: Sequence[PromptMarks]) -> str:
    """found: what is known of the prompts that went through Apply Subject's CLIP."""
    if not found:
        return (
            "none of the prompts was encoded with the CLIP that Apply Subject puts out. Connect that CLIP to "
            "the text encoders, or mark their conditioning with Mark Prompt"
        )
    words = tuple(dict.fromkeys(word for marks in found for word in marks.words))
    return (
        f"of the text that Apply Subject's CLIP encoded, {why_missing(called, words)}. If this pass is meant "
        "to go without it, as a face detailer's may be, set 'when missing' of Apply Subject to 'warn'"
    )
