"""The figures of the small world: identity, prompt, several subjects, and the control over both (λ).

Every picture counts. Beside each figure stand its floor (the base model, no subject), its ceiling (the true
drawing through the autoencoder), and what words alone can do: the base model with the identity described, and
one value a layer taken from that description.
"""

from __future__ import annotations

import json
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
from ...evaluation.statistics import from_text, rate
from ...paths import SMALL_WORLD
from ...storage.files import replacing
from ..drawing.picture import render
from ..models.model import TIME_IDS, new_scheduler
from ..models.pixels import encode_pictures
from ..models.tokenizer import load_tokenizer
from ..models.watched import watch
from ..models.world import Sampling
from .cases import background, change, draw_cases, true_drawings
from .described import described_value
from .judges import SCORERS, SUBJECTS, Counts, Judges, attach, generate, score_identity, score_prompt
from .pairs import people
from .pose_and_style import measure_pose, measure_style
from .records import circumstances
from .references import references
from .steady import steady

LAMBDAS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
RESULTS = SMALL_WORLD / "acceptance.json"
"""Where the committed figures are."""

Say = Callable[[str], None]


def one_subject(judges: Judges, counts: Counts, say: Say, *, word: str) -> dict[str, Any]:
    """One person or one pet a picture, and the curve over λ (the paper's Fig. 10) on the same cases."""
    cases = draw_cases((word,), counts.subjects, seed=1000 + len(word), split=counts.half)
    outside, base = background(cases), generate(judges, cases)
    pictures: dict[str, Callable[[], np.ndarray]] = {
        "personalised": lambda: generate(judges, cases, [attach(judges, cases, word)]),
        "floor": lambda: base,
        "described": lambda: generate(judges, cases, described=True),
        "constant": lambda: generate(judges, cases, [described_value(judges.world, cases, word)]),
        "ceiling": lambda: judges.world.decode(encode_pictures(true_drawings(cases))),
    }
    figures: dict[str, Any] = {}
    for name, draw in pictures.items():
        rgb = draw()
        figures[name] = {
            "identity": score_identity(judges, rgb, cases, word, counts, marks=True),
            "prompt": score_prompt(judges, rgb, cases),
            "outside": change(rgb, base, outside),
        }
        _tell(say, f"{word:6} {name:12}", figures[name])
    points = []
    for scale in LAMBDAS:
        if scale == BoundSubject.attention_scale:
            found = figures["personalised"]
        else:
            rgb = generate(judges, cases, [attach(judges, cases, word, scale)])
            found = {
                "identity": score_identity(judges, rgb, cases, word, counts),
                "prompt": score_prompt(judges, rgb, cases),
                "outside": change(rgb, base, outside),
            }
            _tell(say, f"{word:6} λ = {scale:3}     ", found)
        points.append({"attention_scale": scale, **found})
    return {"figures": figures, "curve": points}


def _tell(say: Say, what: str, found: dict[str, Any]) -> None:
    told = "  ".join(
        f"{scorer} {found['identity'][scorer]['top1']['rate']:.2f} (twins "
        f"{found['identity'][scorer]['among_twins']['rate']:.2f})"
        for scorer in SCORERS
    )
    prompt = found["prompt"]
    say(f"{what} {told}  prompt {prompt['all']['rate']:.3f}  expression {prompt['balanced']['rate']:.2f}")


def pairs(judges: Judges, counts: Counts, say: Say) -> dict[str, Any]:
    """A person and a pet in one picture, each with its own encoder."""
    cases = draw_cases(SUBJECTS, counts.pairs, seed=3000, split=counts.half)
    pictures = {
        "personalised": generate(judges, cases, [attach(judges, cases, word) for word in SUBJECTS]),
        "floor": generate(judges, cases),
        "described": generate(judges, cases, described=True),
        "ceiling": judges.world.decode(encode_pictures(true_drawings(cases))),
    }
    result: dict[str, Any] = {}
    for name, rgb in pictures.items():
        each = {word: score_identity(judges, rgb, cases, word, counts) for word in SUBJECTS}
        both = {
            scorer: rate(from_text(one["hits"]["top1"]) & from_text(other["hits"]["top1"]))
            for scorer in SCORERS
            for one, other in [[each[word][scorer] for word in SUBJECTS]]
        }
        result[name] = {**each, "both": both, "prompt": score_prompt(judges, rgb, cases)}
        say(f"pair   {name:12} " + "  ".join(f"{k}: both {v['rate']:.2f}" for k, v in both.items()))
    return result


@torch.no_grad()
def attention_to_word(judges: Judges, counts: Counts, say: Say) -> dict[str, Any]:
    """P[s*] of the base model in the finest layers, inside and outside the subject, at timestep 500.

    A nested value acts through this attention alone.
    """
    world = judges.world
    result = {}
    for word in judges.encoders:
        cases = draw_cases((word,), min(counts.subjects, 32), seed=4000, split=counts.half)
        context, pooled, ids = world.text([case.prompt for case in cases])
        rows = np.stack([render(case.picture).subject for case in cases]) > 0  # (n, 32, 32)
        inside = torch.from_numpy(rows.reshape(-1, 16, 2, 16, 2).sum((2, 4)).reshape(len(cases), -1) >= 2)
        previous = dict(world.unet.attn_processors)
        watched = watch(world.unet)
        try:
            x = encode_pictures(true_drawings(cases))
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


def pose_and_style(judges: Judges, counts: Counts, say: Say) -> dict[str, Any]:
    """The pose ControlNet and the ink LoRA, with and without."""
    scores: dict[str, dict[str, Any]] = {
        "pose": {**measure_pose(judges, counts)},
        "style": {**measure_style(judges, counts)},
    }
    for name, pair in scores.items():
        say("\n".join(f"{name:6} {way:12} {value}" for way, value in pair.items()))
    return {name: {way: asdict(value) for way, value in pair.items()} for name, pair in scores.items()}


Part = Callable[[Judges, Counts, Say], dict[str, Any]]

PARTS: dict[str, Part] = {
    "people": people,
    "person": partial(one_subject, word="person"),
    "pet": partial(one_subject, word="pet"),
    "pair": pairs,
    "references_person": partial(references, word="person"),
    "references_pet": partial(references, word="pet"),
    "steady": steady,
    "attention": attention_to_word,
    "pose_and_style": pose_and_style,
}
"""What is measured, the longest first; no part needs another."""


def _measured(part: Part, folder: Path, counts: Counts, say: Say, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return part(Judges.load(folder), counts, say)


def measure(
    parts: dict[str, Part],
    counts: Counts,
    say: Say,
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


def runs_begun(path: Path) -> int:
    """How many runs on the sealed set a document counts."""
    return int(json.loads(path.read_text()).get("runs", 0)) if path.exists() else 0


def count_run(path: Path) -> int:
    """Counts a run on the sealed set, before it shows anything, in the document that is there; its number."""
    document = json.loads(path.read_text()) if path.exists() else {}
    number = runs_begun(path) + 1
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**document, "runs": number}, indent=1) + "\n")
    return number


def run(
    counts: Counts,
    say: Say = lambda line: None,
    *,
    folder: Path = SMALL_WORLD,
    workers: int = 1,
    parts: dict[str, Part] | None = None,
) -> dict[str, Any]:
    """All figures, as a document for `acceptance.json`. folder, workers: as in `measure`. parts: `PARTS`."""
    started = time.monotonic()
    found = measure(PARTS if parts is None else parts, counts, say, folder=folder, workers=workers)
    alone = {word: found.pop(word) for word in SUBJECTS if word in found}
    return {
        **{word: part["figures"] for word, part in alone.items()},
        **found,
        "curve": {word: part["curve"] for word, part in alone.items()},
        "run": {
            "counts": asdict(counts),
            "sampling": asdict(Sampling()),
            "workers": workers,
            **circumstances(started),
        },
    }
