"""A MODEL whose prompts can carry subjects.

Three wrappers, however many subjects there are, do it while sampling: one decides which prompts count, one
which subjects count at this step, one puts the nested values into the cross-attention layers for a single
forward pass. Nothing of ours stays in the places where other packs put their patches, so their order does not
matter; and where nothing is marked, the model runs exactly as without us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.conds
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....placeholders import name_key
from ....sites import ComfyAddress
from ..encoding.memory import copy_of
from ..notices import warn_once
from ..prompts.encoded import check_same, encoded_prompts
from ..prompts.marks import (
    COND,
    KEY,
    PromptMarks,
    UnclaimedMarks,
    fit,
    lost_in_merge,
    marks_in,
    stacked,
    warn_of_lost_words,
)
from .applied import AppliedSubject
from .carried import carried_in
from .copies import Shared
from .coupled import CoupledRows, is_coupled
from .missing import (
    elsewhere_carried,
    reason_missing,
    tell_crowded,
    tell_missing,
    tell_uncounted,
    tell_unused,
)
from .observing import ObservedPass
from .places import PLACES, Pass, Places
from .recorder import Recorder
from .run import Carrying, SamplingRun
from .slots import SubjectsOfPass


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conditioning as a guider keeps it. marks: of each of its prompts, mostly one; a conditioning may have
    one a picture."""

    cond: dict[str, Any]
    negative: bool
    marks: tuple[PromptMarks | None, ...]

    @property
    def known(self) -> list[PromptMarks]:
        return [one for one in self.marks if one is not None]


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
        beside = model.get_additional_models_with_key(KEY)  # copies, where the MODEL is one for another GPU
        model.set_additional_models(KEY, [copy_of(one, beside) for one in self._patchers()])
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
        # The guider's options are this sampling's own copy, so what is kept in them ends with it.
        options = guider.model_options.setdefault("transformer_options", {})
        prompts = [
            (role, None if conds is None else [self._read(role, cond) for cond in conds])
            for role, conds in guider.conds.items()
        ]
        read = [prompt for _, of_role in prompts for prompt in of_role or ()]
        recordings = [
            (recorder, recorder.begin(self.subjects, len(noise), len(sigmas) - 1))
            for recorder in Recorder.of(options)
        ]
        run = options[KEY] = SamplingRun(
            self.subjects,
            len(noise),
            sigmas,
            size=(noise.shape[-2], noise.shape[-1]),
            rows_per_token=max((marks.rows_per_token for one in read for marks in one.known), default=1),
            coupled=(
                encoded_prompts.candidates(self._numbers(negative=False)) if is_coupled(options) else None
            ),
            observers=[recording for _, recording in recordings],
        )
        self._check(read, run)
        tell_unused(self.subjects, len(noise))
        positive = [marks for prompt in read if not prompt.negative for marks in prompt.known]
        tell_crowded(self.subjects, positive, guider.model_patcher, (noise.shape[-2], noise.shape[-1]))
        for prompt in read:
            if not prompt.negative:
                warn_of_lost_words(prompt.cond)
        guider.conds = {
            role: of_role if of_role is None else [self._claim(prompt) for prompt in of_role]
            for role, of_role in prompts
        }
        try:
            out = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            for recorder, recording in recordings:
                try:
                    recorder.keep(recording)
                except Exception as error:  # whatever it is, maps are not worth the picture
                    warn_once(f"Observe Subjects: maps could not be finished ({error}); the picture is whole")
            tell_uncounted(self.subjects, run.carrying, finished=float(sigmas[-1]) == 0)
            return out
        finally:
            run.end()

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
        """At each step: drops the marks of subjects that are not in force.

        If a prompt is marked, every prompt gets marks of its context's length, so that ComfyUI batches the
        same prompts as without us.
        """
        active = self._active(model, timestep)
        options = model_options.get("transformer_options", {})
        run, places = SamplingRun.of(options), None
        codes = [[self._codes(cond, active, run) for cond in prompt or ()] for prompt in conds]
        marked = any(one is not None for prompt in codes for one in prompt)
        if run is not None:
            run.carrying.step(active)
            if run.needs_places and marked:
                run.step(timestep)
                places = run.place(x, options)
        rows = 1 if run is None else run.rows_per_token
        prepared = [
            prompt
            if prompt is None
            else [_with_codes(*pair, marked, rows, places) for pair in zip(prompt, one, strict=True)]
            for prompt, one in zip(conds, codes, strict=True)
        ]
        out = executor(model, prepared, x, timestep, model_options, *args)
        if run is not None and run.carrying.awaited:
            self._check_awaited(run.carrying, active)
        return out

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
        run = SamplingRun.of(options)
        coupled: CoupledRows | None = None
        coupling = None if run is None or c_crossattn is None else run.coupled
        if codes is None and not coupling:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, *args, **kwargs)
        where = None if places is None or run is None else run.where(places, x)
        read = torch.zeros(len(x), 1, dtype=torch.int64) if codes is None else codes[..., 0].cpu()
        values = self._values(executor.class_obj)
        subjects = self._of_pass(read, x.device, values, run, where)
        if run is not None and c_crossattn is not None and coupling:
            active = run.carrying.active
            numbers = {key: n for key, n in self._numbers(negative=False).items() if n in active}
            bind = partial(carried_in, self.subjects, device=x.device, values=values, run=run)
            coupled = CoupledRows(c_crossattn, read, coupling, numbers, bind)
        if not subjects.carried and coupled is None:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, *args, **kwargs)
        there = options.get("patches_replace", {})
        seen = ObservedPass(run, where) if run is not None and where is not None and run.observers else None
        options["patches_replace"] = subjects.slots(there, coupled, seen)
        options = options if coupled is None else coupled.patched(options)
        return executor(x, t, c_concat, c_crossattn, control, options, *args, **kwargs)

    def _read(self, role: str, cond: dict[str, Any]) -> Prompt:
        """Which prompts a conditioning has. Several in one, one a picture, are told by what was encoded."""
        context, own, negative = cond.get("cross_attn"), marks_in(cond), _negative(role, cond)
        if context is None or len(context) == 1 or getattr(context, KEY, None) is not None:
            return Prompt(cond, negative, (own,))
        numbers = self._numbers(negative)
        found: list[PromptMarks | None] = []
        for marks in encoded_prompts.candidates(numbers).recognised(context):
            check_same([codes for one in marks if (codes := one.numbered(numbers)) is not None])
            found.append(marks[0] if marks else None)
        if own is not None and not any(found):
            if bool((context == context[:1]).all()):
                return Prompt(cond, negative, (own,))
            # What it says is of one of them, nobody knows of which.
            found = [replace(own, codes=torch.zeros_like(own.codes), names=())]
        return Prompt(cond, negative, tuple(found))

    def _numbers(self, negative: bool) -> dict[str, int]:
        """What stands in the marks for each subject that such a prompt may carry, by its key: from 1."""
        return {
            s.key: number
            for number, s in enumerate(self.subjects, 1)
            if s.strength > 0 and (s.settings.apply_to_negative or not negative)
        }

    def _check(self, prompts: Sequence[Prompt], run: SamplingRun) -> None:
        """Raises NestedAttentionError for a subject that no prompt carries, or warns, as it is told to. One
        that a prompt elsewhere carries is awaited where another pack may bring that prompt in."""
        positive = [marks for one in prompts if not one.negative for marks in one.known]
        negative = [marks for one in prompts if one.negative for marks in one.known]
        conflicts = [conflict for marks in positive for conflict in marks.conflicts]
        for subject in self.subjects:
            read = positive + negative if subject.settings.apply_to_negative else positive
            if subject.strength == 0:
                continue
            if any(subject.key in marks.keys for marks in read):
                run.carrying.expected.add(subject.key)
                continue
            elsewhere = elsewhere_carried(subject.key, [*positive, *negative])
            reason = conflicts[0] if conflicts else reason_missing(subject, read, elsewhere)
            if elsewhere is not None and run.coupled:
                run.carrying.awaited[subject.key] = reason
            else:
                tell_missing(subject, reason)
        for conflict in conflicts:
            warn_once(f"Nested Attention: {conflict}")
        known = {s.key for s in self.subjects}
        strangers = sorted(
            {name for marks in positive for name in marks.names if name_key(name) not in known}
        )
        if strangers:
            last = next(marks.by.title for marks in positive if strangers[0] in marks.names)
            warn_once(
                f"Nested Attention: a prompt carries {', '.join(map(repr, strangers))}, which this MODEL "
                f"does not have; connect the MODEL output of the last {last} to the sampler"
            )
        lost = lost_in_merge(kept={s.node for s in self.subjects})
        if lost is not None:
            warn_once(lost)

    def _check_awaited(self, carrying: Carrying, active: set[int]) -> None:
        """After a step: whether the subjects in force that were awaited have come."""
        for number, subject in enumerate(self.subjects, 1):
            reason = carrying.not_come(subject.key) if number in active else None
            if reason is not None:
                tell_missing(subject, reason)

    def _claim(self, prompt: Prompt) -> dict[str, Any]:
        """The conditioning with its marks as numbers beside the text context, where ComfyUI batches them.

        Marks that do not count are left out. Subject n has 2n at the tokens whose value is replaced, and
        2n + 1 at the other tokens of its word; both are negated in a negative prompt.
        """
        numbers = self._numbers(prompt.negative)
        codes = stacked([None if marks is None else marks.numbered(numbers) for marks in prompt.marks])
        model_conds = {k: v for k, v in prompt.cond.get("model_conds", {}).items() if k != COND}
        if codes is not None:
            codes = -codes if prompt.negative else codes
            model_conds[COND] = comfy.conds.CONDCrossAttn(codes[..., None])
        return {**prompt.cond, "model_conds": model_conds}

    def _active(self, model: Any, timestep: Tensor) -> set[int]:
        """Numbers of the subjects in force at this step. Reads the timestep from the device only where it
        matters."""
        sampling = model.model_sampling
        sigma = None if all(s.settings.always for s in self.subjects) else float(timestep[0])
        return {
            number
            for number, s in enumerate(self.subjects, 1)
            if s.settings.always
            or sampling.percent_to_sigma(s.settings.start)
            >= sigma
            >= sampling.percent_to_sigma(s.settings.end)
        }

    def _codes(self, cond: Mapping[str, Any], active: set[int], run: SamplingRun | None) -> Tensor | None:
        marks = cond["model_conds"].get(COND)
        if isinstance(marks, UnclaimedMarks):
            warn_once(
                "Nested Attention: a prompt that carries a subject reached the model by a way that does not "
                "say whether it is positive or negative, and goes without its subject; use a sampler or "
                "guider node of ComfyUI"
            )
            return None
        if marks is None or run is None:
            return None if marks is None else _only(marks.cond[..., 0], active)
        here = marks.cond
        key = (id(here), frozenset(active))  # what is kept holds it, so that no other gets its id
        return run.codes.get(key, lambda: (here, _only(here[..., 0], active)))[1]

    def _patchers(self) -> list[Any]:
        everything = [values for s in self.subjects for values in (s.values, *(v for v, _ in s.batch))]
        return list(dict.fromkeys(values for values in everything if values is not None))

    def _values(self, model: Any) -> dict[Any, Any]:
        """The SubjectValues behind each patcher of ours. Newer versions of ComfyUI run one copy of the model
        per GPU, each with copies of the models beside it."""
        patcher = getattr(model, "current_patcher", None)
        beside = [] if patcher is None else patcher.get_additional_models_with_key(KEY)
        return {one: copy_of(one, beside).model for one in self._patchers()}

    def _of_pass(
        self,
        codes: Tensor,
        device: torch.device,
        values: Mapping[Any, Any],
        run: SamplingRun | None,
        where: Pass | None,
    ) -> SubjectsOfPass:
        """codes: (B, T) on the CPU."""

        def make() -> SubjectsOfPass:
            carried = carried_in(self.subjects, codes, device, values, run, where)
            return SubjectsOfPass.of(carried, self.addresses, device)

        if run is None:
            return make()
        prompts = codes.numpy().tobytes(), codes.shape
        key = (*prompts, where, device, tuple(map(id, values.values())), run.regions.search.watching)
        return run.passes.get(key, make)


def _negative(role: str, cond: Mapping[str, Any]) -> bool:
    """Whether a guider's prompt is one to steer away from: by its key, or by what the guider says of it."""
    kind = str(cond.get("prompt_type", role)).lower()
    return any(word in name for name in (role.lower(), kind) for word in ("negative", "uncond", "empty"))


def _only(codes: Tensor, numbers: Iterable[int]) -> Tensor | None:
    """The codes (B, T) of these subjects, others as unmarked; None if nothing is left."""
    kept = torch.isin(codes.abs() >> 1, torch.tensor(sorted(numbers), dtype=codes.dtype))
    return torch.where(kept, codes, 0) if bool(kept.any()) else None


def _with_codes(
    cond: dict[str, Any], codes: Tensor | None, marked: bool, rows_per_token: int, places: Places | None
) -> dict[str, Any]:
    """The conditioning with exactly these codes, one for each token of its context, and places; without any
    if nothing is marked."""
    model_conds = {k: v for k, v in cond["model_conds"].items() if k != COND}
    context = model_conds.get("c_crossattn")
    if marked and context is not None:
        codes = torch.zeros(1, 1, dtype=torch.int64) if codes is None else codes
        tokens = -(-context.cond.shape[1] // rows_per_token)
        model_conds[COND] = comfy.conds.CONDCrossAttn(fit(codes, tokens)[..., None])
        if places is not None:
            model_conds[PLACES] = places
    return {**cond, "model_conds": model_conds}
