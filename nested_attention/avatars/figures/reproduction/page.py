"""`docs/reproduction.md`: everything on it is written from the figures, with as many runs as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ....evaluation.charts import Point, drawing
from ....evaluation.statistics import Mean, Rate, repeated
from ....training.mechanisms import MECHANISMS, mechanism
from ..judges import NEAREST
from ..report import percent, share, table
from .drawings import EXPRESSION, TWINS, Figures
from .findings import (
    FEWEST,
    NOT_SHOWN,
    PROMPT_LOSS,
    Finding,
    Summary,
    Verdict,
    ends,
    find_all,
    over_cases,
)
from .matrix import (
    ERROR,
    PERSON,
    QUERIES,
    QUESTIONS,
    Drawing,
    Question,
    Run,
    asked_of,
    curve,
    plan,
    words_of,
)
from .measures import MEASURES
from .published import PICTURES

COLUMNS = (
    "identity",
    NEAREST,
    "twins",
    "prompt",
    EXPRESSION,
    "outside",
    "person",
    "pet",
    "first",
    "second",
    "both",
    "own",
    "error",
)
CURVES = {"prompt": "prompt", EXPRESSION: "expression", "outside": "change outside, of 255"}
"""What identity is drawn against."""


def written(summary: Summary) -> str:
    """The whole page."""
    findings = find_all(summary)
    wanted = plan()
    there = {run for run, asked in wanted.items() if _complete(summary, run, asked)}
    parts = [
        "# The paper's comparisons, at small scale",
        _introduction(summary, len(there), len(wanted)),
        "## In short",
        *_short(findings),
        *(part for question in QUESTIONS for part in _question(summary, question, findings)),
        "## The trainings",
        *_trainings(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _complete(summary: Summary, run: Run, asked: Sequence[Drawing]) -> bool:
    return run.name in summary.runs and all(summary.figures(run, each) is not None for each in asked)


def _introduction(summary: Summary, there: int, wanted: int) -> str:
    size, trainings = summary.size, [run["training"] for run in summary.runs.values() if run.get("training")]
    trial = "" if size.real else "**A trial of the command at a small size: nothing here is a result.** "
    missing = (
        ""
        if there == wanted
        else f"So far {len(trainings)} of {wanted} runs are trained; drawn in full: {there}. "
    )
    machines = sorted({each["machine"] for each in trainings})
    return (
        f"{trial}{missing}Written by `nested-attention world compare` from the figures of every single "
        f"case. Machines: {'; '.join(machines) or 'none yet'}.\n\n"
        f"**Trainings.** Each has {size.steps:,} steps of {size.batch} on {size.pictures:,} drawn pictures "
        "of its kind of subject in the [small world](../weights/avatars/README.md) and "
        f"{size.pictures // 2:,} of two figures, with the paper's loss unless said otherwise: the plain mean "
        "squared error over all timesteps alike. Runs of one seed, one kind of subject and "
        f"{QUERIES} queries have the same pictures in the same order, the same noise and the same Q-Former "
        "to begin with. Two things differ from the paper, but for the part *From scratch*: that Q-Former has "
        "learned to redraw close-ups beforehand, and the keys of tokens, where a mechanism has any, are "
        "trained [whitened](training.md#train). Weights are not published: where a published run was drawn "
        "further on another machine, it was trained again, on the same seed, and the later drawings are of "
        "these weights, which differ from the first ones by how processors round.\n\n"
        f"**Pictures.** Every drawing shows the same {size.cases} held-out subjects in prompts that no "
        f"training saw, from the same noise ({size.sampling.steps} steps, guidance "
        f"{size.sampling.guidance:g}); every picture counts. *Identity*: all subjects of a picture are "
        "recognised among those of all cases, by the judge that has learned from drawings; beside it, by "
        "the one that compares with the nearest drawing. *Among near-twins*: the subject is recognised, "
        f"among {TWINS} that are nearly alike. *Prompt*: the share of what it asked for that the picture "
        "shows, the expression apart; of two figures, what both show. *Change outside*: the mean difference "
        "from the base model's picture, away from the figures of the true drawing. *Error of the "
        "prediction*: of the UNet's, on held-out drawings with noise. Brackets are 95 % intervals: Wilson's "
        "for rates, over cases for means and differences."
    )


VERDICTS: tuple[Verdict, ...] = ("agrees", "disagrees", NOT_SHOWN, "cannot be told", "not measured")
"""Of what the paper says."""


def _short(findings: Sequence[Finding]) -> list[str]:
    paper = [each for each in findings if each.claim.figure]
    counts = [sum(each.verdict == verdict for each in paper) for verdict in VERDICTS]
    agrees, disagrees, alike, untold, missing = counts
    text = (
        f"The paper's statements ask for {len(paper)} comparisons; several may stand for one of them. The "
        f"figures agree with {agrees}, disagree with {disagrees}, show no difference for {alike}, cannot "
        f"tell {untold}, and {missing} are not measured. A difference counts as shown where its interval "
        "excludes 0, every seed has its sign, and it is larger than what two seeds of the same training "
        "differ by, at most, in the same drawing (of the mean over seeds: over the root of their number); "
        "with one seed of hits, where McNemar's exact test has p < 0.05 besides. *Cannot be told*: fewer "
        f"than {FEWEST} cases differ, as where both have 100 %. *Difference here*: the first value of the "
        "comparison's line below, less the second. *Smallest*: a difference below it could not have been "
        "shown with so many cases and seeds. Nothing is corrected for the number of comparisons."
    )
    rows = [
        [
            each.claim.figure,
            each.claim.says,
            str(len(each.seeds) or ""),
            _difference(each),
            _smallest(each),
            f"**{each.verdict}**",
        ]
        for each in paper
    ]
    header = ["paper", "what it says, as measured here", "seeds", "difference here", "smallest", "verdict"]
    return [text, table(header, rows)]


def _difference(finding: Finding) -> str:
    found = finding.difference
    return "" if found is None else _change(found, MEASURES[finding.claim.measure].share)


def _change(found: Mean, share: bool) -> str:
    """A difference with its interval, in points where it is of shares."""
    mean, (low, high) = found["mean"], ends(found)
    if share:
        return f"{100 * mean:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{mean:+.4g} ({low:+.4g} to {high:+.4g})"


def _smallest(finding: Finding) -> str:
    if finding.difference is None or finding.verdict == "cannot be told":
        return ""
    return _size(finding.smallest, MEASURES[finding.claim.measure].share)


def _size(value: float, share: bool) -> str:
    """Of a difference."""
    if share:
        return f"{100 * value:.1f} points" if value <= 1 else "none: too few cases"
    return f"{value:.3g}"


def _question(summary: Summary, question: Question, findings: Sequence[Finding]) -> list[str]:
    own = [each for each in findings if each.claim.question == question.key]
    parts = [f"## {question.title}", question.text]
    if question.key == "mechanisms":
        parts += [_chosen(summary), _CURVES]
        parts += [f"![{alt}]({PICTURES}/{name})" for name, (alt, _) in charts(summary).items()]
    if comparable(question, lambda run, each: summary.figures(run, each) is not None):
        parts += [table_of(summary, question), f"![some of the pictures]({PICTURES}/{question.key}.png)"]
    else:
        parts += ["No run of this part is there yet."]
    return [*parts, "\n".join(f"- {_sentence(each)}" for each in own)]


_CURVES = (
    "A number beside a point is λ, or the scale of Decoupled CA; it is left out where there is no room. "
    "Vertical lines are 95 % intervals."
)


def _chosen(summary: Summary) -> str:
    return (
        "Where the paper speaks of a trade-off, each mechanism is taken at one value of its control: the one "
        f"that keeps most of the identity on the first {summary.size.development} cases while it costs at "
        f"most {share(PROMPT_LOSS)} of what the prompt asks for, its expression included, against the base "
        "model there; of equals, the least. The figures at it are of the other cases. One that costs more at "
        "every value is taken where it costs least, and is behind one that does not if these cases show that "
        "it costs more. *The scale of equal identity* is the one whose identity, on all cases, is "
        "nearest."
    )


def _sentence(finding: Finding) -> str:
    claim = finding.claim
    source = f"{claim.figure}: " if claim.figure else ""
    if finding.verdict == "not measured":
        return f"{source}{claim.says} *Not measured.*"
    measure = MEASURES[claim.measure]
    first, second = (share(x, 1) if measure.share else f"{x:.4g}" for x in finding.means)
    labels = finding.values if len(finding.values) == 2 else (*finding.values, "chance")
    seeds = len(finding.seeds)
    tests = "; ".join(
        f"the first alone in {each['only_first']}, the second in {each['only_second']}, p = {each['p']:.2g}"
        for each in finding.tests
    )
    each_seed = ", ".join(f"{100 * x:+.1f}" if measure.share else f"{x:+.3g}" for x in finding.seeds)
    said = (
        f"{source}{claim.says} {measure.title.capitalize()}: {labels[0]} {first}, {labels[1]} {second}; "
        f"difference {_difference(finding)}, at {seeds} seed{'s' if seeds > 1 else ''} ({each_seed})"
        f"{f' ({tests})' if tests else ''}."
    )
    if finding.asked is not None:
        said += f" In what the prompt asks for, which decides: {_change(finding.asked, True)}."
    if finding.verdict == "cannot be told":
        return f"{said} *Cannot be told*: cases that differ are {finding.differ or 'none'}."
    seeded = _size(finding.spread, measure.share)
    more = f", and two seeds of one training may make {seeded}" if finding.spread else ""
    least = f"the smallest that could be shown is {_smallest(finding)}"
    return f"{said} *{finding.verdict.capitalize()}*; {least}{more}."


def comparable(question: Question, there: Callable[[Run, Drawing], bool]) -> bool:
    """Whether there are two drawings of a question's first seed to be seen beside each other: the run that
    all questions share is none yet."""
    asked = [(run, each) for run, drawings in question.first for each in drawings]
    return sum(each.kind != "error" and there(run, each) for run, each in asked) > 1


def table_of(summary: Summary, question: Question) -> str:
    """The figures of a question's runs, averaged over their seeds, beside the base model's."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for run, drawings in question.asked:
        for each in drawings:
            found = summary.figures(run, each)
            if found is not None and each.kind != "error":
                if each == Drawing() and ERROR in drawings:
                    found = {**found, **(summary.figures(run, ERROR) or {})}
                groups.setdefault((run.title, told(run, each)), []).append(found)
    names = [n for n in COLUMNS if any(MEASURES[n].read(f) is not None for g in groups.values() for f in g)]
    for words in dict.fromkeys(words_of(each) for _, drawings in question.asked for each in drawings):
        for name, label in (("base", "base model, no subject"), ("truth", "true drawings")):
            found = summary.references.get(" ".join(words), {}).get(name)
            if found:
                groups[label, " and ".join(words)] = [found]
    rows = [[*what, str(len(each)), *(_cell(name, each) for name in names)] for what, each in groups.items()]
    rows = [row for row in rows if any(row[3:])]
    return table(["", "drawn", "seeds", *(MEASURES[name].title for name in names)], rows)


def told(run: Run, drawing: Drawing) -> str:
    """What was drawn, in words."""
    control = mechanism(run.mechanism).control
    if drawing.kind == "references":
        return f"{drawing.word}, from {drawing.value:g} pictures"
    if drawing.kind == "mixed":
        return "mixed" if drawing.value else "not mixed"
    if drawing.kind == "noun":
        return f"as “{drawing.noun}”"
    at = f"{control.symbol} = {drawing.value:g}" if control else "as trained"
    return f"{' and '.join(words_of(drawing))}, {at}"


def _cell(name: str, found: Sequence[Figures]) -> str:
    values = [value for each in found if (value := MEASURES[name].read(each)) is not None]
    if not values:
        return ""
    measure = MEASURES[name]
    if measure.hits:
        return percent(_rate(values))
    mean = over_cases(values)
    low, high = ends(mean)
    if measure.share:
        return f"{share(mean['mean'])} ({share(max(low, 0.0))}–{share(min(high, 1.0))})"
    digits = 4 if name == "error" else 3
    return f"{mean['mean']:.{digits}g} ({low:.{digits}g}–{high:.{digits}g})"


def _rate(values: Sequence[np.ndarray]) -> Rate:
    """Of hits of the same cases at several seeds."""
    return repeated([torch.from_numpy(each > 0.5) for each in values])


def charts(summary: Summary) -> dict[str, tuple[str, str]]:
    """File name → what it shows, and the SVG: identity over the controls, against what it costs."""
    runs = [run for run, _ in asked_of("mechanisms")]
    found = {}
    for measure, title in CURVES.items():
        series: dict[str, list[Point]] = {}
        for name, each in MECHANISMS.items():
            own = [run for run in runs if run.mechanism == name]
            series[each.title] = [
                point for at in curve(name) if (point := _point(summary, own, at, measure)) is not None
            ]
        base = summary.references.get(PERSON, {}).get("base")
        if base and MEASURES[measure].read(base) is not None:
            series["base model"] = [_of([base], measure, "")]
        series = {name: points for name, points in series.items() if points}
        if any(name != "base model" for name in series):
            what = f"Identity against {title.partition(',')[0]}"
            svg = drawing(what, (title, "identity"), series, shares=(MEASURES[measure].share, True))
            found[f"identity-{measure}.svg"] = f"{what}, a curve a mechanism", svg
    return found


def _point(summary: Summary, runs: Sequence[Run], at: Drawing, measure: str) -> Point | None:
    """A value of the control, over the seeds that are there."""
    found = [each for run in runs if (each := summary.figures(run, at)) is not None]
    if not found or MEASURES[measure].read(found[0]) is None:
        return None
    control = mechanism(runs[0].mechanism).control
    return _of(found, measure, f"{at.value:g}" if control else "")


def _of(found: Sequence[Figures], measure: str, label: str) -> Point:
    x = [value for each in found if (value := MEASURES[measure].read(each)) is not None]
    y = _rate([value for each in found if (value := MEASURES["identity"].read(each)) is not None])
    return Point(float(np.mean(x)), y["rate"], y["low"], y["high"], label)


def _trainings(summary: Summary) -> list[str]:
    rows = []
    for run in plan():
        done: dict[str, Any] = summary.runs.get(run.name, {}).get("training", {})
        if done:
            rows.append(
                [
                    run.name,
                    f"{done['steps']:,} × {done['batch']}",
                    f"{done['parameters']:,}",
                    f"{done['minutes']:.0f}",
                    done["precision"],
                    "" if run.departures else f"{np.mean(done['losses'][-5:]):.4f}",
                ]
            )
    header = ["run", "steps", "parameters trained", "minutes", "arithmetic", "loss at the end"]
    text = (
        "The loss at the end is the mean of the last 250 steps. Runs of one seed, one kind of subject and "
        "the paper's loss have the same pictures and noise there and can be compared; those of other seeds "
        f"have others. {_last_fifths(summary)}Whether more steps would bring more, nothing here says."
    )
    return [text, table(header, rows)] if rows else ["None is complete yet."]


def _last_fifths(summary: Summary) -> str:
    """By how much a run's loss still falls at its end, at each seed of the mechanisms."""
    falls: dict[int, list[float]] = {}
    for run, _ in asked_of("mechanisms"):
        curve = summary.runs.get(run.name, {}).get("training", {}).get("losses", [])
        if fifth := len(curve) // 5:
            fall = float(np.mean(curve[-fifth:]) / np.mean(curve[-2 * fifth : -fifth])) - 1
            falls.setdefault(run.seed, []).append(fall)
    if not falls:
        return ""
    told = ", ".join(f"{100 * np.mean(each):+.1f} %" for each in falls.values())
    return (
        "The learning rate falls to zero over a run. From the fourth fifth of its steps to the last, the "
        f"mean loss of the mechanisms' runs changes by {told} at seeds {', '.join(map(str, falls))}, in all "
        "mechanisms nearly alike, for it is the pictures that differ. "
    )
