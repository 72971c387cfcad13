"""Samplings of a MODEL are recorded: what the nodes Observe Subjects and View Subject Maps pass on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ....errors import NestedAttentionError
from ....inspection.maps import Observation
from ....inspection.recording import Recorded, Recording, Watch
from ..identity import identities, leading, running_identity
from ..notices import running_graph, running_node
from .applied import AppliedSubject
from .copies import Shared

OBSERVED = "nested_attention_recorders"
"""In the transformer options: recorders of the samplings to come."""

KEPT = 4
"""Samplings that are kept."""


class Recorder(Shared):
    """Keeps what was seen of the last sampling of each sampler node. One with another seed is another node.

    on_step: is called with the recording when a step has been seen. An interrupted sampling is dropped.
    watch: None for a recorder that is switched off.
    """

    def __init__(self, watch: Watch | None, on_step: Callable[[Recording], None] | None = None) -> None:
        self.watch = watch
        self._on_step = on_step
        self._seen: OrderedDict[str, Observation] = OrderedDict()  # by the identity of the node

    @staticmethod
    def of(transformer_options: Mapping[str, Any]) -> tuple[Recorder, ...]:
        return tuple(transformer_options.get(OBSERVED, ()))

    def begin(self, subjects: Sequence[AppliedSubject], pictures: int, steps: int) -> Recording:
        """An observer of one sampling."""
        recorded = [
            Recorded(s.key, s.settings.called.name, s.settings.called.word, s.subjects, s.queries)
            for s in subjects
            if s.strength > 0
        ]
        assert self.watch is not None, "it is switched off"
        self._seen.pop(running_identity(), None)
        return Recording(self.watch, recorded, pictures=pictures, steps=steps, on_step=self._on_step)

    def keep(self, recording: Recording) -> None:
        """At the end of a sampling. Earlier ones go first where no node of the running graph drew them."""
        self._seen[running_identity()] = recording.finish()
        here = set(identities(running_graph() or {}).values())
        for one in [one for one in self._seen if one in here]:
            self._seen.move_to_end(one)
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)

    def observation(self) -> Observation:
        """What was seen by the sampler that leads to the running node; outside of a graph, by the last one.

        Raises NestedAttentionError if nothing was, with the reasons there can be.
        """
        if self.watch is None:
            raise NestedAttentionError(
                "Observe Subjects is switched off, so there are no maps. Switch its observe on, or bypass "
                "both nodes"
            )
        found = next((self._seen[one] for one in leading() if one in self._seen), None)
        if found is None and not running_node() and self._seen:
            found = next(reversed(self._seen.values()))
        if found is None or not found.subjects:
            seen = "no sampler that leads to this picture used a MODEL that is observed and carries a subject"
            if found is not None:
                seen = "no layer saw a subject in the steps that were observed"
            raise NestedAttentionError(
                f"nothing was observed: {seen}. Connect Apply Subject's MODEL to Observe Subjects, its MODEL "
                "to the sampler and the sampler's picture to this node, and check that a prompt carries the "
                "subject between start_percent and end_percent. Where all of that is so, ComfyUI has "
                "kept the picture for longer than its maps are kept: change the sampler's seed, so that it "
                "runs again"
            )
        return found


def observe(model: Any, recorder: Recorder) -> Any:
    """MODEL → a clone whose samplings the recorder sees. Nothing else about it changes."""
    model = model.clone()
    options = dict(model.model_options.get("transformer_options", {}))
    options[OBSERVED] = (*Recorder.of(options), recorder)
    model.model_options = {**model.model_options, "transformer_options": options}
    return model
