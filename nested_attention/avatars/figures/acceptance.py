"""The figures of the small world: identity, prompt, several subjects, and the control over both (λ).

Every picture counts. Beside each figure stand its floor (the base model, no subject), its ceiling (the true
drawing through the autoencoder), and the base model with the identity described in words.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...attention import BoundSubject
from ...evaluation.statistics import rate
from ...paths import SMALL_WORLD
from ..drawing.picture import render
from ..models.model import TIME_IDS, new_scheduler
from ..models.tokenizer import load_tokenizer
from ..models.watched import watch
from ..models.world import Attached, Sampling
from .cases import Case, draw_cases, true_drawings
from .judges import SUBJECTS, Counts, Judges, attach, identity_hits, score_identity, score_prompt
from .pairs import people
from .pose_and_style import measure_pose, measure_style
from .records import circumstances

LAMBDAS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
RESULTS = SMALL_WORLD / "acceptance.json"
"""Where the committed figures are."""


def _generate(
    judges: Judges, cases: list[Case], attached: list[Attached], *, described: bool = False
) -> np.ndarray:
    prompts = [case.described if described else case.prompt for case in cases]
    return judges.world.generate(prompts, [case.seed for case in cases], attached, Sampling())


def one_subject(judges: Judges, word: str, counts: Counts, say: Callable[[str], None]) -> dict[str, Any]:
    """One person or one pet a picture."""
    cases = draw_cases((word,), counts.subjects, seed=1000 + len(word))
    attached = attach(judges, cases, word)
    pictures = {
        "personalised": _generate(judges, cases, [attached]),
        "floor": _generate(judges, cases, []),
        "described": _generate(judges, cases, [], described=True),
        "ceiling": judges.world.decode(judges.world.encode(true_drawings(cases))),
    }
    result: dict[str, Any] = {}
    for name, rgb in pictures.items():
        result[name] = {
            "identity": score_identity(judges, rgb, cases, word, counts),
            "prompt": score_prompt(judges, rgb, cases),
        }
        say(
            f"{word:6} {name:12} identity {result[name]['identity']['top1']['rate']:.2f}"
            f"  prompt {result[name]['prompt']['all']['rate']:.3f}"
        )
    return result


def curve(
    judges: Judges, word: str, counts: Counts, say: Callable[[str], None], kept: dict[str, Any]
) -> list[dict[str, Any]]:
    """Identity against prompt over λ (the paper's Fig. 10), on the cases of `one_subject`: its floor and
    ceiling are the curve's. `kept`: the figures at the default λ, which are not drawn again."""
    cases = draw_cases((word,), counts.subjects, seed=1000 + len(word))
    points = []
    for scale in LAMBDAS:
        if scale == BoundSubject.attention_scale:
            identity, prompt = kept["identity"]["top1"], kept["prompt"]["all"]
        else:
            rgb = _generate(judges, cases, [attach(judges, cases, word, scale)])
            identity = rate(identity_hits(judges, rgb, cases, word, counts))
            prompt = score_prompt(judges, rgb, cases)["all"]
        points.append({"attention_scale": scale, "identity": identity, "prompt": prompt})
        say(f"{word:6} λ = {scale:3}      identity {identity['rate']:.2f}  prompt {prompt['rate']:.3f}")
    return points


def pairs(judges: Judges, counts: Counts, say: Callable[[str], None]) -> dict[str, Any]:
    """A person and a pet in one picture, each with its own encoder."""
    cases = draw_cases(("person", "pet"), counts.pairs, seed=3000)
    result: dict[str, Any] = {}
    pictures = {
        "personalised": _generate(judges, cases, [attach(judges, cases, word) for word in ("person", "pet")]),
        "floor": _generate(judges, cases, []),
        "described": _generate(judges, cases, [], described=True),
        "ceiling": judges.world.decode(judges.world.encode(true_drawings(cases))),
    }
    for name, rgb in pictures.items():
        hits = {word: identity_hits(judges, rgb, cases, word, counts) for word in ("person", "pet")}
        result[name] = {
            **{word: score_identity(judges, rgb, cases, word, counts) for word in hits},
            "both": rate(hits["person"] & hits["pet"]),
        }
        shares = {word: result[name][word]["top1"]["rate"] for word in hits}
        shares["both"] = result[name]["both"]["rate"]
        say(f"pair   {name:12} " + "  ".join(f"{key} {value:.2f}" for key, value in shares.items()))
    return result


@torch.no_grad()
def attention_to_word(judges: Judges, counts: Counts, say: Callable[[str], None]) -> dict[str, Any]:
    """P[s*] of the base model in the finest layers, inside and outside the subject, at timestep 500.

    A nested value acts through this attention alone.
    """
    world = judges.world
    result = {}
    for word in judges.encoders:
        cases = draw_cases((word,), min(counts.subjects, 32), seed=4000)
        context, pooled, ids = world.text([case.prompt for case in cases])
        rows = np.stack([render(case.picture).subject for case in cases]) > 0  # (n, 32, 32)
        inside = torch.from_numpy(rows.reshape(-1, 16, 2, 16, 2).sum((2, 4)).reshape(len(cases), -1) >= 2)
        previous = dict(world.unet.attn_processors)
        watched = watch(world.unet)
        try:
            x = world.encode(true_drawings(cases))
            t = torch.full((len(cases),), 500)
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            added = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS] * len(cases)).float()}
            world.unet(new_scheduler().add_noise(x, noise, t), t, context, added_cond_kwargs=added)
        finally:
            world.unet.set_attn_processor(previous)
        token = load_tokenizer().encode(word)[1]
        position = torch.from_numpy((ids == token).argmax(axis=1))
        layers = [w.probabilities for w in watched if w.probabilities is not None]
        p = torch.stack([q[torch.arange(len(cases)), :, position] for q in layers])  # (layers, n, L)
        peak = p.masked_fill(~inside, 0).amax(dim=-1).mean()
        means = {"inside": p[:, inside].mean(), "outside": p[:, ~inside].mean(), "peak": peak}
        result[word] = {name: round(float(value), 4) for name, value in means.items()}
        say(f"{word:6} P[s*]        " + "  ".join(f"{k} {v:.2f}" for k, v in result[word].items()))
    return result


def pose_and_style(judges: Judges, counts: Counts, say: Callable[[str], None]) -> dict[str, Any]:
    """The pose ControlNet and the ink LoRA, with and without."""
    scores: dict[str, dict[str, Any]] = {
        "pose": {**measure_pose(judges, counts.pose_and_style)},
        "style": {**measure_style(judges, counts.pose_and_style)},
    }
    for name, pair in scores.items():
        say("\n".join(f"{name:6} {way:12} {value}" for way, value in pair.items()))
    return {name: {way: asdict(value) for way, value in pair.items()} for name, pair in scores.items()}


def _one_subject_and_curve(
    judges: Judges, counts: Counts, say: Callable[[str], None], *, word: str
) -> dict[str, Any]:
    figures = one_subject(judges, word, counts, say)
    return {"figures": figures, "curve": curve(judges, word, counts, say, figures["personalised"])}


Part = Callable[[Judges, Counts, Callable[[str], None]], dict[str, Any]]

PARTS: dict[str, Part] = {
    "people": people,
    "person": partial(_one_subject_and_curve, word="person"),
    "pet": partial(_one_subject_and_curve, word="pet"),
    "pair": pairs,
    "attention": attention_to_word,
    "pose_and_style": pose_and_style,
}
"""What is measured, the longest first; no part needs another."""


def _measured(
    part: Part, folder: Path, counts: Counts, say: Callable[[str], None], threads: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return part(Judges.load(folder), counts, say)


def measure(
    parts: dict[str, Part],
    counts: Counts,
    say: Callable[[str], None],
    *,
    folder: Path = SMALL_WORLD,
    workers: int = 1,
) -> dict[str, dict[str, Any]]:
    """The figures of each part, for the weights in `folder`.

    workers: how many parts at once, each in a process with as many threads as this one, which loads the
    weights for itself; `say` and the parts are sent there, so that they must be functions of a module.
    """
    if workers == 1:
        judges = Judges.load(folder)
        return {name: part(judges, counts, say) for name, part in parts.items()}
    threads = torch.get_num_threads()
    # A fork would inherit the locks of torch's threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        asked = {
            name: pool.submit(_measured, part, folder, counts, say, threads) for name, part in parts.items()
        }
        return {name: future.result() for name, future in asked.items()}


def run(
    counts: Counts,
    say: Callable[[str], None] = lambda line: None,
    *,
    folder: Path = SMALL_WORLD,
    workers: int = 1,
) -> dict[str, Any]:
    """All figures, as a document for `acceptance.json`. folder, workers: as in `measure`."""
    started = time.monotonic()
    parts = measure(PARTS, counts, say, folder=folder, workers=workers)
    return {
        **{word: parts[word]["figures"] for word in SUBJECTS},
        **{name: figures for name, figures in parts.items() if name not in SUBJECTS},
        "curve": {word: parts[word]["curve"] for word in SUBJECTS},
        "run": {
            "counts": asdict(counts),
            "sampling": asdict(Sampling()),
            "workers": workers,
            **circumstances(started),
        },
    }
