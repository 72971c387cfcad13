"""A different subject in each picture of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import NestedAttentionError
from .subject import Fingerprinted, Subject


@dataclass(frozen=True, eq=False)
class SubjectBatch:
    """Subjects for the pictures of a batch, in order; a longer batch begins again with the first.

    Goes where a Subject goes. Raises NestedAttentionError if they are not of one encoder.
    """

    subjects: tuple[Subject, ...]

    def __post_init__(self) -> None:
        if not self.subjects:
            raise NestedAttentionError("a batch of subjects is empty; expected at least one subject")
        if len({subject.fingerprint for subject in self.subjects}) > 1:
            raise NestedAttentionError(
                "the subjects of a batch come from different encoders, whose tokens mean different things; "
                "encode all pictures with the same encoder"
            )

    @property
    def word(self) -> str:
        return self.subjects[0].word

    @property
    def fingerprint(self) -> str:
        return self.subjects[0].fingerprint

    @property
    def images(self) -> int:
        return sum(subject.images for subject in self.subjects)

    def check_encoder(self, encoder: Fingerprinted) -> None:
        """Raises NestedAttentionError unless `encoder` is the one the subjects were made with."""
        for subject in self.subjects:
            subject.check_encoder(encoder)

    def mix(self, other: Subject | SubjectBatch, weight: float) -> SubjectBatch:
        """`Subject.mix`, picture by picture; the longer side decides how many there are."""
        pairs = range(max(len(self.subjects), len(subjects_of(other))))
        return SubjectBatch(tuple(self.at(i).mix(subject_at(other, i), weight) for i in pairs))

    def at(self, row: int) -> Subject:
        """The subject of a picture of the batch."""
        return self.subjects[row % len(self.subjects)]

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Raises NestedAttentionError: a file holds one subject."""
        raise NestedAttentionError(
            f"{len(self.subjects)} subjects cannot be saved as one ({path}); encode one picture at a time, "
            "or all pictures as one subject, and save that"
        )


def subjects_of(subject: Subject | SubjectBatch) -> Sequence[Subject]:
    """The subjects of a batch, or the one subject."""
    return subject.subjects if isinstance(subject, SubjectBatch) else (subject,)


def padded_tokens(subjects: Sequence[Subject]) -> Tensor:
    """(subjects, N, token_dim) where the first subject is, shorter ones filled up with zeros, which
    `padded_bias` switches off."""
    length = max(len(one.tokens) for one in subjects)
    tokens = (one.tokens.to(subjects[0].tokens.device) for one in subjects)
    return torch.stack([pad(x, (0, 0, 0, length - len(x))) for x in tokens])


def padded_bias(subjects: Sequence[Subject]) -> Tensor:
    """(subjects, N), shorter subjects filled up with tokens that are not attended."""
    return pad_biases([one.token_bias for one in subjects])


def pad_biases(biases: Sequence[Tensor]) -> Tensor:
    """(N₁,), (N₂,), … → (number, the largest N) where the first is, filled up with tokens that are not
    attended."""
    length = max(len(bias) for bias in biases)
    together = (bias.to(biases[0].device) for bias in biases)
    return torch.stack([pad(bias, (0, length - len(bias)), value=-torch.inf) for bias in together])


def subject_at(subject: Subject | SubjectBatch, row: int) -> Subject:
    """The subject of a picture of a batch."""
    return subject.at(row) if isinstance(subject, SubjectBatch) else subject
