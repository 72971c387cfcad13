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
from ..identity import leading, running_identity
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
    """One prompt: its marks, the rows of its text context, some of these rows, (n, width) in fp32, the run of
    ComfyUI in which it was encoded, and the identity of the node that did it."""

    marks: PromptMarks
    rows: int
    telltale: Tensor
    run: str | None = None
    node: str = ""

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


@dataclass(frozen=True, eq=False)
class Candidates:
    """The prompts that a text context may be, each with its rank, and whose subjects count, by their keys.

    A prompt of rank n counts where none of a lower rank reads the same.
    """

    ranked: tuple[tuple[int, EncodedPrompt], ...]
    keys: frozenset[str]

    def __bool__(self) -> bool:
        """Whether any of them carries a subject."""
        return any(one.marks.keys & self.keys for _, one in self.ranked)

    def recognised(self, contexts: Tensor) -> list[list[PromptMarks]]:
        """(B, T, width) → for each of the batch, the marks that it may have, none if it carries nobody. Waits
        for the device once."""
        if not self:
            return [[] for _ in contexts]
        ranks = {id(one): rank for rank, one in self.ranked}
        marks = []
        for found in recognise(contexts, [one for _, one in self.ranked]):
            first = min((ranks[id(one)] for one in found), default=0)
            same = [one.marks for one in found if ranks[id(one)] == first]
            marks.append([one for one in same if one.keys & self.keys])
        return marks


class EncodedPrompts:
    """The prompts whose text contexts exist, and the last few others."""

    def __init__(self) -> None:
        self._alive: WeakSet[EncodedPrompt] = WeakSet()
        self._last: deque[EncodedPrompt] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def note(self, context: Tensor, marks: PromptMarks) -> PromptMarks:
        """Puts the marks on a text context that was encoded from their tokens, and remembers it.

        What the same node encoded in earlier runs is forgotten.
        """
        own = replace(marks, rows=context.shape[1])
        setattr(context, KEY, own)
        if len(context) == 1 and context.shape[1]:
            run, node = running_id(), running_identity()
            prompt = replace(EncodedPrompt.of(context, own), run=run, node=node)
            setattr(context, PROMPT, prompt)  # which then lives as long as the context
            with self._lock:
                for kept in (self._alive, self._last):
                    for one in [one for one in kept if node and one.node == node and one.run != run]:
                        kept.remove(one)
                self._alive.add(prompt)
                self._last.append(replace(prompt))  # a copy: what is alive goes with its context
        return own

    def recently_carrying(self, key: str) -> list[PromptMarks]:
        """Marks of the prompts that carry a subject and exist, or were encoded in the present run."""
        run = running_id()
        alive, last = self._known()
        recent = [*alive, *(one for one in last if one.run is not None and one.run == run)]
        return [one.marks for one in recent if key in one.marks.keys]

    def candidates(self, keys: Collection[str]) -> Candidates:
        """The prompts that the running node may be given, for subjects of these keys.

        Those that lead to it come first, then those of the present run, for a node may be in no graph. Even
        one of them that carries nobody goes before what was encoded earlier, whose graph was another one: in
        that, the same text may have carried somebody. Earlier ones are not encoded again where ComfyUI
        remembers what was made of them.
        """
        run, here, wanted = running_id(), set(leading()), frozenset(keys)
        alive, last = self._known()
        ranked = []
        for exists, prompts in ((True, alive), (False, last)):
            for one in prompts:
                if one.node in here:
                    ranked.append((0, one))
                elif run is not None and one.run == run:
                    ranked.append((1, one))
                elif one.marks.keys & wanted:
                    ranked.append((2 if exists else 3, one))
        return Candidates(tuple(ranked), wanted)

    def _known(self) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
        """The prompts whose contexts exist, and the last few others, the latest first."""
        with self._lock:
            alive, last = list(self._alive), list(self._last)[::-1]
        there = {id(one.marks) for one in alive}
        return alive, [one for one in last if id(one.marks) not in there]


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
