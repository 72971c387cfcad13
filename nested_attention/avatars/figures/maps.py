"""Whether the maps of `inspection/` show what they say, where the truth is known.

Held-out people and pets are drawn at λ = 1, and each is looked for in its picture, where its drawing fits
best (`pose_and_style.find_pose`).

place: the cells whose map is above a part of its maximum, against the cells that the drawing covers. The part
is chosen on training identities, one for each map.
parts: cells that show eyes, hair or mouth. Counted is how often the strongest patch of what the place's
tokens looked at holds some of the same part of the reference, as it is and in comparison with the mean of the
picture's places. chance: the share of patches that do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...encoder import SubjectEncoder
from ...evaluation.statistics import rate
from ...hosts.diffusers import AppliedSubject, Recorder, encode_subject, personalize
from ...inspection.maps import CHANGE, WORD, Observation, Selection, SubjectMaps
from ...inspection.recording import Watch
from ...paths import SMALL_WORLD
from ...subject_batch import SubjectBatch
from ..drawing.canvas import SIZE, WIDE, Part
from ..drawing.identity import KINDS, Half, Split, sample
from ..drawing.picture import CROP, Figure, Picture, crop, crop_window, enlarge, render
from ..drawing.prompts import prompt, sample_picture
from ..drawing.references import held_out, reference_picture
from ..models.pipeline import world_pipeline
from ..models.world import Sampling, World
from .judges import Judges
from .pose_and_style import find_pose
from .records import circumstances

RESULTS = SMALL_WORLD / "maps.json"
"""Where the committed figures are."""

CELLS = 16
"""A side of the finest grid, and the only one that figures are of: the next has eight."""

PARTS = {"eyes": Part.EYES, "hair": Part.HAIR, "mouth": Part.MOUTH}
ENOUGH = {"eyes": 0.25, "hair": 0.75, "mouth": 0.25}
"""The share of a cell that shows a part: one art pixel of four for the small ones."""

BATCH = 16


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture that was drawn of one subject. covered, part: where it stands in the true drawing, and what
    each art pixel of that shows, (32, 32). reference: what each art pixel of the reference shows, (28, 28).
    """

    maps: SubjectMaps
    spans: tuple[tuple[int, int], ...]
    covered: np.ndarray
    part: np.ndarray
    reference: np.ndarray


def measure(
    judges: Judges, number: int, training: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """number: of held-out subjects of each kind. training: of identities on which thresholds are chosen."""
    started = time.monotonic()
    result: dict[str, Any] = {"subjects": number, "training": training, "grid": [CELLS, CELLS]}
    for word, encoder in judges.encoders.items():
        seen = draw(judges.world, encoder, word, "train", training, seed=71)
        held = draw(judges.world, encoder, word, "heldout", number, seed=72)
        result[word] = {"place": places(seen, held), "parts": parts(held), "share": shares(held)}
        for name, one in result[word]["place"].items():
            say(f"{word:6} {name:6} IoU {one['iou']:.2f}, at least 0.5 in {one['half']['rate']:.0%}")
        for name, one in result[word]["parts"].items():
            told = "  ".join(f"{key} {one[key]:.0%}" for key in ("same", "compared", "chance"))
            say(f"{word:6} {name:6} {told}")
    result["time"] = time_taken(judges.world, judges.encoders)
    told = "  ".join(f"{name} {ratio:.2f}" for name, ratio in result["time"].items())
    say(f"time of a sampling, times that without an observer: {told}")
    result["run"] = circumstances(started)
    return result


def time_taken(world: World, encoders: Mapping[str, SubjectEncoder], repeats: int = 5) -> dict[str, float]:
    """CPU time of a sampling with a person and a pet that is observed, as a multiple of one that is not: the
    medians of interleaved repetitions."""
    pipeline, subjects = world_pipeline(world), []
    pipeline.set_progress_bar_config(disable=True)
    for word, encoder in encoders.items():
        drawn = torch.from_numpy(reference_picture(held_out(word, 0))).float()[None] / 255
        subjects.append(AppliedSubject(encode_subject(encoder, world.vision, drawn), encoder))
    watches: dict[str, Watch | None] = {"off": None, "decoder": Watch(), "all": Watch(layers="all")}
    times: dict[str, list[float]] = {name: [] for name in watches}
    for _ in range(repeats):
        for name, watch in watches.items():
            recorder = None if watch is None else Recorder(watch)
            with personalize(pipeline, subjects, recorder=recorder):
                started = time.process_time()
                pipeline(
                    "a person and a pet", num_inference_steps=Sampling().steps, height=SIZE, width=WIDE,
                    guidance_scale=Sampling().guidance, generator=torch.Generator().manual_seed(0),
                )  # fmt: skip
                times[name].append(time.process_time() - started)
    median = {name: float(np.median(values)) for name, values in times.items()}
    return {name: round(value / median["off"], 3) for name, value in median.items() if name != "off"}


def draw(
    world: World, encoder: SubjectEncoder, word: str, split: Split, number: int, seed: int
) -> list[Drawn]:
    """`number` pictures of one subject each, at the nodes' defaults."""
    rng, pipeline = np.random.default_rng(seed), world_pipeline(world)
    pipeline.set_progress_bar_config(disable=True)
    found: list[Drawn] = []
    while len(found) < number:
        cases = [_case(rng, word, split) for _ in range(min(BATCH, number - len(found)))]
        subjects = SubjectBatch(
            tuple(
                encode_subject(encoder, world.vision, torch.from_numpy(enlarge(rgb)).float()[None] / 255)
                for _, _, rgb, _, _ in cases
            )
        )
        recorder = Recorder(Watch(layers="all", megabytes=1000))
        with personalize(pipeline, [AppliedSubject(subjects, encoder)], recorder=recorder):
            pictures = pipeline(
                [text for _, text, _, _, _ in cases],
                generator=[torch.Generator().manual_seed(own) for *_, own in cases],
                num_inference_steps=Sampling().steps, guidance_scale=Sampling().guidance,
                height=SIZE, width=SIZE, output_type="np",
            ).images  # fmt: skip
        seen = recorder.observation()
        found += [
            _drawn(seen, maps, np.rint(rgb * 255).astype(np.uint8), case[0], case[3])
            for maps, rgb, case in zip(seen.subjects, pictures, cases, strict=True)
        ]
    return found


def _case(
    rng: np.random.Generator, word: str, split: Split
) -> tuple[Picture, str, np.ndarray, np.ndarray, int]:
    """The drawing a perfect model would match, its prompt, the reference's colours and parts, a seed."""
    # The sealed half of the held-out identities is for the final figures alone.
    who: Half | Split = "train" if split == "train" else "development"
    identity = sample(KINDS[word], rng, who)  # type: ignore[type-var]
    picture = sample_picture(rng, (identity,), split=split)
    other = sample_picture(rng, (identity,), split=None)
    x, y = crop_window(other.figures[0].pose)
    corner = x + int(rng.integers(-1, 2)), y + int(rng.integers(-1, 2))
    drawn = render(other)
    part = np.where(drawn.subject == 1, drawn.part, Part.BACKGROUND)
    labels = crop(np.repeat(part[..., None], 3, axis=-1), corner)[..., 0]
    return picture, prompt(picture, rng), crop(drawn.rgb, corner), labels, int(rng.integers(2**31))


def _drawn(
    seen: Observation, maps: SubjectMaps, rgb: np.ndarray, picture: Picture, reference: np.ndarray
) -> Drawn:
    figure: Figure = picture.figures[0]
    x, y = find_pose(rgb, figure, picture.style)
    there = replace(picture, figures=(replace(figure, pose=replace(figure.pose, x=x, y=y)),))
    true = render(there)
    return Drawn(maps, seen.spans, true.subject == 1, true.part, reference)


def places(training: list[Drawn], held: list[Drawn]) -> dict[str, Any]:
    """For the word and for the change: the threshold, mean IoU, and how many reach 0.5."""
    result = {}
    for name, channel in (("word", WORD), ("change", CHANGE)):
        seen = [_relative(one, channel) for one in training]
        levels = torch.linspace(0.2, 0.95, 76).tolist()
        threshold = max(levels, key=lambda level: float(_overlaps(seen, training, level).mean()))
        overlaps = _overlaps([_relative(one, channel) for one in held], held, threshold)
        result[name] = {
            "threshold": round(threshold, 3),
            "iou": round(float(overlaps.mean()), 4),
            "lowest": round(float(overlaps.min()), 4),
            "half": rate(overlaps >= 0.5),
        }
    return result


def _relative(one: Drawn, channel: slice) -> Tensor:
    """The map of the finest layers, as parts of its maximum. (16, 16)"""
    found = one.maps.mean(channel, Selection(layers=f"{CELLS}x{CELLS}"), one.spans)[0]
    return found / found.max()


def _overlaps(maps: list[Tensor], drawn: list[Drawn], level: float) -> Tensor:
    """Intersection over union of each picture."""
    found = []
    for values, one in zip(maps, drawn, strict=True):
        here, true = values >= level, torch.from_numpy(_cells(one.covered) >= 0.5)
        found.append(float((here & true).sum()) / max(1, int((here | true).sum())))
    return torch.tensor(found)


def _cells(mask: np.ndarray) -> np.ndarray:
    """(32, 32) bool → the share of each cell, (16, 16)"""
    step = SIZE // CELLS
    return mask.reshape(CELLS, step, CELLS, step).mean(axis=(1, 3))


def parts(held: list[Drawn]) -> dict[str, Any]:
    """For eyes, hair and mouth: how often the tokens of a place come from the same part of the reference."""
    result = {}
    for name, part in PARTS.items():
        same, compared, chance = [], [], []
        for one in held:
            holds = torch.from_numpy(_patches(one.reference == part, _side(one.maps)) > 0)
            cells = np.argwhere(_cells(one.part == part) >= ENOUGH[name])
            if not holds.any() or not len(cells):
                continue
            heat = _heat(one.maps)  # (16, 16, patches)
            mean = heat.mean(dim=(0, 1))
            for row, column in cells:
                same.append(bool(holds.flatten()[heat[row, column].argmax()]))
                compared.append(bool(holds.flatten()[(heat[row, column] / mean).argmax()]))
                chance.append(float(holds.float().mean()))
        result[name] = {
            "places": len(same),
            **{
                key: round(float(np.mean(values)), 4) if values else 0.0
                for key, values in (("same", same), ("compared", compared), ("chance", chance))
            },
        }
    return result


def _side(maps: SubjectMaps) -> int:
    (reference,) = maps.references
    assert reference is not None and reference.looks is not None
    return int(reference.looks().shape[1])


def _heat(maps: SubjectMaps) -> Tensor:
    """Where the tokens of each place looked: (16, 16, patches)"""
    (reference,) = maps.references
    assert reference is not None and reference.looks is not None
    looks = reference.looks().flatten(1)  # (queries, patches)
    share = torch.zeros(len(looks), *maps.weights.shape[1:])
    share.scatter_(0, maps.indices.long(), maps.weights)
    return torch.einsum("nhw,np->hwp", share, looks)


def _patches(mask: np.ndarray, side: int) -> np.ndarray:
    """(28, 28) bool → the share of each of the vision model's patches, (side, side)"""
    fine = np.kron(mask, np.ones((side, side)))
    return fine.reshape(side, CROP, side, CROP).mean(axis=(1, 3))


def shares(held: list[Drawn]) -> Mapping[str, float]:
    """The mean share of the strongest token, and of the two strongest, where the subject stands."""
    first, second = [], []
    for one in held:
        there = torch.from_numpy(_cells(one.covered) >= 0.5)
        first.append(float(one.maps.weights[0][there].mean()))
        second.append(float(one.maps.weights[:2].sum(dim=0)[there].mean()))
    return {"strongest": round(float(np.mean(first)), 4), "two": round(float(np.mean(second)), 4)}
