"""A CLIP that knows which words of a prompt carry subjects.

It replaces placeholders, finds the words and marks their tokens; every text-encode node then works as it is,
because the marks ride on what those nodes pass around (`marks.py`).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ....errors import NestedAttentionError
from ....placeholders import ParsedPrompt, SubjectWord, parse_prompt
from ....prompt import describe_words, short, words_in
from ..graph import APPLY_SUBJECT, Applier
from ..notices import warn_once
from .encoded import encoded_prompts
from .marks import KEY, NotedToken, PromptMarks, PromptNote, SubjectNote, fit, noted
from .missing import AppliedWord, check_graph

TOWERS = ("l", "g")
"""The two CLIP text models of SDXL, as their token lists are called; SD 1.5 has the first. Other text models
do not carry subjects."""

Tokens = Mapping[str, Sequence[Sequence[Any]]]


class SubjectCLIP(comfy.sd.CLIP):
    """Mixed in front of a CLIP's own class by `with_subject`; immutable apart from what CLIP itself
    changes."""

    subjects: tuple[AppliedWord, ...] = ()
    required: frozenset[str] = frozenset()  # names of those without whom no picture is to be drawn

    @property
    def by(self) -> Applier:
        """The node that this CLIP comes out of."""
        return self.subjects[-1].by if self.subjects else APPLY_SUBJECT

    def clone(self, *args: Any, **kwargs: Any) -> SubjectCLIP:
        return _dress(super().clone(*args, **kwargs), self.subjects, self.required)

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        def plain(prompt: str, word_ids: bool = False) -> dict[str, Any]:
            return super(SubjectCLIP, self).tokenize(prompt, word_ids, **kwargs)

        if not isinstance(text, str):
            return plain(text, return_word_ids)
        try:
            parsed = parse_prompt(text, self.subjects)
        except NestedAttentionError as error:
            raise NestedAttentionError(f"{self.by.title}: {error}") from error
        if parsed.lookalikes:
            carried = {occurrence.subject.name for occurrence in parsed.occurrences}
            check_graph(self.subjects, self.required - carried)  # whose error says it, too
            few = [*map(short, parsed.lookalikes[:8]), *(["…"] if len(parsed.lookalikes) > 8 else [])]
            warn_once(
                f"Nested Attention: {', '.join(few)} in a prompt calls none of the subjects "
                f"{', '.join(f'<{s.name}>' for s in self.subjects)} and is left in the text as it is"
            )
        return _note(plain(parsed.text, return_word_ids), parsed, plain)

    def encode_from_tokens(
        self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False, **kwargs: Any
    ) -> Any:
        out = super().encode_from_tokens(
            tokens, return_pooled=return_pooled, return_dict=return_dict, **kwargs
        )
        marks = self.marks(tokens)
        if return_dict:
            out.update(encoded_prompts.note(out["cond"], marks).in_conditioning(out))
        else:  # a node that builds the conditioning's dict itself still passes this very tensor on
            encoded_prompts.note(out[0] if isinstance(out, tuple) else out, marks)
        return out

    def encode_from_tokens_scheduled(
        self,
        tokens: Tokens,
        unprojected: bool = False,
        add_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        add = dict(add_dict or {})
        marks = self.marks(tokens)
        check_graph(self.subjects, self.required - set(marks.names))
        add.update(marks.in_conditioning(add))
        conditioning = super().encode_from_tokens_scheduled(
            tokens, unprojected=unprojected, add_dict=add, **kwargs
        )
        for context, entries in conditioning:
            own = getattr(context, KEY, None)  # with hooks they do not come from encode_from_tokens
            entries[KEY] = encoded_prompts.note(context, marks) if own is None else own
        return conditioning

    def marks(self, tokens: Tokens) -> PromptMarks:
        """The marks that ride on tokens, in the positions their rows will have in the text context.

        Where the two text models read different texts, both their positions carry the subject, and a warning
        says so once.
        """
        towers = {t: list(_notes(tokens[t], self._width(t))) for t in TOWERS if t in tokens}
        length = min(map(len, towers.values()), default=0)
        codes, owners = [0] * length, [""] * length
        numbers: dict[str, int] = {}
        conflicts: list[str] = []
        words: dict[str, None] = {}
        for notes in towers.values():
            for at, note in enumerate(notes[:length]):
                if isinstance(note, PromptNote):
                    words.update(dict.fromkeys(note.words))
                    conflicts += note.conflicts
                elif isinstance(note, SubjectNote):
                    if owners[at] not in ("", note.name):
                        conflicts.append(
                            f"token {at} would carry two subjects, {owners[at]!r} and {note.name!r}: one is "
                            "in the text for the first text model (text_l), the other in the text for the "
                            "second (text_g). Give both the same text"
                        )
                    elif not codes[at] or note.last:
                        number = numbers.setdefault(note.name, len(numbers) + 1)
                        codes[at], owners[at] = 2 * number + (not note.last), note.name
        _warn_different(towers)
        return PromptMarks(
            torch.tensor([codes], dtype=torch.int64),
            tuple(numbers),
            tuple(words),
            tuple(dict.fromkeys(conflicts)),
            self.required & set(numbers),
            by=self.by,
        )

    def _width(self, tower: str) -> int | None:
        """Width of a text model's embeddings, None if it cannot be told."""
        model = getattr(self.cond_stage_model, f"clip_{tower}", None)
        return None if model is None else model.transformer.get_input_embeddings().weight.shape[-1]


def with_subject(
    clip: comfy.sd.CLIP, subject: SubjectWord, required: bool = False, by: Applier = APPLY_SUBJECT
) -> SubjectCLIP:
    """A clone of `clip` whose prompts can carry one more subject.

    required: whether a prompt that carries it may not be drawn without it. by: the node that attaches it.
    Raises NestedAttentionError if a subject bound before has the same name, or if `clip` is not one of SDXL
    or SD 1.5, which has the first of SDXL's two text models.
    """
    model = getattr(clip, "cond_stage_model", None)
    both = all(hasattr(model, f"clip_{tower}") for tower in TOWERS)
    if not both and getattr(model, "clip_name", None) != TOWERS[0]:
        raise NestedAttentionError(
            f"{by.title}: the CLIP is {type(getattr(clip, 'cond_stage_model', clip)).__name__}; expected "
            "the two text models of SDXL, or that of SD 1.5. Connect the CLIP output of such a checkpoint"
        )
    bound = tuple(getattr(clip, "subjects", ()))
    for other in bound:
        if subject.shares_name(other):
            raise NestedAttentionError(
                f"{by.title}: two subjects are called {subject.name!r}, so no prompt could tell them "
                "apart. Give one of them another name (or another word) and write <name> in the prompt"
            )
    names = getattr(clip, "required", frozenset()) | ({subject.name} if required else set())
    return _dress(clip.clone(), (*bound, AppliedWord(subject.name, subject.word, by)), names)


def mark_prompt(conditioning: list[Any], clip: Any, text: str) -> list[Any]:
    """The conditioning with the subjects that `text` carries, for text nodes whose work no CLIP can see.

    `text` is what the conditioning was encoded from, in ComfyUI's syntax. Raises NestedAttentionError if the
    CLIP carries no subject, if the text has none of their words, or if it does not fit the conditioning.
    """
    if not isinstance(clip, SubjectCLIP) or not clip.subjects:
        raise NestedAttentionError(
            "Mark Prompt: the CLIP carries no subject; connect the CLIP output of Apply Subject"
        )
    tokens = clip.tokenize(text)
    marks = clip.marks(tokens)
    if marks.conflicts:
        raise NestedAttentionError(f"Mark Prompt: {marks.conflicts[0]}")
    if not marks.names:
        wanted = ", ".join(subject.wanted for subject in clip.subjects)
        raise NestedAttentionError(
            f"Mark Prompt: the text carries no subject: {describe_words(marks.words)}. Expected {wanted}"
        )
    marked = []
    for context, entries in conditioning:
        if len(context) > 1 and not bool((context == context[:1]).all()):
            raise NestedAttentionError(
                f"Mark Prompt: the conditioning has {len(context)} prompts, one a picture, and the text is "
                "that of one. Where they were encoded with the CLIP of Apply Subject, each carries its own "
                "subjects without Mark Prompt: leave it out"
            )
        if context.shape[1] > marks.codes.shape[1] and not marks.rows:  # as many as a CLIP of its own makes?
            marks = replace(marks, rows=clip.encode_from_tokens(tokens).shape[1])
        codes = fit(marks.codes, -(-context.shape[1] // marks.rows_per_token))
        if int((codes > 0).sum()) != int((marks.codes > 0).sum()):
            raise NestedAttentionError(
                f"Mark Prompt: the text takes {marks.codes.shape[1]} tokens and a subject is past the "
                f"{context.shape[1]} of the conditioning; connect the conditioning that was encoded from "
                "this text"
            )
        alias = context.view(context.shape)  # another tensor object on the same data: ours to set marks on
        fitted = encoded_prompts.note(alias, replace(marks, codes=codes))
        marked.append([alias, {**entries, **fitted.in_conditioning(entries)}])
    return marked


def _dress(clip: comfy.sd.CLIP, subjects: tuple[AppliedWord, ...], required: frozenset[str]) -> SubjectCLIP:
    """`clip` itself, a fresh clone, made into a SubjectCLIP with all its attributes."""
    if not isinstance(clip, SubjectCLIP):
        clip.__class__ = _subject_class(type(clip))
    clip.subjects, clip.required = subjects, required
    return clip


_classes: dict[type, type] = {comfy.sd.CLIP: SubjectCLIP}


def _subject_class(base: type) -> type:
    """SubjectCLIP in front of another pack's CLIP, so that it stays what it is. One class each, for good."""
    if base not in _classes:
        _classes[base] = type(f"Subject{base.__name__}", (SubjectCLIP, base), {})
    return _classes[base]


def _note(
    tokens: dict[str, Any], parsed: ParsedPrompt, tokenize: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """The tokens with notes on them; their lists are rebuilt, so that nobody else's are written to."""
    seen: dict[str, dict[str, list[int]]] = {parsed.text: _ids(tokens)}  # both text models ask for the same

    def ids(tower: str, text: str) -> list[int]:
        if text not in seen:
            seen[text] = _ids(tokenize(text))
        return seen[text][tower]

    said = PromptNote(words_in(parsed.text), parsed.conflicts)
    return {
        tower: _note_tower(chunks, said, parsed.carried(partial(ids, tower))) if tower in TOWERS else chunks
        for tower, chunks in tokens.items()
    }


def _note_tower(
    chunks: Sequence[Sequence[Any]], said: PromptNote, carried: Iterator[tuple[SubjectWord, list[int]]]
) -> list[list[Any]]:
    @lru_cache(maxsize=1024)  # a long prompt says the same words again and again
    def marked(token: int, name: str, last: bool) -> NotedToken:
        return noted(token, SubjectNote(name, last))

    entries = [entry for chunk in chunks for entry in chunk]
    entries[0] = (noted(entries[0][0], said), *entries[0][1:])
    for subject, positions in carried:
        for at in positions:
            entries[at] = (marked(entries[at][0], subject.name, at == positions[-1]), *entries[at][1:])
    rest = iter(entries)
    return [list(islice(rest, len(chunk))) for chunk in chunks]


def _ids(tokens: Tokens) -> dict[str, list[int]]:
    """Ids of all chunks in a row, by text model; what is no id, an embedding's vector, counts as -1."""
    return {
        tower: [_id(entry[0]) for chunk in tokens[tower] for entry in chunk]
        for tower in TOWERS
        if tower in tokens
    }


def _id(token: Any) -> int:
    if type(token) is int:  # nearly all are, and the other way of asking takes long
        return token
    return int(token) if isinstance(token, numbers.Integral) else -1


def _notes(chunks: Sequence[Sequence[Any]], width: int | None) -> Iterator[SubjectNote | PromptNote | None]:
    """The note of each row that the text model will make of the tokens.

    It drops an embedding's vectors if they have another width, moves what follows up and pads the chunk.
    """
    for chunk in chunks:
        dropped = 0
        for entry in chunk:
            token = entry[0]
            if isinstance(token, Tensor) and width is not None and token.shape[-1] != width:
                dropped += 1
            else:
                yield getattr(token, "note", None)
        yield from (None for _ in range(dropped))


def _warn_different(towers: Mapping[str, list[SubjectNote | PromptNote | None]]) -> None:
    places = {
        tower: [(at, note.name) for at, note in enumerate(notes) if isinstance(note, SubjectNote)]
        for tower, notes in towers.items()
    }
    if len({tuple(place) for place in places.values()}) > 1:
        names = sorted({name for place in places.values() for _, name in place})
        warn_once(
            f"Nested Attention: the two text models of SDXL read different texts (text_g, text_l), and "
            f"{', '.join(map(repr, names))} does not stand at the same place in both; every place carries "
            "the subject"
        )
