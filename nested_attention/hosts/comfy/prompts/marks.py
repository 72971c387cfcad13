"""Marks: how a token says which subject it carries, from the tokenizer to the sampler.

A mark names a subject, it does not hold one: the MODEL that a prompt reaches decides who that name is. It
rides on the token itself while nodes regroup tokens, then in the conditioning, as one number a token next to
the text context, where ComfyUI batches, repeats and joins it like the context.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ....placeholders import name_key
from ..graph import APPLY, APPLY_SUBJECT, Applier, merged_away, samples_personalised
from ..identity import identities
from ..notices import running_graph, running_node, warn_once

KEY = "nested_attention"  # PromptMarks in a conditioning's dict, and as an attribute of its text context
COND = "nested_attention_marks"  # the marks under `model_conds`, and the keyword that reaches the model


@dataclass(frozen=True)
class SubjectNote:
    """On each token of a word that carries a subject; the last of them carries it."""

    name: str
    last: bool


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

    codes: (1, T) int64 on the CPU: 0, or twice the number of a subject in `names`, counted from 1, plus one
    on tokens of a word before its last. required: those of them without whom no picture is to be drawn.
    words: what the prompt says. conflicts: why a word that two subjects claim carries neither.
    rows: of the text context that was encoded from the tokens; 0 if that is not known. by: the node that the
    CLIP came out of.
    """

    codes: Tensor
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    rows: int = 0
    by: Applier = APPLY_SUBJECT

    @property
    def rows_per_token(self) -> int:
        """2 where a text encoder gives each token two rows, for keys and for values (NegPip); mostly 1."""
        tokens = self.codes.shape[1]
        return self.rows // tokens if tokens and self.rows and self.rows % tokens == 0 else 1

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(map(name_key, self.names))

    def numbered(self, numbers: Mapping[str, int]) -> Tensor | None:
        """The codes (1, T) with the numbers that a MODEL gives to its subjects, by `name_key` their names.

        Subjects that have none there are unmarked; None if no other is left.
        """
        table = [0, 0]
        for name in self.names:
            number = numbers.get(name_key(name), 0)
            table += [2 * number, 2 * number + 1] if number else [0, 0]
        codes = torch.tensor(table)[self.codes]
        return codes if bool(codes.any()) else None

    def in_conditioning(self, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Entries for a conditioning's dict. `other`: what it has already under `model_conds` is kept."""
        entries: dict[str, Any] = {KEY: self}
        kept = dict((other or {}).get("model_conds", {}))
        kept.pop(COND, None)
        if self.names:
            kept[COND] = UnclaimedMarks(self.codes[..., None], self.names, self.required, self.by)
        if kept or (other or {}).get("model_conds") is not None:
            entries["model_conds"] = kept
        return entries


class UnclaimedMarks(comfy.conds.CONDCrossAttn):
    """Marks as a prompt leaves the text encoder. A model with subjects claims them when it starts to sample;
    if one without reads them, its MODEL wire does not come from Apply Subject, and this says so.

    It is an error where no sampler of the graph has such a wire and a subject is required: then the wire is
    forgotten. A pass of its own, on the same prompts, may well go without.
    """

    def __init__(
        self,
        cond: Tensor,
        names: Sequence[str] = (),
        required: frozenset[str] = frozenset(),
        by: Applier = APPLY_SUBJECT,
    ) -> None:
        super().__init__(cond)
        self.names, self.required, self.by = tuple(names), required, by

    def process_cond(self, batch_size: int, **kwargs: Any) -> Any:
        lost = lost_in_merge()
        if lost and self.required:
            raise NestedAttentionError(lost)
        graph = running_graph() if self.required else None
        if graph is not None and not samples_personalised(graph):
            raise NestedAttentionError(
                f"{self.by.title}: a prompt carries {_listed(self.required)}, and no sampler of this graph "
                "has a MODEL that does, so no picture would show it. Connect the MODEL output of the last "
                f"{self.by.title} to the sampler"
                + (". If it is meant to go without, set 'when missing' to 'warn'" * self.by.may_warn)
            )
        warn_once(
            lost
            or f"Nested Attention: a prompt carries {_listed(self.names)}, and the model that "
            "samples it carries no subject, so the picture will not show it. Connect the MODEL output of "
            f"{self.by.title} to the sampler"
        )
        return comfy.conds.CONDCrossAttn(self.cond).process_cond(batch_size, **kwargs)


def lost_in_merge(kept: Collection[str] = ()) -> str | None:
    """What to tell of nodes that attach subjects, lead to the running one through a node that merges models,
    and are not among those `kept`, which are identities; None if there are none."""
    graph = running_graph() or {}
    known = identities(graph)
    lost = sorted(one for one in merged_away(graph, running_node()) if known.get(one) not in kept)
    if not lost:
        return None
    title = APPLY[graph[lost[0]]["class_type"]].title
    return (
        f"Nested Attention: the subject of {title} (node {', '.join(lost)}) is lost where models are merged: "
        f"of two, a merge keeps the subjects of the first. Put {title} behind the node that merges"
    )


def _listed(names: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def fit(codes: Tensor, length: int) -> Tensor:
    """(B, T) → (B, length): cut, or padded with unmarked tokens."""
    if codes.shape[1] >= length:
        return codes[:, :length]
    return torch.nn.functional.pad(codes, (0, length - codes.shape[1]))


def stacked(codes: Sequence[Tensor | None]) -> Tensor | None:
    """Codes (1, T) of one prompt each → (prompts, T), repeated to one length, as ComfyUI repeats contexts.

    None is a prompt without marks; without any it is None.
    """
    length = math.lcm(*(one.shape[1] for one in codes if one is not None))
    if all(one is None for one in codes):
        return None
    empty = torch.zeros(1, length, dtype=torch.int64)
    return torch.cat([empty if one is None else one.repeat(1, length // one.shape[1]) for one in codes])


def marks_in(cond: Mapping[str, Any]) -> PromptMarks | None:
    """The marks of a conditioning's dict, in the sampler's form or in a node's.

    The text context's own come first: a node may have put another prompt's context into a dict.
    """
    own = getattr(cond.get("cross_attn"), KEY, None)
    found = own if own is not None else cond.get(KEY)
    return found if isinstance(found, PromptMarks) else None


def warn_of_lost_words(cond: Mapping[str, Any]) -> None:
    """Says which words of a prompt in the sampler's form cannot carry subjects: those of a second prompt
    that a node merged into the text context of a marked one, whose marks stay behind."""
    marks, context = cond.get(KEY), cond.get("cross_attn")
    if not isinstance(marks, PromptMarks) or not marks.names or context is None:
        return
    who = _listed(marks.names)
    if context.shape[1] > (marks.rows or marks.codes.shape[1]):
        warn_once(
            f"Nested Attention: the prompt that carries {who} was joined with another one, as Conditioning "
            "(Concat) does; only the words of the first, conditioning_to, carry subjects"
        )
    elif not isinstance(getattr(context, KEY, None), PromptMarks):
        warn_once(
            f"Nested Attention: the prompt that carries {who} was changed after it was encoded, as "
            "Conditioning (Average) does; only the words of its conditioning_to carry subjects"
        )
