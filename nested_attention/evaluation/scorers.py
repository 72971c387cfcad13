"""Judges of a picture, and what each of them measures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import NestedAttentionError
from .metrics import (
    copy_paste_of_people,
    cosines,
    id_conf_of_people,
    identity_similarity,
    match,
    mean_descriptor,
)
from .recognisers import FaceFinder, Recogniser
from .samples import Person, Sample

FORMULAS = 3
"""Counts changes of what a score is: those of before are not taken for it."""

Better = Literal["higher", "lower"]

Scores = dict[str, float | None]
"""Measure → the picture's value; None where it does not apply."""


@dataclass(frozen=True)
class Measure:
    """What a figure is. source: whose formula it is, in a few words. rate: a share of pictures, each 0 or 1.
    better: which way."""

    key: str
    title: str
    source: str
    rate: bool = False
    better: Better = "higher"


class Scorer(Protocol):
    """A judge. independent: False for the encoder's own vision model, whose figures flatter it."""

    @property
    def key(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def independent(self) -> bool: ...
    @property
    def measures(self) -> tuple[Measure, ...]: ...
    @property
    def state(self) -> str:
        """Changes when its answers do."""
        ...

    def __call__(self, sample: Sample) -> Scores: ...


SIM_REF = Measure(
    "sim_ref", "identity, to the reference", "mean cosine of the faces matched to the people; missing: 0"
)
SIM_TRUTH = Measure(
    "sim_truth", "identity, to the truth", "the same, to pictures that the model was not shown"
)
COPY_PASTE = Measure(
    "copy_paste",
    "copy-paste",
    "MultiID-Bench: (θ(generated, truth) − θ(generated, reference)) / θ(truth, reference); 1 is a copy",
    better="lower",
)
ID_CONF = Measure("id_conf", "ID-Conf", "UMO: min(1, (s₁ − s₂) / s₁); several people only; missing: 0")
RECOGNISED = Measure(
    "recognised", "recognised", "everybody is closer than the recogniser's threshold", rate=True
)
TOP1 = Measure(
    "top1", "told from the others", "everybody's face is closest to them of all people evaluated", rate=True
)
COUNT = Measure("count", "as many faces as people", "of the packaged detector", rate=True)


@dataclass
class CountScorer:
    """Whether a picture shows as many faces as people."""

    find: FaceFinder
    key: str = "faces"
    title: str = "packaged detector (BlazeFace)"
    independent: bool = True
    measures: tuple[Measure, ...] = (COUNT,)

    state: str = "blazeface 1"

    def __call__(self, sample: Sample) -> Scores:
        people = sample.faces
        return {"count": float(len(self.find(sample.picture)) == len(people)) if people else None}


@dataclass
class IdentityScorer:
    """One recogniser's view of who is in a picture.

    people: all of the evaluation, among whom each is to be told from the others.
    """

    recogniser: Recogniser
    people: tuple[Person, ...]
    measures: tuple[Measure, ...] = (SIM_REF, SIM_TRUTH, COPY_PASTE, ID_CONF, RECOGNISED, TOP1)
    _seen: dict[Path, Tensor] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.recogniser.key

    @property
    def title(self) -> str:
        return self.recogniser.title

    @property
    def independent(self) -> bool:
        return self.recogniser.independent

    @cached_property
    def state(self) -> str:
        """Of the recogniser, of how its faces are matched, and of all references, among which a face is told
        from the others."""
        digest = hashlib.sha256(f"{self.recogniser.state} {FORMULAS}".encode())
        for person in self.people:
            digest.update(person.name.encode() + b"\0")
            for path in person.references:
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def __call__(self, sample: Sample) -> Scores:
        people = sample.faces
        if not people:
            return dict.fromkeys((measure.key for measure in self.measures), None)
        known = [self._known(person.name, person.references) for person in people]
        references = torch.stack([mean_descriptor(descriptors) for descriptors in known])
        faces = self._faces(sample.picture)
        if not len(faces):
            faces = references[:0]  # of the right width
        truths = self._truths(sample, references)
        own = match(cosines(faces, references))
        return {
            "sim_ref": identity_similarity(faces, references),
            "sim_truth": None if truths is None else identity_similarity(faces, truths),
            "copy_paste": None if truths is None else copy_paste_of_people(faces, truths, references),
            "id_conf": id_conf_of_people(faces, references) if len(people) > 1 else None,
            "recognised": self._recognised(faces, known, own),
            "top1": self._told_apart(faces, people, own),
        }

    def _faces(self, path: Path) -> Tensor:
        if path not in self._seen:
            self._seen[path] = self.recogniser(path)
        return self._seen[path]

    def _known(self, name: str, paths: Iterable[Path]) -> Tensor:
        """The largest face of each picture of somebody, (pictures, width)."""
        return torch.stack([self._shown(name, path)[0] for path in paths])

    def _shown(self, name: str, path: Path) -> Tensor:
        """The faces of a picture that has to show some, (faces, width)."""
        faces = self._faces(path)
        if not len(faces):
            raise NestedAttentionError(f"{path}, a picture of {name}, shows no face that was found")
        return faces

    def _truths(self, sample: Sample, references: Tensor) -> Tensor | None:
        """Everybody's descriptor in the truth, (people, width): bystanders are nobody's."""
        if sample.truth is not None:
            faces = self._shown(sample.name, sample.truth)
            matched = [face for face in match(cosines(faces, references)) if face is not None]
            if len(matched) < len(references):
                raise NestedAttentionError(
                    f"{sample.truth}, the truth of {sample.name}, shows {len(matched)} of {len(references)} "
                    "people; expected all of them"
                )
            return faces[matched]
        if not all(person.truths for person in sample.faces):
            return None
        return torch.stack([mean_descriptor(self._known(p.name, p.truths)) for p in sample.faces])

    def _recognised(self, faces: Tensor, known: list[Tensor], own: list[int | None]) -> float | None:
        if not self.recogniser.decides:
            return None
        return float(
            all(
                face is not None and self.recogniser.same(references, faces[face])
                for references, face in zip(known, own, strict=True)
            )
        )

    def _told_apart(self, faces: Tensor, people: tuple[Person, ...], own: list[int | None]) -> float | None:
        if len(self.people) < 2:
            return None
        names = [person.name for person in self.people]
        everybody = torch.stack([mean_descriptor(self._known(p.name, p.references)) for p in self.people])
        for person, face in zip(people, own, strict=True):
            if face is None:
                return 0.0
            similarity = cosines(faces[face][None], everybody)[0]
            mine = names.index(person.name)
            others = torch.cat([similarity[:mine], similarity[mine + 1 :]])
            if float(similarity[mine]) <= float(others.max()):
                return 0.0
        return 1.0


def everybody(samples: Iterable[Sample]) -> tuple[Person, ...]:
    """All people of an evaluation who have faces, each once, in order."""
    found: dict[str, Person] = {person.name: person for sample in samples for person in sample.faces}
    return tuple(found.values())


def state_of_judge(scorer: Scorer) -> str:
    """Changes when the judge does, whomever it judges."""
    alone = f"{scorer.recogniser.state} {FORMULAS}" if isinstance(scorer, IdentityScorer) else scorer.state
    return hashlib.sha256(alone.encode()).hexdigest()[:32]


def check_keys(scorers: Iterable[Scorer]) -> None:
    """Raises NestedAttentionError if two scorers have one name in files."""
    seen: set[str] = set()
    for scorer in scorers:
        if scorer.key in seen:
            raise NestedAttentionError(
                f"two scorers are called {scorer.key!r}; rename one of the files, so that figures tell them "
                "apart"
            )
        seen.add(scorer.key)
