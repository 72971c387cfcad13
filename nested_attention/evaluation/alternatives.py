"""Nested values against one global value a subject (the paper's "Global V"), under equal training.

Both encoders begin with the same random weights and see the same pictures, noise and number of steps. The
paper finds that a value which does not depend on the query carries fewer details (Appendix B); a small world
in which that is not so would have identities too coarse to need nested attention.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..avatars.tokenizer import WEIGHTS
from ..avatars.train.data import draw_pictures
from ..avatars.train.encoders import encode_data, train_encoder
from ..avatars.train.loop import Budget
from ..avatars.world import Sampling
from .acceptance import Counts, Judges, attach, score_identity, score_prompt
from .cases import draw_cases

RESULTS = WEIGHTS / "alternatives.json"
"""Where the committed comparison is."""

ALTERNATIVES = ("nested", "global")


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
    started, counts = time.monotonic(), counts or Counts()
    drawn = draw_pictures(word, pictures, 9, workers=workers, cache=runs / "data")
    data = encode_data(judges.world, drawn, word)
    cases = draw_cases((word,), counts.subjects, seed=5000)
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    result: dict[str, Any] = {}
    for name in ALTERNATIVES:
        pooled = name == "global"
        budget = Budget(steps=steps)
        encoder = train_encoder(
            runs / f"{word}-{name}", judges.world, data, budget, global_value=pooled
        ).requires_grad_(False)
        mine = replace(judges, encoders={word: encoder})
        attached = attach(mine, cases, word)
        if pooled:
            attached = replace(attached, tokens=attached.tokens.mean(dim=1, keepdim=True))
        rgb = judges.world.generate(prompts, seeds, [attached], Sampling())
        result[name] = {
            "identity": score_identity(mine, rgb, cases, word, counts),
            "prompt": score_prompt(mine, rgb, cases),
            "losses": losses(runs / f"{word}-{name}"),
        }
        identity, prompt = result[name]["identity"]["top1"]["rate"], result[name]["prompt"]["all"]["rate"]
        say(f"{word:6} {name:8} identity {identity:.2f}  prompt {prompt:.3f}")
    result["run"] = {
        "word": word,
        "steps": steps,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(time.monotonic() - started),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    return result


def losses(folder: Path) -> list[float]:
    """The training loss of each 50 steps: on the same pictures and noise in both, so in pairs."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return list({line["step"]: line["loss"] for line in lines}.values())  # resumed steps stand there twice


def write(document: dict[str, Any], path: Path = RESULTS) -> None:
    """Write the comparison, in one piece."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)
