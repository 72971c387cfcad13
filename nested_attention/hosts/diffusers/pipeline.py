"""Subjects in a diffusers pipeline of SDXL's kind: text to image, image to image, inpainting, ControlNet.

with personalize(pipeline, [AppliedSubject(alice, encoder, name="alice"), AppliedSubject(rex, pet_encoder)]):
    pipeline("a photo of <alice> and a pet on the beach").images[0]
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import NestedAttentionError
from ...inspection.recording import Recording
from ...placeholders import SubjectWord, parse_prompt
from ...prompt import Tokenize
from ...sites import check_sites, diffusers_sites
from ...subject_batch import padded_bias, padded_tokens, subjects_of
from .applied import AppliedSubject
from .binding import SubjectBinding
from .missing import tell_missing, tell_uncounted
from .processors import SubjectSlot
from .recorder import Recorder
from .regions import AutomaticRegions
from .self_attention import SelfAttentionSlot

Masks = tuple[Tensor, Tensor]
"""(rows, tokens) bool: the last tokens of a subject's words, and all of them."""

logger = logging.getLogger("nested_attention")

_EXCHANGING = ("load_ip_adapter", "unload_ip_adapter")
"""Methods of a pipeline that make attention processors anew, each of the class that is there."""

_PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


@contextmanager
def personalize(
    pipeline: Any, subjects: Sequence[AppliedSubject], *, recorder: Recorder | None = None
) -> Iterator[Any]:
    """Within the context, the pipeline's prompts carry the subjects; afterwards it is as it was.

    Only this pipeline's own calls, with prompts as text, use the subjects. Another pipeline on the same UNet
    draws without them, and so do embeddings of `encode_prompt` wherever they are used, which a warning says.

    `<name>` and `<name:word>` are replaced in every prompt; only positive prompts carry subjects, and
    negative ones those of `apply_to_negative`. K̆ and V̆
    are computed once, on entering. recorder: keeps maps of what the subjects do in each call.

    A subject's `start` and `end` are parts of the schedule that the model was trained with, from all noise to
    none, not of a call's steps. Image to image with strength 0.3 runs its last 0.3, and a subject that ends
    at 0.6 counts in no step of it. A warning says so after the call.

    Raises NestedAttentionError on entering, for an encoder that was not trained for the pipeline's UNet and
    for two subjects of one name; and when the pipeline is called, if no prompt carries one of the subjects
    (naming it, its word and the prompt's words), if two subjects claim one word, and for embeddings in place
    of text.
    """
    run = _Run(pipeline, tuple(subjects), recorder)
    with ExitStack() as undo:
        slot = SubjectSlot.install(pipeline.unet)
        undo.callback(slot.remove)
        if any(s.bound_self_attention for s in subjects):
            undo.callback(SelfAttentionSlot.install(slot).remove)
        hook = slot.unet.register_forward_pre_hook(
            lambda _, args, kwargs: run.before_step(slot, args, kwargs), with_kwargs=True
        )
        undo.callback(hook.remove)
        undo.enter_context(_intercepted(pipeline, run, slot))
        yield pipeline


@contextmanager
def _intercepted(pipeline: Any, run: _Run, slot: SubjectSlot) -> Iterator[None]:
    """Within the context, `run` encodes the pipeline's prompts, and what a call binds ends with the call.

    Python looks `__call__` up on the class, so the instance gets a subclass of its own for the time.
    """
    kind = type(pipeline)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        run.calling = True
        try:
            out = kind.__call__(self, *args, **kwargs)
            run.keep()
            return out
        finally:
            run.end()
            slot.set()

    def set_ip_adapter_scale(self: Any, *args: Any, **kwargs: Any) -> Any:
        with slot.previous_processors():  # it looks for IP-Adapter's own
            return kind.set_ip_adapter_scale(self, *args, **kwargs)

    def exchange(name: str) -> Callable[..., Any]:
        def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise NestedAttentionError(
                f"personalize: {name} exchanges the attention processors that carry the subjects; leave the "
                "context first, and enter it again afterwards"
            )

        return functools.wraps(getattr(kind, name))(refused)

    body = {"__call__": functools.wraps(kind.__call__)(call), "__module__": kind.__module__}
    body |= {name: exchange(name) for name in _EXCHANGING if hasattr(kind, name)}
    if hasattr(kind, "set_ip_adapter_scale"):
        body["set_ip_adapter_scale"] = set_ip_adapter_scale
    original = vars(pipeline).get("encode_prompt")  # an instance's own, where someone else replaced it
    pipeline.__class__ = type(kind.__name__, (kind,), body)
    pipeline.encode_prompt = run.encode_prompt
    try:
        yield
    finally:
        pipeline.__class__ = kind
        if original is None:
            del pipeline.encode_prompt
        else:
            pipeline.encode_prompt = original


class _Run:
    """What `personalize` knows of the pipeline's current call: which rows and tokens carry which subject."""

    def __init__(
        self, pipeline: Any, subjects: tuple[AppliedSubject, ...], recorder: Recorder | None
    ) -> None:
        self._pipeline, self._subjects, self._recorder = pipeline, subjects, recorder
        self._observers: tuple[Recording, ...] = ()
        self._counting = recorder is not None or any(s.auto_region for s in subjects)
        """Whether steps are counted, for which a device is waited for."""
        self._encode: Callable[..., Any] = pipeline.encode_prompt
        self._check_names()
        for subject in subjects:
            check_sites(subject.encoder.config.sites, diffusers_sites(pipeline.unet))
        self._projections = [self._project(subject) for subject in subjects]
        self._biases = [padded_bias(subjects_of(subject.subject)) for subject in subjects]
        self.calling = False
        """Whether the pipeline's own call is running, whose prompts are then encoded."""
        self._masks: list[Masks] | None = None  # of each subject, in the positive prompts
        self._negative: list[Masks] = []  # and in the negative ones
        self._guided = False
        self._bound: tuple[Any, ...] | None = None
        self._regions: tuple[int, AutomaticRegions] | None = None
        self._times: list[float] = []  # timesteps so far, where regions are to be found or maps kept
        self._counted: set[int] = set()  # numbers of the subjects that were in force at a step of the call

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own encode_prompt, on text with the placeholders replaced."""
        bound = inspect.signature(self._encode).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if self.calling:
            self._begin(given)
        else:
            self._tell_of_encoding(given)
        for name in _PROMPTS:
            if given.get(name) is not None:
                given[name] = self._replaced(given[name])
        return self._encode(*bound.args, **bound.kwargs)

    def _begin(self, given: Mapping[str, Any]) -> None:
        """A call, with what it gives to encode_prompt."""
        if given.get("prompt") is None or given.get("prompt_embeds") is not None:
            raise NestedAttentionError(
                "personalize: the pipeline was called without a prompt as text, so the words that carry the "
                "subjects cannot be found; pass prompt instead of prompt_embeds"
            )
        prompts, negative = _texts(given["prompt"]), _texts(given.get("negative_prompt") or "")
        prompts_2 = _texts(given.get("prompt_2") or prompts)
        copies = given.get("num_images_per_prompt") or 1
        self._masks = self._mark(prompts, prompts_2, len(prompts), copies)
        self._negative = [(torch.zeros_like(last), torch.zeros_like(last)) for last, _ in self._masks]
        applied = [s.called for s in self._subjects if s.apply_to_negative]
        if applied:
            negative_2 = _texts(given.get("negative_prompt_2") or negative)
            self._negative = self._mark(negative, negative_2, len(prompts), copies, applied)
        for subject, *masks in zip(self._subjects, self._masks, self._negative, strict=True):
            if subject.strength and not any(bool(last.any()) for last, _ in masks):
                tell_missing(subject, [*prompts, *prompts_2])
        self._guided = bool(given.get("do_classifier_free_guidance"))
        self._bound = self._regions = None
        self._times = []
        self._counted = set()

    def end(self) -> None:
        """After a call: the passes that follow, another pipeline's on the same UNet, carry no subject."""
        self.calling = False
        self._masks = self._bound = self._regions = None
        self._observers = ()

    def keep(self) -> None:
        """After a call that was not interrupted."""
        self._tell_of_uncounted()
        for recording in self._observers:
            if self._recorder is not None:
                self._recorder.keep(recording)

    @torch.compiler.disable  # a compiled UNet calls it too, and some versions cannot follow it
    def before_step(self, slot: SubjectSlot, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Binds the subjects that count at this step. Reads the timestep only if that depends on it."""
        if self._masks is None:
            return
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        batch = len(args[2] if len(args) > 2 else kwargs["encoder_hidden_states"])
        active = self._active(timestep)
        self._counted.update(active)
        if self._regions is None or self._regions[0] != batch:
            bindings = [self._binding(number, batch) for number in range(len(self._subjects))]
            number = len(self._masks[0][0]) if self._masks else batch
            pictures = [row % number for row in range(batch)]
            negative = range(batch - number)  # they stand before the others
            if self._regions is None:
                steps = self._number_of_steps() if self._counting else 0
                if self._recorder is not None:
                    self._observers = (self._recorder.begin(self._subjects, number, steps),)
                regions = AutomaticRegions(slot, bindings, steps, self._observers, pictures, negative)
            else:  # guidance was switched on or off
                regions = self._regions[1].moved(bindings, pictures, negative)
            self._regions = batch, regions
        regions = self._regions[1]
        bindings_now = regions.at(self._step(timestep), active)
        wanted = active, batch, regions.watching
        if wanted != self._bound:
            slot.set(*bindings_now)
            self._bound = wanted

    def _number_of_steps(self) -> int:
        """As `_step` counts them: schedulers of a higher order visit a timestep more than once."""
        times = self._pipeline.scheduler.timesteps.tolist()
        return len(set(times[-(getattr(self._pipeline, "num_timesteps", 0) or len(times)) :]))

    def _step(self, timestep: Tensor | float) -> int:
        """Number of the step, where it matters."""
        if not self._counting:
            return 0
        now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        if now not in self._times:
            self._times.append(now)
        return self._times.index(now)

    def _active(self, timestep: Tensor | float) -> tuple[int, ...]:
        numbers = range(len(self._subjects))
        if all(s.always for s in self._subjects):
            return tuple(numbers)
        now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        last = self._pipeline.scheduler.config.num_train_timesteps - 1
        subjects = enumerate(self._subjects)  # the schedule runs from `last` to 0
        return tuple(i for i, s in subjects if s.always or (1 - s.end) * last <= now <= (1 - s.start) * last)

    def _binding(self, number: int, batch: int) -> SubjectBinding:
        assert self._masks is not None
        subject, masks = self._subjects[number], self._masks[number]
        rows = len(masks[0])
        # A callback may switch guidance off between steps, so the pipeline is asked at each.
        guided = getattr(self._pipeline, "do_classifier_free_guidance", self._guided)
        if batch != rows * (2 if guided else 1):
            raise NestedAttentionError(
                f"personalize: the UNet runs on {batch} rows, expected {rows * (2 if guided else 1)} for "
                f"{rows} pictures, {'with' if guided else 'without'} negative prompts before them; this way "
                "of guiding is not supported, use a stock SDXL pipeline"
            )
        mask, word = masks
        if guided:
            mask, word = (torch.cat(pair) for pair in zip(self._negative[number], masks, strict=True))
        projections, bias, region = self._projections[number], self._biases[number], subject.region
        key = next(iter(projections.values()))[0]
        pictures = list(range(rows)) * (2 if guided else 1)
        if len(key) > 1:
            own = [picture % len(key) for picture in pictures]
            projections = {site: (k[own], v[own]) for site, (k, v) in projections.items()}
            bias = bias[own]
        if region is not None and len(region) > 1:
            region = region[[picture % len(region) for picture in pictures]]
        return SubjectBinding(
            projections=projections,
            mask=mask,
            word=word,
            settings=subject,
            token_bias=bias.to(key) if bool(bias.any()) else None,
            region=None if region is None else region.to(key.device, torch.float32),
        )

    def _project(self, subject: AppliedSubject) -> dict[str, tuple[Tensor, Tensor]]:
        """K̆, V̆ of every site, (subjects, N, inner), where the UNet runs and in its dtype."""
        unet = self._pipeline.unet
        device = getattr(self._pipeline, "_execution_device", unet.device)
        weights = next(subject.encoder.parameters())
        tokens = padded_tokens(subjects_of(subject.subject))
        with torch.no_grad():
            found = subject.encoder.project(tokens.to(weights))
        return {
            site: (key.to(device, unet.dtype), value.to(device, unet.dtype))
            for site, (key, value) in found.items()
        }

    def _mark(
        self,
        prompts: list[str],
        prompts_2: list[str],
        rows: int,
        copies: int,
        carried: Sequence[SubjectWord] | None = None,
    ) -> list[Masks]:
        """For each subject its places in the prompts: 1 or `rows` of them, each drawn `copies` times.

        A place counts if either text encoder reads the word there: usually both read the same text. carried:
        the subjects that the prompts may carry, all if left out.
        """
        tokenizers = [
            tokenizer
            for name in ("tokenizer", "tokenizer_2")
            if (tokenizer := getattr(self._pipeline, name, None)) is not None
        ]
        length = max(tokenizer.model_max_length for tokenizer in tokenizers)
        last = torch.zeros(len(self._subjects), rows, length, dtype=torch.bool)
        whole = last.clone()
        subjects = [s.called for s in self._subjects]
        for tokenizer, column in zip(tokenizers, (prompts, prompts_2), strict=False):  # as encode_prompt does
            tokenize = self._tokenize(tokenizer)
            for row, text in enumerate(column if len(column) == rows else column * rows):
                parsed = parse_prompt(text, subjects, carried)
                if parsed.conflicts:
                    raise NestedAttentionError(f"personalize: {parsed.conflicts[0]}")
                for subject, positions in parsed.carried(tokenize):
                    number = subjects.index(subject)
                    whole[number, row, positions] = True
                    last[number, row, positions[-1]] = True
        return [
            (a.repeat_interleave(copies, 0), b.repeat_interleave(copies, 0))
            for a, b in zip(last, whole, strict=True)
        ]

    def _tokenize(self, tokenizer: Any) -> Tokenize:
        convert = getattr(self._pipeline, "maybe_convert_prompt", lambda text, tokenizer: text)

        def tokenize(text: str) -> Sequence[int]:
            length = tokenizer.model_max_length
            converted = convert(text, tokenizer)  # textual inversions of several vectors
            return tokenizer(converted, padding="max_length", max_length=length, truncation=True).input_ids

        return tokenize

    def _replaced(self, prompt: str | list[str]) -> str | list[str]:
        texts = [parse_prompt(text, [s.called for s in self._subjects]).text for text in _texts(prompt)]
        return texts[0] if isinstance(prompt, str) else texts

    def _tell_of_encoding(self, given: Mapping[str, Any]) -> None:
        """Of a prompt that a user encodes: nothing tells which words an embedding has at its tokens."""
        texts = [text for name in ("prompt", "prompt_2") for text in _texts(given.get(name) or "")]
        if any(parse_prompt(text, [s.called for s in self._subjects]).occurrences for text in texts):
            logger.warning(
                "personalize: encode_prompt was called by itself, and what it returns carries no subject; "
                "call the pipeline with the prompt as text"
            )

    def _tell_of_uncounted(self) -> None:
        """Of a subject that prompts carry, in none of the call's steps. Where a call leaves noise for another
        pipeline (denoising_end), it may count there."""
        if self._masks is None or getattr(self._pipeline, "denoising_end", None) is not None:
            return
        for number, subject in enumerate(self._subjects):
            masks = self._masks[number], self._negative[number]
            carried = bool(subject.strength) and any(bool(last.any()) for last, _ in masks)
            if carried and number not in self._counted:
                tell_uncounted(subject)

    def _check_names(self) -> None:
        subjects = [s.called for s in self._subjects]
        for one in subjects:
            count = sum(one.shares_name(other) for other in subjects)
            if count > 1:
                raise NestedAttentionError(
                    f"personalize: {count} subjects are called {one.name!r}, so no prompt could tell them "
                    "apart; give each a name of its own and write <name> in the prompt"
                )


def _texts(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)
