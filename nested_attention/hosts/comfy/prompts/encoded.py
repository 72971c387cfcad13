"""Prompts that were encoded, and recognised again where their marks were lost on the way.

Packs pass a text context through tensors of their own: they join the prompts of several pictures, or mix
prompts inside the attention. A context that was only copied, cast or repeated is still known by its numbers:
text encoders read from left to right, so the last rows of each chunk depend on all of its text.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from weakref import WeakSet

import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ..notices import running_id
from .marks import KEY, PromptMarks

KEPT = 64
"""Prompts that are remembered after their text context is gone."""

PROMPT = "nested_attention_prompt"
"""The attribute of a text context that holds what it is recognised by."""

CHUNK, CHUNKS = 77, 16
"""Rows of a chunk of text, and how many chunks are told apart; a longer prompt is known by its first ones."""


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """One prompt: its marks, the rows of its text context, some of these rows, (n, width) in fp32, and the
    run of ComfyUI in which it was encoded."""

    marks: PromptMarks
    rows: int
    telltale: Tensor
    run: str | None = None

    @classmethod
    def of(cls, context: Tensor, marks: PromptMarks, *, keep_device: bool = False) -> EncodedPrompt:
        """context: (1, T, width)"""
        rows = context[0, _places(context.shape[1])].detach()
        return cls(marks, context.shape[1], rows.to(rows.device if keep_device else "cpu", torch.float32))

    def equals(self, contexts: Tensor) -> Tensor:
        """(B, T, width) → (B,) bool, on their device: which rows of a batch are this prompt, once or several
        times over."""
        rows, width = contexts.shape[1:]
        if rows % self.rows or width != self.telltale.shape[-1]:
            return torch.zeros(len(contexts), dtype=torch.bool, device=contexts.device)
        wanted = self.telltale.to(contexts.device, contexts.dtype)
        places = torch.tensor(_places(self.rows))
        ends = (0, rows - self.rows)  # the first and the last time
        return torch.stack([(contexts[:, places + at] == wanted).all(dim=(1, 2)) for at in ends]).all(dim=0)


class EncodedPrompts:
    """The prompts whose text contexts exist, and the last few others."""

    def __init__(self) -> None:
        self._alive: WeakSet[EncodedPrompt] = WeakSet()
        self._last: deque[EncodedPrompt] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def note(self, context: Tensor, marks: PromptMarks) -> PromptMarks:
        """Puts the marks on a text context that was encoded from their tokens, and remembers it."""
        own = replace(marks, rows=context.shape[1])
        setattr(context, KEY, own)
        if len(context) == 1 and context.shape[1]:
            prompt = EncodedPrompt.of(context, own)
            setattr(context, PROMPT, prompt)  # which then lives as long as the context
            with self._lock:
                self._alive.add(prompt)
                self._last.append(replace(prompt, run=running_id()))
        return own

    def recently_carrying(self, key: str) -> list[PromptMarks]:
        """Marks of the prompts that carry a subject and exist, or were encoded in the present run."""
        alive, last = self.carrying({key})
        run = running_id()
        return [one.marks for one in alive + [one for one in last if one.run is not None and one.run == run]]

    def carrying(self, keys: Collection[str]) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
        """The prompts that carry one of these subjects: those whose contexts exist, and the last few."""
        with self._lock:
            both = list(self._alive), list(self._last)[::-1]
        alive, last = ([one for one in prompts if one.marks.keys & set(keys)] for prompts in both)
        return alive, last


encoded_prompts = EncodedPrompts()


def recognise(contexts: Tensor, prompts: Sequence[EncodedPrompt]) -> list[list[EncodedPrompt]]:
    """Which of the prompts each of a batch of text contexts (B, T, width) is. Waits for the device once."""
    if not prompts:
        return [[] for _ in contexts]
    equal = torch.stack([one.equals(contexts) for one in prompts], dim=1).tolist()  # (B, prompts)
    return [[one for one, same in zip(prompts, row, strict=True) if same] for row in equal]


def check_same(codes: Sequence[Tensor]) -> None:
    """Raises NestedAttentionError if a row may be each of several prompts, and it matters which.

    codes: (1, T), who each of them carries.
    """
    if any(not torch.equal(one, codes[0]) for one in codes):
        raise NestedAttentionError(
            "Apply Subject: two prompts read the same once placeholders are words, and carry different "
            "subjects. Another node (attention couple, or a prompt for each picture) runs them without "
            "telling which is which. Let their texts differ, as <name:woman> in one of them does, or place "
            "subjects by Apply Subject's region instead"
        )


def _places(rows: int) -> list[int]:
    ends = list(range(CHUNK - 1, rows, CHUNK))[:CHUNKS]
    return ends if ends else [rows - 1]
