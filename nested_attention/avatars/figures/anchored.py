"""Decoupled adapters, used in different ways without further training, beside the nested encoders.

Each way draws the same held-out cases from the same noise: the adapter added in the whole picture, as
IP-Adapter does; within a mask of where the subject truly is; anchored to its word; anchored within a region
that is found while sampling. What is looked at is who is recognised, what the prompt gets, what changes
outside the subjects against the base model's picture, and what a pet's photo changes in a person's place.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...anchored import EXPONENT, LEVEL, QUANTILE, AnchoredSubject
from ...attention import BoundSubject
from ...checkpoint import load_subject_encoder
from ...encoder import SubjectEncoder
from ...errors import NestedAttentionError
from ...evaluation.statistics import clustered_mean, rate
from ...paths import ADAPTERS
from ...settings import SubjectSettings
from ...storage.files import digest_of
from ..drawing.picture import render
from ..models.world import Attached, Sampling
from . import records
from .cases import Case, anyone, change, draw_cases
from .judges import SUBJECTS, Counts, Judges, attach, identity_hits, score_prompt
from .pairs import score_slots

RESULTS = ADAPTERS / "anchored.json"
"""Where the committed figures are."""

SAMPLING = Sampling(steps=12, guidance=3.0)
PAIR, PEOPLE, CHOICE = "person and pet", "two people", "choice"
SEEDS = {("person",): 8100, ("pet",): 8200, SUBJECTS: 8300, ("person", "person"): 8400}
DEVELOPMENT = 48
"""Cases of training identities, by which the anchor's gate was chosen."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Use:
    """A way to use an encoder. mask: whether its region is where the subject truly is."""

    settings: SubjectSettings
    adapter: bool = True
    mask: bool = False


EVERYWHERE = "everywhere"
USES = {
    EVERYWHERE: Use(SubjectSettings(injection="everywhere")),
    "true mask": Use(SubjectSettings(injection="everywhere"), mask=True),
    "anchored": Use(SubjectSettings(injection="anchored")),
    "anchored, region found": Use(SubjectSettings(injection="anchored", region_mode="auto")),
    "nested": Use(SubjectSettings(injection="nested"), adapter=False),
}
EXCHANGED = (EVERYWHERE, "anchored")
"""Those that the pet's photo is exchanged with."""
BESIDE = (EVERYWHERE, "true mask")
"""Those that gates are compared with."""
TOGETHER = ("anchored, region found",)
"""Those that differ from others only where two subjects share a picture."""


def adapters(folder: Path = ADAPTERS) -> dict[str, SubjectEncoder]:
    """The adapters of a folder by their word. Raises NestedAttentionError where one is missing."""
    paths = {word: folder / f"{word}.safetensors" for word in SUBJECTS}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise NestedAttentionError(
            f"{folder} has no {' and no '.join(missing)}; expected a folder with an adapter for each of "
            f"{', '.join(SUBJECTS)}, as `nested-attention world train` writes them"
        )
    return {word: load_subject_encoder(path) for word, path in paths.items()}


def check(parts: Sequence[str], uses: Sequence[str]) -> None:
    """Raises NestedAttentionError for a part or a use that does not exist."""
    for given, known, what in ((parts, PARTS, "part"), (uses, USES, "use")):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise NestedAttentionError(
                f"no such {what}: {', '.join(unknown)}. The {what}s are {', '.join(known)}"
            )


def measure(
    judges: Judges,
    own: dict[str, SubjectEncoder],
    counts: Counts,
    parts: Sequence[str] = (),
    say: Say = lambda line: None,
    uses: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of these parts, all if none is named. own: `adapters`. uses: the rows that are measured;
    all if none is named.

    Raises NestedAttentionError for a part or a use that does not exist.
    """
    started, wanted = time.monotonic(), tuple(parts) or PARTS
    check(wanted, uses)
    chosen = {name: use for name, use in USES.items() if not uses or name in uses}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        **{word: lambda word=word: _alone(judges, own, (word,), counts, say, chosen) for word in SUBJECTS},  # type: ignore[misc]
        PAIR: lambda: _pair(judges, own, counts, say, chosen),
        PEOPLE: lambda: _people(judges, own, counts, say, chosen),
        CHOICE: lambda: _choice(judges, own, say),
    }
    found = {part: made[part]() for part in wanted}
    return {
        **found,
        "run": {
            "subjects": counts.subjects,
            "steps": SAMPLING.steps,
            "guidance": SAMPLING.guidance,
            **records.circumstances(started),
        },
    }


PARTS = (*SUBJECTS, PAIR, PEOPLE, CHOICE)


def _alone(
    judges: Judges,
    own: dict[str, SubjectEncoder],
    words: tuple[str, ...],
    counts: Counts,
    say: Say,
    uses: dict[str, Use],
) -> dict[str, Any]:
    """One subject a picture: identity, prompt, change outside; identity against everywhere, in pairs."""
    cases = draw_cases(words, counts.subjects, seed=SEEDS[words])
    base, reference, result = _draw(judges, cases, []), None, {}
    for name, use in {EVERYWHERE: USES[EVERYWHERE], **uses}.items():
        if name in TOGETHER:
            continue
        rgb = _draw(judges, cases, [_attached(judges, own, cases, words[0], use)])
        hits = identity_hits(judges, rgb, cases, words[0])
        reference = hits if reference is None else reference
        if name not in uses:  # it was drawn for the others to be compared with
            continue
        result[name] = _figures(judges, rgb, base, cases, hits, reference)
        _tell(say, words[0], name, result[name])
    return result


def _pair(
    judges: Judges, own: dict[str, SubjectEncoder], counts: Counts, say: Say, uses: dict[str, Use]
) -> dict[str, Any]:
    """A person and a pet: both recognised; and how much of the person's place another pet's photo changes."""
    cases = draw_cases(SUBJECTS, counts.pairs, seed=SEEDS[SUBJECTS])
    others = [
        replace(one, references=other.references)
        for one, other in zip(cases, cases[1:] + cases[:1], strict=True)
    ]
    base, reference, result = _draw(judges, cases, []), None, {}
    for name, use in {EVERYWHERE: USES[EVERYWHERE], **uses}.items():
        person, pet = (_attached(judges, own, cases, word, use) for word in SUBJECTS)
        rgb = _draw(judges, cases, [person, pet])
        each = {word: identity_hits(judges, rgb, cases, word) for word in SUBJECTS}
        both = each["person"] & each["pet"]
        reference = both if reference is None else reference
        if name not in uses:  # it was drawn for the others to be compared with
            continue
        result[name] = _figures(judges, rgb, base, cases, both, reference)
        result[name] |= {word: rate(hit) for word, hit in each.items()}
        if name in EXCHANGED:
            exchanged = replace(pet, tokens=_attached(judges, own, others, "pet", use).tokens)
            other = _draw(judges, cases, [person, exchanged])
            result[name]["leak"] = change(other, rgb, _masks(cases, "person"))
        _tell(say, PAIR, name, result[name])
    return result


def _people(
    judges: Judges, own: dict[str, SubjectEncoder], counts: Counts, say: Say, uses: dict[str, Use]
) -> dict[str, Any]:
    """Two people on one word and one adapter, each looked for where the prompt puts it (`pairs`)."""
    words = ("person", "person")
    cases = draw_cases(words, counts.pairs, seed=SEEDS[words])
    base, result = _draw(judges, cases, []), {}
    outside = ~(_masks(cases, 0) | _masks(cases, 1))
    for name, use in uses.items():
        rgb = _draw(judges, cases, _both_people(judges, own, cases, use))
        slots = score_slots(judges, rgb, cases, counts.twins)
        kept = ("first", "second", "swapped", "own_both")
        result[name] = {"identity": slots["both"], **{key: slots[key] for key in kept}}
        result[name] |= {"prompt": score_prompt(judges, rgb, cases)["all"]}
        result[name] |= {"outside": change(rgb, base, outside)}
        _tell(say, PEOPLE, name, result[name])
    return result


def _choice(judges: Judges, own: dict[str, SubjectEncoder], say: Say) -> dict[str, Any]:
    """Gates of the anchor on training identities."""
    result: dict[str, Any] = {}
    for part, words in (("person", ("person",)), (PAIR, SUBJECTS)):
        cases = draw_cases(words, DEVELOPMENT, seed=91 + len(words), split="train")
        base, result[part] = _draw(judges, cases, []), {}
        gates = {name: Use(settings) for name, settings in GATES.items()}
        for name, use in {**{name: USES[name] for name in BESIDE}, **gates}.items():
            rgb = _draw(judges, cases, [_attached(judges, own, cases, word, use) for word in words])
            each = [identity_hits(judges, rgb, cases, word) for word in words]
            identity = rate(torch.stack(each).all(dim=0))
            result[part][name] = {"identity": identity, "outside": change(rgb, base, ~anyone(cases))}
            _tell(say, f"{CHOICE}, {part}", name, result[part][name])
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Gated(SubjectSettings):
    """With another gate of the anchor than the one that ships."""

    quantile: float = QUANTILE
    level: float = LEVEL
    exponent: float = EXPONENT

    def bind(self, *args: Any, **options: Any) -> BoundSubject:
        bound = super().bind(*args, **options)
        assert isinstance(bound, AnchoredSubject)
        return replace(bound, quantile=self.quantile, level=self.level, exponent=self.exponent)


GATES = {
    f"quantile {quantile}, level {level}, exponent {exponent}": Gated(
        injection="anchored", quantile=quantile, level=level, exponent=exponent
    )
    for quantile, level, exponent in (
        *((0.95, 0.5, 3.0), (0.95, 0.5, 4.0), (0.95, 0.6, 2.0), (0.95, 0.6, 3.0)),
        *((0.95, 0.65, 2.0), (0.95, 0.65, 3.0), (0.95, 0.7, 2.0)),
    )
}


def _attached(
    judges: Judges,
    own: dict[str, SubjectEncoder],
    cases: list[Case],
    word: str,
    use: Use,
    slot: int | None = None,
) -> Attached:
    """Each case's subject on its word. slot: of several figures of that kind, which."""
    of = replace(judges, encoders=own) if use.adapter else judges
    if slot is None:
        attached = attach(of, cases, word)
    else:
        crops = np.stack([case.references[slot] for case in cases])
        attached = of.world.attach(of.encoders[word], crops, word)
    place = _masks(cases, word if slot is None else slot) if use.mask else None
    region = None if place is None else torch.from_numpy(place).float()
    return replace(attached, settings=use.settings, region=region)


def _both_people(
    judges: Judges, own: dict[str, SubjectEncoder], cases: list[Case], use: Use
) -> list[Attached]:
    """Two people on the first and the second occurrence of their word."""
    slots = [_attached(judges, own, cases, "person", use, slot) for slot in range(2)]
    return [replace(one, occurrence=slot) for slot, one in enumerate(slots)]


def _draw(judges: Judges, cases: list[Case], attached: Sequence[Attached]) -> np.ndarray:
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    return judges.world.generate(prompts, seeds, attached, SAMPLING, latent_width=cases[0].latent_width)


def _masks(cases: list[Case], who: str | int) -> np.ndarray:
    """Where the figure of a word, or with a number, truly is: (n, 32, W) bool"""
    numbers = [who if isinstance(who, int) else c.picture.figures.index(c.figure(who)) for c in cases]
    return np.stack([render(c.picture).subject == n + 1 for c, n in zip(cases, numbers, strict=True)])


def _figures(
    judges: Judges, rgb: np.ndarray, base: np.ndarray, cases: list[Case], hits: Tensor, reference: Tensor
) -> dict[str, Any]:
    prompt = score_prompt(judges, rgb, cases)
    return {
        "expression": prompt["attributes"]["expression"],
        "identity": rate(hits),
        "against_everywhere": clustered_mean(
            (hits.float() - reference.float()).tolist(), [str(case) for case in range(len(hits))]
        ),
        "prompt": prompt["all"],
        "outside": change(rgb, base, ~anyone(cases)),
    }


def _tell(say: Say, part: str, name: str, figures: dict[str, Any]) -> None:
    shown = {k: v["rate"] if isinstance(v, dict) and "rate" in v else v for k, v in figures.items()}
    numbers = "  ".join(f"{k} {v:.2f}" for k, v in shown.items() if isinstance(v, float))
    say(f"{part:16} {name:24} {numbers}")


def write(document: dict[str, Any], path: Path = RESULTS, folder: Path = ADAPTERS) -> None:
    """Write the rows that were measured over those in the file, each with its run and the hash of what it
    belongs to. folder: of the adapters."""
    before = json.loads(path.read_text()) if path.exists() else {}
    run = document.pop("run")
    parts = [part for part in PARTS if part in before or part in document]
    rows = {part: _merged(part, before.get(part, {}), document.get(part, {})) for part in parts}

    def of_rows(kept: dict[str, Any], now: Callable[[str, str], Any]) -> dict[str, dict[str, Any]]:
        """Of each row of a part: what is kept of one that stays, and what holds now of a measured one."""
        return {
            part: {
                row: now(part, row) if row in document.get(part, {}) else kept.get(part, {}).get(row)
                for row in rows[part]
            }
            for part in parts
        }

    runs = of_rows(before.get("runs", {}), lambda part, row: run)
    hashes = of_rows(before.get("hashes", {}), lambda part, row: belongs(part, row, folder))
    records.write({**rows, "runs": runs}, path, hashes)


def _merged(part: str, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A part's rows, the new ones in place of the old ones, in the order of USES."""
    if part == CHOICE:
        return now or before  # whose rows were measured together
    both = {**before, **now}
    return {name: both[name] for name in USES if name in both}


def belongs(part: str, row: str, folder: Path = ADAPTERS) -> str:
    """A hash of the weights that decide a row's figures: of the world, its judges and the adapters, which all
    rows are compared with; and of the nested encoders for their row."""
    nested = part != CHOICE and not USES[row].adapter
    encoders = {f"{word}_encoder.safetensors" for word in SUBJECTS}
    own = {name: value for name, value in records.hashes().items() if nested or name not in encoders}
    read = {name: value for name, value in own.items() if "/" not in name}  # no ControlNet and no LoRA
    added = {f"adapters/{word}": digest_of(folder / f"{word}.safetensors") for word in SUBJECTS}
    return hashlib.sha256(json.dumps({**read, **added}, sort_keys=True).encode()).hexdigest()
