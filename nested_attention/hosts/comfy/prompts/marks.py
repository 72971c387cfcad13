"""Marks: how a token says which subject it carries, from the tokenizer to the sampler.

A mark names a subject, it does not hold one: the MODEL that a prompt reaches decides who that name is. It
rides on the token itself while nodes regroup tokens, then in the conditioning, as one number a token next to
the text context, where ComfyUI batches, repeats and joins it like the context.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import comfy.conds
import torch
from torch import Tensor

KEY = "nested_attention"  # PromptMarks in a conditioning's dict, and as an attribute of its text context
COND = "nested_attention_marks"  # the marks under `model_conds`, and the keyword that reaches the model

logger = logging.getLogger("nested_attention")


@lru_cache(maxsize=256)
def warn_once(message: str) -> None:
    """Logs a warning the first time it is given; a prompt is often tokenised several times for one
    picture."""
    logger.warning(message)


def mark_of(name: str) -> int:
    """The number that stands for a subject's name: the same in every process, never 0."""
    return zlib.crc32(" ".join(name.split()).casefold().encode()) + 1


@dataclass(frozen=True)
class SubjectNote:
    """On each token of a word that carries a subject; the last of them carries it."""

    name: str
    last: bool

    @property
    def code(self) -> int:
        """What stands in the marks: twice the subject's number, plus one on tokens before the last."""
        return 2 * mark_of(self.name) + (not self.last)


@dataclass(frozen=True)
class PromptNote:
    """On the start token of a prompt: what messages have to tell about it."""

    words: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


class NotedToken(int):
    """A token id with a note, that every tokenizer, node and text encoder takes for the id."""

    note: SubjectNote | PromptNote


def noted(token: int, note: SubjectNote | PromptNote) -> NotedToken:
    result = NotedToken(token)
    result.note = note
    return result


@dataclass(frozen=True, eq=False)
class PromptMarks:
    """Which tokens of an encoded prompt carry whom.

    codes: (1, T) int64 on the CPU, `SubjectNote.code` of each token or 0. names: of the subjects marked.
    words: what the prompt says. conflicts: why a word that two subjects claim carries neither.
    """

    codes: Tensor
    names: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    def in_conditioning(self, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Entries for a conditioning's dict. `other`: what it has already under `model_conds` is kept."""
        entries: dict[str, Any] = {KEY: self}
        kept = dict((other or {}).get("model_conds", {}))
        kept.pop(COND, None)
        if self.names:
            kept[COND] = UnclaimedMarks(self.codes[..., None], sorted(self.names))
        if kept or (other or {}).get("model_conds") is not None:
            entries["model_conds"] = kept
        return entries


class UnclaimedMarks(comfy.conds.CONDCrossAttn):
    """Marks as a prompt leaves the text encoder. A model with subjects claims them when it starts to sample;
    if one without reads them, its MODEL wire does not come from Apply Subject, and this says so once."""

    def __init__(self, cond: Tensor, names: Sequence[str] = ()) -> None:
        super().__init__(cond)
        self.names = tuple(names)
        self._said = False

    def process_cond(self, batch_size: int, **kwargs: Any) -> Any:
        if not self._said:
            self._said = True
            logger.warning(
                f"Nested Attention: a prompt carries {', '.join(map(repr, self.names))}, and the model that "
                "samples it carries no subject, so the picture will not show it. Connect the MODEL output of "
                "Apply Subject to the sampler"
            )
        return comfy.conds.CONDCrossAttn(self.cond).process_cond(batch_size, **kwargs)


def fit(codes: Tensor, length: int) -> Tensor:
    """(B, T) → (B, length): cut, or padded with unmarked tokens."""
    if codes.shape[1] >= length:
        return codes[:, :length]
    return torch.nn.functional.pad(codes, (0, length - codes.shape[1]))


def marks_in(cond: Mapping[str, Any]) -> PromptMarks | None:
    """The marks of a conditioning's dict, in the sampler's form or in a node's.

    The text context's own come first: a node may have put another prompt's context into a dict.
    """
    own = getattr(cond.get("cross_attn"), KEY, None)
    found = own if own is not None else cond.get(KEY)
    return found if isinstance(found, PromptMarks) else None


def warn_of_lost_words(cond: Mapping[str, Any]) -> None:
    """Says once which words of a prompt in the sampler's form cannot carry subjects: those of a second prompt
    that a node merged into the text context of a marked one, whose marks stay behind."""
    marks, context = cond.get(KEY), cond.get("cross_attn")
    if not isinstance(marks, PromptMarks) or not marks.names or context is None:
        return
    who = ", ".join(map(repr, sorted(marks.names)))
    if context.shape[1] > marks.codes.shape[1]:
        warn_once(
            f"Nested Attention: the prompt that carries {who} was joined with another one, as Conditioning "
            "(Concat) does; only the words of the first, conditioning_to, carry subjects"
        )
    elif not isinstance(getattr(context, KEY, None), PromptMarks):
        warn_once(
            f"Nested Attention: the prompt that carries {who} was changed after it was encoded, as "
            "Conditioning (Average) does; only the words of its conditioning_to carry subjects"
        )
