"""What an evaluation asks for, made ready: its pictures, how the missing ones are drawn, and its judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import NestedAttentionError
from ..hosts.diffusers.vision import load_vision
from .drawing import Drawer, Drawing, SdxlDrawer, plan, told_of
from .folders import read_folder
from .judges import load_judges
from .recognisers import FaceFinder
from .run import Output, Track, conclude, draw, score, silently
from .samples import Sample
from .scorers import Scorer, check_keys
from .settings import DrawSettings, ScorerSettings


@dataclass(frozen=True)
class Task:
    """told: what decides how the pictures look, for the record. left_out: pictures that cannot be judged, and
    why. drawer: draws `drawings`; None where all pictures are there."""

    samples: Sequence[Sample]
    scorers: Sequence[Scorer]
    told: dict[str, Any]
    drawings: Sequence[Drawing] = ()
    drawer: Drawer | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def folder_task(folder: Path, scorers: ScorerSettings) -> Task:
    """The pictures in a folder. A picture of whose people a reference or the truth shows no face is left out:
    no recogniser could judge it, whatever the model did."""
    find = FaceFinder()
    samples = read_folder(folder)
    left_out = faceless(samples, find) if scorers.of_faces else {}
    kept = [sample for sample in samples if sample.name not in left_out]
    if not kept:
        raise NestedAttentionError(next(iter(left_out.values())))
    return Task(kept, load_judges(scorers, kept, find), {"images": str(folder)}, left_out=left_out)


def sdxl_task(settings: DrawSettings, scorers: ScorerSettings, output: Output) -> Task:
    """Pictures that diffusers draws. Raises NestedAttentionError, before anything is drawn, for a reference
    or a true picture without a face."""
    find, model = FaceFinder(), settings.model
    vision = load_vision(model.vision or model.base, None if model.vision else "image_encoder")
    drawer = SdxlDrawer(settings, vision, find)
    drawings = plan(settings, output.pictures, drawer.words())
    samples = [drawing.sample for drawing in drawings]
    problems = faceless(samples, find) if scorers.of_faces else {}
    if problems:
        raise NestedAttentionError(next(iter(problems.values())))
    judges = load_judges(scorers, samples, find, vision)
    return Task(samples, judges, told_of(settings), drawings, drawer)


def carry_out(
    task: Task, output: Output, title: str, against: Path | None = None, track: Track[Any] = silently
) -> None:
    """Draw what is missing, score what is new, and write figures.json and report.html."""
    check_keys(task.scorers)  # before hours of drawing
    output.folder.mkdir(parents=True, exist_ok=True)
    if task.drawer is not None:
        draw(task.drawings, task.drawer, task.told, output, track)
    scores = score(task.samples, task.scorers, output, track)
    conclude(task.samples, task.scorers, scores, output, title, against, task.told, task.left_out)


def faceless(samples: Sequence[Sample], find: FaceFinder) -> dict[str, str]:
    """Sample → which of its references or true pictures shows no face, or fewer than its people."""
    found: dict[str, str] = {}
    for sample in samples:
        needed = {
            path: (person.name, 1) for person in sample.faces for path in (*person.references, *person.truths)
        }
        if sample.truth is not None and sample.faces:
            needed[sample.truth] = sample.name, len(sample.faces)
        for path, (name, people) in needed.items():
            if (faces := len(find(path))) < people:
                shown = f"shows {faces} of {people} faces" if faces else "shows no face that was found"
                found[sample.name] = (
                    f"{path}, a picture of {name}, {shown}; expected {'one' if people == 1 else 'each'} with "
                    "both eyes and the mouth. Take another photograph, crop this one closer, or say "
                    "`face: false` of a pet, among the subjects or in the folder's meta.json"
                )
                break
    return found
