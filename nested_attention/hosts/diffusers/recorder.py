"""Calls of a pipeline are recorded."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import NestedAttentionError
from ...inspection.maps import Observation
from ...inspection.recording import Recorded, Recording, Watch
from ...subject_batch import subjects_of
from .applied import AppliedSubject


class Recorder:
    """Keeps what was seen of a pipeline's last call.

    recorder = Recorder(Watch(layers="all"))
    with personalize(pipeline, subjects, recorder=recorder):
        picture = pipeline(prompt).images[0]
    maps = recorder.observation()
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._seen: Observation | None = None

    def begin(self, subjects: Sequence[AppliedSubject], pictures: int, steps: int) -> Recording:
        """An observer of one call."""
        self._seen = None
        recorded = [
            Recorded(
                s.called.name,
                s.called.name,
                s.called.word,
                subjects_of(s.subject),
                s.encoder.config.num_queries,
            )
            for s in subjects
        ]
        return Recording(self.watch, recorded, pictures=pictures, steps=steps)

    def keep(self, recording: Recording) -> None:
        """At the end of a call."""
        self._seen = recording.finish()

    def observation(self) -> Observation:
        """Raises NestedAttentionError if nothing was observed."""
        if self._seen is None or not self._seen.subjects:
            raise NestedAttentionError(
                "nothing was observed: no call of the pipeline came to its end, or no layer saw a subject "
                "in the steps that were observed"
            )
        return self._seen
