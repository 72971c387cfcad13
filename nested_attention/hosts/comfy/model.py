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

from ...errors import NestedAttentionError
from ...placeholders import SubjectWord
from ...prompt import describe_words
from ...sites import ComfyAddress
from .layer import AppliedSubject, CarriedSubject, NestedLayer
from .marks import (
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


@dataclass(frozen=True, eq=False)
class SubjectChain:
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

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Before sampling: claims the marks of the prompts that count, and checks that each subject has one.

        Which prompts are negative is told by the names under which a guider keeps them, never by their order.
        Raises NestedAttentionError if no prompt carries a subject, unless it is to warn only.
        """
        guider = executor.class_obj
        prompts = [
            cond for role, conds in guider.conds.items() for cond in conds or () if not _negative(role, cond)
        ]
        self._check(prompts)
        for cond in prompts:
            warn_of_lost_words(cond)
        guider.conds = {
            role: conds if conds is None else [self._claim(cond, _negative(role, cond)) for cond in conds]
            for role, conds in guider.conds.items()
        }
        return executor(*args, **kwargs)

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, *args: Any
    ) -> Any:
        """At each step: keeps the marks of the subjects in force, and gives every prompt marks of its
        context's length if any has one, so that prompts run together that would run together without us."""
        active = self._active(model, timestep)
        codes = [[self._codes(cond, active) for cond in prompt or ()] for prompt in conds]
        marked = any(one is not None for prompt in codes for one in prompt)
        prepared = [
            prompt
            if prompt is None
            else [_with_codes(*pair, marked) for pair in zip(prompt, one, strict=True)]
            for prompt, one in zip(conds, codes, strict=True)
        ]
        return executor(model, prepared, x, timestep, *args)

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
        codes = kwargs.pop(COND, None)
        if codes is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, *args, **kwargs)
        carried = self._carried(codes[..., 0].cpu(), x.device, self._values(executor.class_obj))
        replaced = options.get("patches_replace", {})
        there = replaced.get("attn2", {})
        ours = {
            address: NestedLayer(there.get(address, there.get(address[:2])), site, carried)
            for address, site in self.addresses
        }
        options["patches_replace"] = {**replaced, "attn2": {**there, **ours}}
        return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)

    def _check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        found = [marks for cond in prompts if (marks := marks_in(cond)) is not None]
        names = {name for marks in found for name in marks.names}
        carried = {mark_of(name) for name in names}
        conflicts = [conflict for marks in found for conflict in marks.conflicts]
        for subject in self.subjects:
            if subject.strength == 0 or subject.mark in carried:
                continue
            called = subject.called
            reason = conflicts[0] if conflicts else _why_missing(called, found)
            who = f"the subject {called.name!r} (word {called.word!r})"
            message = f"Apply Subject: no prompt carries {who}: {reason}"
            if subject.when_missing == "error":
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
        kept = {s.mark for s in self.subjects if s.strength > 0 and (s.apply_to_negative or not negative)}
        codes = None if marks is None else _only(marks.codes, kept)
        model_conds = {k: v for k, v in cond.get("model_conds", {}).items() if k != COND}
        if codes is not None:
            model_conds[COND] = comfy.conds.CONDCrossAttn(codes[..., None])
        return {**cond, "model_conds": model_conds}

    def _active(self, model: Any, timestep: Tensor) -> set[int]:
        """Marks of the subjects in force at this step. Reads the timestep from the device only where it
        matters."""
        sampling = model.model_sampling
        sigma = None if all(s.whole_range for s in self.subjects) else float(timestep[0])
        return {
            s.mark
            for s in self.subjects
            if s.whole_range
            or sampling.percent_to_sigma(s.start_percent) >= sigma >= sampling.percent_to_sigma(s.end_percent)
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
        return list(dict.fromkeys(s.values for s in self.subjects if s.values is not None))

    def _values(self, model: Any) -> dict[Any, Any]:
        """The SubjectValues behind each patcher of ours. Newer versions of ComfyUI run one copy of the model
        per GPU, each with copies of the models beside it, in the same order."""
        ours = self._patchers()
        patcher = getattr(model, "current_patcher", None)
        beside = [] if patcher is None else patcher.get_additional_models_with_key(KEY)
        here = beside if len(beside) == len(ours) else ours
        return {one: other.model for one, other in zip(ours, here, strict=True)}

    def _carried(
        self, codes: Tensor, device: torch.device, values: Mapping[Any, Any]
    ) -> list[CarriedSubject]:
        """codes: (B, T) on the CPU."""
        found = []
        for subject in self.subjects:
            mask = codes == 2 * subject.mark
            if bool(mask.any()):
                bias = subject.token_bias
                bias = None if bias is None else bias.to(device, non_blocking=True)
                word = (codes >> 1) == subject.mark
                found.append(CarriedSubject(subject, values[subject.values], mask, word, bias))
        return found


def _negative(role: str, cond: Mapping[str, Any]) -> bool:
    """Whether a guider's prompt is one to steer away from: by its key, or by what the guider says of it."""
    kind = str(cond.get("prompt_type", role)).lower()
    return any(word in name for name in (role.lower(), kind) for word in ("negative", "uncond", "empty"))


def _only(codes: Tensor, marks: Iterable[int]) -> Tensor | None:
    """The codes (B, T) of these marks, others as unmarked; None if nothing is left."""
    kept = torch.isin(codes >> 1, torch.tensor(sorted(marks), dtype=codes.dtype))
    return torch.where(kept, codes, 0) if bool(kept.any()) else None


def _with_codes(cond: dict[str, Any], codes: Tensor | None, marked: bool) -> dict[str, Any]:
    """The conditioning with exactly these codes, in its context's length; without any if nothing is
    marked."""
    model_conds = {k: v for k, v in cond["model_conds"].items() if k != COND}
    context = model_conds.get("c_crossattn")
    if marked and context is not None:
        codes = torch.zeros(1, 1, dtype=torch.int64) if codes is None else codes
        model_conds[COND] = comfy.conds.CONDCrossAttn(fit(codes, context.cond.shape[1])[..., None])
    return {**cond, "model_conds": model_conds}


def _why_missing(called: SubjectWord, found: Sequence[PromptMarks]) -> str:
    """found: what is known of the prompts that went through Apply Subject's CLIP."""
    if not found:
        return (
            "none of the prompts was encoded with the CLIP that Apply Subject puts out. Connect that CLIP to "
            "the text encoders, or mark their conditioning with Mark Prompt"
        )
    words = tuple(dict.fromkeys(word for marks in found for word in marks.words))
    wanted = repr(called.word) if called.name == called.word else f"{called.word!r} or <{called.name}>"
    return (
        f"of the text that Apply Subject's CLIP encoded, {describe_words(words)}. Write {wanted} where the "
        "subject should appear. If this pass is meant to go without it, as a face detailer's may be, set "
        "'when missing' of Apply Subject to 'warn'"
    )
