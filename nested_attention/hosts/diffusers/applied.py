"""A subject as `personalize` takes it."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...blocks import parse_blocks
from ...encoder import SubjectEncoder
from ...errors import NestedAttentionError
from ...placeholders import SubjectWord
from ...prompt import check_word
from ...subject import Subject
from ...subject_batch import SubjectBatch, subjects_of


@dataclass(frozen=True, eq=False)
class AppliedSubject:
    """A subject, what carries it in a prompt, and how strongly. Defaults: as its encoder was trained, λ = 1.

    subject: a SubjectBatch gives each picture its own, in order, from the first again where there are more.
    word: the word that carries it, bare or in place of `<name>`; the encoder's if left out.
    name: what `<name>` calls it in a prompt; the word if left out.
    attention_scale: λ > 0. alpha: |v*| as a multiple of |V[s*]|, None for no regularisation.
    strength: in [0, 1]; 0 leaves the pipeline as it is, bit for bit.
    start, end: the part of the schedule in which the subject counts, 0 ≤ start ≤ end ≤ 1.
    region: (h, w) or (pictures, h, w) in [0, 1] at any resolution, where in the picture the subject counts.
    bounded: whether the word itself is not attended outside the region.
    auto_region: whether, without a region, it is found in the word's attention in the first steps.
    bound_self_attention: whether self-attention is kept apart between this region and those of other
    subjects. blocks: factors on the strength by block of the UNet, `blocks.parse_blocks`.

    Raises NestedAttentionError for a value out of range and for a subject of another encoder.
    """

    subject: Subject | SubjectBatch
    encoder: SubjectEncoder
    _: KW_ONLY
    word: str | None = None
    name: str | None = None
    attention_scale: float = 1.0
    alpha: float | None | Literal["trained"] = "trained"
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    region: Tensor | None = None
    bounded: bool = False
    auto_region: bool = False
    bound_self_attention: bool = False
    blocks: str = "all"

    def __post_init__(self) -> None:
        self.subject.check_encoder(self.encoder)
        check_word(self.called.word, f"the word of subject {self.called.name!r}")
        check_word(self.called.name, "the name of a subject")
        alpha = self.trained_alpha
        wrong: list[str] = []
        if not 0 < self.attention_scale < math.inf:
            wrong.append(f"attention_scale (λ) is {self.attention_scale}; expected above 0, 1 for no change")
        if alpha is not None and not 0 < alpha < math.inf:
            wrong.append(f"alpha is {alpha}; expected above 0, or None for no regularisation")
        if not 0 <= self.strength <= 1:
            wrong.append(f"strength is {self.strength}; expected 0 to 1")
        if not 0 <= self.start <= self.end <= 1:
            wrong.append(f"start is {self.start} and end is {self.end}; expected 0 ≤ start ≤ end ≤ 1")
        if self.region is not None and (self.region.ndim not in (2, 3) or not _is_share(self.region)):
            wrong.append(
                f"region has shape {tuple(self.region.shape)}; expected (h, w) or (pictures, h, w) with "
                "values from 0 to 1"
            )
        try:
            parse_blocks(self.blocks, [site.name for site in self.encoder.config.sites])
        except NestedAttentionError as error:
            wrong.append(str(error))
        if wrong:
            raise NestedAttentionError(f"subject {self.called.name!r}: " + "; ".join(wrong))

    @property
    def called(self) -> SubjectWord:
        word = " ".join((self.subject.word if self.word is None else self.word).split())
        return SubjectWord(word if self.name is None else " ".join(self.name.split()), word)

    @property
    def trained_alpha(self) -> float | None:
        return self.encoder.config.alpha if self.alpha == "trained" else self.alpha

    def counts_at(self, timestep: float, last: int) -> bool:
        """Whether the subject counts at a timestep of a schedule that runs from `last` to 0."""
        return (self.start <= 0 or timestep <= (1 - self.start) * last) and (
            self.end >= 1 or timestep >= (1 - self.end) * last
        )


def token_bias(subject: Subject | SubjectBatch) -> Tensor:
    """(N,), or (subjects, N) with shorter subjects filled up by tokens that are not attended."""
    everyone = subjects_of(subject)
    if len(everyone) == 1:
        return everyone[0].token_bias
    length = max(len(one.token_bias) for one in everyone)
    return torch.stack(
        [pad(one.token_bias, (0, length - len(one.token_bias)), value=-math.inf) for one in everyone]
    )


def _is_share(x: Tensor) -> bool:
    return bool(((x >= 0) & (x <= 1)).all())
