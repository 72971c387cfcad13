"""Nested values against one global value a subject (the paper's "Global V"), under equal training.

Both encoders begin with the same random weights and see the same pictures, noise and number of steps. The
paper finds that a value which does not depend on the query carries fewer details (Appendix B). Where that
does not hold, identities are too coarse to need nested attention.

Compared are the error of the prediction on held-out subjects, in pairs of the same picture, noise and
timestep, and who is recognised in what is drawn from noise alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...evaluation.statistics import paired
from ...hosts.diffusers import SubjectSlot
from ...paths import SMALL_WORLD
from ...training.mechanisms import mechanism
from ...training.objective import denoising_losses
from ...training.schedule import Schedule
from ..drawing.picture import render
from ..models.model import new_scheduler
from ..models.world import PARTS, Attached, Sampling, World
from ..train.data import by_cell, draw_pictures, loss_weight_of
from ..train.denoising import TextStates, normalised, predictor
from ..train.encoders import encode_data, train_encoder
from . import records
from .cases import Case, draw_cases, true_drawings
from .judges import Counts, Judges, attach, score_identity, score_prompt

RESULTS = SMALL_WORLD / "alternatives.json"
"""Where the committed comparison is."""

ALTERNATIVES = ("nested", "global")

SUBJECTS = 300
"""Held-out subjects, and as many candidates: a hundred cannot tell 71 % from 69 %."""

TIMESTEPS = (100, 300, 500, 700, 900)
"""Where the prediction's error is measured."""


def compare(
    judges: Judges,
    runs: Path,
    *,
    word: str = "person",
    steps: int = 1000,
    pictures: int = 8_000,
    counts: Counts | None = None,
    workers: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train one short encoder of each kind, and score both on the same held-out subjects.

    An interrupted training goes on from its checkpoint in `runs`.
    """
    started, counts = time.monotonic(), counts or Counts(subjects=SUBJECTS, candidates=SUBJECTS)
    drawn = draw_pictures(word, pictures, 9, workers=workers, cache=runs / "data")
    data = encode_data(judges.world, drawn, word)
    cases = draw_cases((word,), counts.subjects, seed=5000)
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    result: dict[str, Any] = {}
    errors: dict[str, Tensor] = {}
    for name in ALTERNATIVES:
        chosen = mechanism(name)
        run = runs / f"{word}-{name}"
        encoder = train_encoder(run, judges.world, data, Schedule(steps), mechanism=chosen)
        encoder.requires_grad_(False)
        mine = replace(judges, encoders={word: encoder})
        attached = replace(attach(mine, cases, word), mechanism=chosen)
        errors[name] = prediction_errors(judges.world, cases, attached)
        rgb = judges.world.generate(prompts, seeds, [attached], Sampling())
        result[name] = {
            "identity": score_identity(mine, rgb, cases, word, counts),
            "prompt": score_prompt(mine, rgb, cases),
            "error": round(float(errors[name].mean()), 5),
            "losses": losses(run),
        }
        identity, prompt = result[name]["identity"]["top1"]["rate"], result[name]["prompt"]["all"]["rate"]
        say(f"{word:6} {name:8} identity {identity:.2f}  prompt {prompt:.3f}")
    result["error_saved"] = paired(errors["global"] - errors["nested"])
    result["run"] = {
        "word": word,
        "steps": steps,
        **records.circumstances(started),
    }
    return result


@torch.no_grad()
def prediction_errors(
    world: World, cases: list[Case], attached: Attached, *, seed: int = 0, batch: int = 32
) -> Tensor:
    """The training loss on each case's true drawing, averaged over TIMESTEPS. → (n,)

    Noise depends on `seed` and the case's place alone, so that encoders are compared in pairs.
    """
    pictures = [render(case.picture) for case in cases]
    loss_weight = normalised(np.stack([by_cell(loss_weight_of(drawn.part)) for drawn in pictures]))
    latents, scheduler = world.encode(true_drawings(cases)), new_scheduler()
    noise = torch.randn(len(TIMESTEPS), *latents.shape, generator=torch.Generator().manual_seed(seed))
    errors = torch.zeros(len(cases))
    slot = SubjectSlot.install(world.unet)
    try:
        for start in range(0, len(cases), batch):
            rows = slice(start, start + batch)
            context, pooled, ids = world.text([case.prompt for case in cases[rows]])
            predict = predictor(world.unet, TextStates(context, pooled), torch.float32)
            with slot.bind(attached.rows(rows).bind(ids, world.unet)):
                for index, timestep in enumerate(TIMESTEPS):
                    t = torch.full((len(context),), timestep)
                    step = latents[rows], noise[index, rows], t, loss_weight[rows]
                    errors[rows] += denoising_losses(predict, scheduler, *step)["denoise"] / len(TIMESTEPS)
    finally:
        slot.remove()
    return errors


def losses(folder: Path) -> list[float]:
    """The training loss of each 50 steps: on the same pictures and noise in both, so in pairs."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return list({line["step"]: line["loss"] for line in lines}.values())  # resumed steps stand there twice


def world_hashes(folder: Path = SMALL_WORLD) -> dict[str, str]:
    """A hash of each file of the world and the judges; the shipped encoders play no part here."""
    names = {f"{part}.safetensors" for part in PARTS}
    return {k: v for k, v in records.hashes(folder).items() if k in names or k.startswith("scorer_")}


def write(document: dict[str, Any], path: Path = RESULTS) -> None:
    """Write the comparison with the hashes of the world it was made in, in one piece."""
    records.write(document, path, world_hashes(path.parent))
