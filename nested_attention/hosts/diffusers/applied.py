"""A subject as `personalize` takes it."""

from __future__ import annotations

from dataclasses import dataclass

from ...encoder import SubjectEncoder
from ...errors import NestedAttentionError
from ...settings import SubjectSettings
from ...subject import Subject
from ...subject_batch import SubjectBatch


@dataclass(frozen=True, eq=False)
class AppliedSubject(SubjectSettings):
    """A subject, its encoder, and how it counts: `AppliedSubject(alice, encoder, name="alice")`.

    subject: a SubjectBatch gives each picture its own, in order, from the first again where there are more.

    Raises NestedAttentionError for a value out of range, a subject of another encoder, and blocks that the
    encoder's UNet does not have.
    """

    subject: Subject | SubjectBatch
    encoder: SubjectEncoder

    def __post_init__(self) -> None:
        self.subject.check_encoder(self.encoder)
        config = self.encoder.config
        try:
            left = ("word", "alpha", "norm", "injection")
            trained = SubjectSettings(**{field: getattr(self, field) for field in left}).trained_as(config)
            for field in left:
                object.__setattr__(self, field, getattr(trained, field))
            super().__post_init__()
            self.factors(site.name for site in config.sites)
        except NestedAttentionError as error:
            raise NestedAttentionError(
                f"subject {self.name or self.word or config.word!r}: {error}"
            ) from error
