"""`docs/reproduction.md`: everything on it is written from the figures, with as many runs as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....evaluation.charts import Point, drawing
from ....evaluation.statistics import Mean, clustered_mean, wilson
from ....training.mechanisms import MECHANISMS, mechanism
from ..judges import NEAREST
from ..report import percent, share, table
from .drawings import EXPRESSION, TWINS, Figures
from .findings import MEASURES, PROMPT_LOSS, Finding, Summary, find_all
from .matrix import PERSON, QUESTIONS, Drawing, Question, Run, curve, plan, words_of
from .published import PICTURES
from .runs import still_falling

COLUMNS = (
    "identity",
    NEAREST,
    "twins",
    "prompt",
    EXPRESSION,
    "outside",
    "person",
    "pet",
    "both",
    "moved",
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
        f"of the [small world](../weights/avatars/README.md) and {size.pictures // 2:,} of two figures, with "
        "the paper's loss unless said otherwise: the plain mean squared error over all timesteps alike. Runs "
        "of one seed have the same pictures in the same order, the same noise and the same Q-Former to begin "
        "with. Beside the paper, that Q-Former has learned to read before, and the keys of tokens are "
        "trained [whitened](training.md#train).\n\n"
        f"**Pictures.** Every drawing shows the same {size.cases} held-out subjects in prompts that no "
        f"training saw, from the same noise ({size.sampling.steps} steps, guidance "
        f"{size.sampling.guidance:g}); every picture counts. *Identity*: all subjects of a picture are "
        "recognised among those of all cases, by the judge that has learned from drawings; beside it, by "
        "the one that compares with the nearest drawing. *Among near-twins*: the subject is recognised, "
        f"among {TWINS} that are nearly alike. *Prompt*: the share of what it asked for that the picture "
        "shows, the expression apart; of two figures, what both show. *Change outside*: the mean difference "
        "from the base model's picture, away from the figures of the true drawing. Brackets are 95 % "
        "intervals: Wilson's for rates of one run, over cases for means and differences."
    )


def _short(findings: Sequence[Finding]) -> list[str]:
    paper = [each for each in findings if each.claim.figure]
    counts = {
        verdict: sum(each.verdict == verdict for each in paper)
        for verdict in ("agrees", "disagrees", "no difference shown", "not measured")
    }
    text = (
        f"Of {len(paper)} statements of the paper, the figures agree with {counts['agrees']}, disagree with "
        f"{counts['disagrees']}, show no difference for {counts['no difference shown']}, and "
        f"{counts['not measured']} are not measured. A difference counts as shown where its interval "
        "excludes 0 and every seed has its sign, and with one seed of hits, where McNemar's exact test has "
        "p < 0.05 besides. *Difference here*: the first value of the statement's line below, less the "
        "second. *Smallest*: a difference below it could not have been shown with so many cases. Nothing is "
        "corrected for the number of statements: of those without any difference, one in twenty would seem "
        "to have one."
    )
    rows = [
        [each.claim.figure, each.claim.says, _difference(each), _smallest(each), f"**{each.verdict}**"]
        for each in paper
    ]
    header = ["paper", "its statement, as measured here", "difference here", "smallest", "verdict"]
    return [text, table(header, rows)]


def _difference(finding: Finding) -> str:
    found = finding.difference
    if found is None:
        return ""
    measure = MEASURES[finding.claim.measure]
    if measure.share:
        points = [100 * x for x in (found["mean"], _or(found["low"], found), _or(found["high"], found))]
        return f"{points[0]:+.1f} points ({points[1]:+.1f} to {points[2]:+.1f})"
    low, high = _or(found["low"], found), _or(found["high"], found)
    return f"{found['mean']:+.4g} ({low:+.4g} to {high:+.4g})"


def _or(value: float | None, mean: Mean) -> float:
    return mean["mean"] if value is None else value


def _smallest(finding: Finding) -> str:
    if finding.difference is None:
        return ""
    if MEASURES[finding.claim.measure].share:
        return f"{100 * finding.smallest:.1f} points" if finding.smallest <= 1 else "none: too few cases"
    return f"{finding.smallest:.3g}"


def _question(summary: Summary, question: Question, findings: Sequence[Finding]) -> list[str]:
    own = [each for each in findings if each.claim.question == question.key]
    parts = [f"## {question.title}", question.text]
    if question.key == "mechanisms":
        parts += [_chosen(summary)]
        parts += [f"![{name}]({PICTURES}/{name})" for name in charts(summary)]
    if comparable(question, lambda run, each: summary.figures(run, each) is not None):
        parts += [table_of(summary, question), f"![some of the pictures]({PICTURES}/{question.key}.png)"]
    else:
        parts += ["No run of this part is there yet."]
    parts.append("\n".join(f"- {_sentence(each)}" for each in own))
    return parts


def _chosen(summary: Summary) -> str:
    return (
        "Where the paper speaks of a trade-off, each mechanism is taken at one value of its control: the one "
        f"that keeps most of the identity on the first {summary.size.development} cases while it costs at "
        f"most {share(PROMPT_LOSS)} of the prompt against the base model there. The figures at it are of the "
        "other cases. One that costs more at every value is taken where it costs least, and is behind one "
        "that does not if these cases show that it costs more of the prompt."
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
    return (
        f"{source}{claim.says} {measure.title.capitalize()}: {labels[0]} {first}, {labels[1]} {second}; "
        f"difference {_difference(finding)}, at {seeds} seed{'s' if seeds > 1 else ''} ({each_seed})"
        f"{f' ({tests})' if tests else ''}. *{finding.verdict.capitalize()}*; the smallest that could be "
        f"shown is {_smallest(finding)}."
    )


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
                groups.setdefault((run.title, told(run, each)), []).append(found)
    for words in dict.fromkeys(words_of(each) for _, drawings in question.asked for each in drawings):
        for name, label in (("base", "base model, no subject"), ("truth", "true drawings")):
            found = summary.references.get(" ".join(words), {}).get(name)
            if found:
                groups[label, " and ".join(words)] = [found]
    names = [n for n in COLUMNS if any(MEASURES[n].read(f) is not None for g in groups.values() for f in g)]
    rows = [[*what, str(len(each)), *(_cell(name, each) for name in names)] for what, each in groups.items()]
    return table(["", "drawn", "seeds", *(MEASURES[name].title for name in names)], rows)


def told(run: Run, drawing: Drawing) -> str:
    """What was drawn, in words."""
    control = mechanism(run.mechanism).control
    if drawing.kind == "references":
        return f"{drawing.value:g} pictures"
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
    measure, whole = MEASURES[name], np.concatenate(values)
    if measure.hits and len(values) == 1:
        return percent(wilson(int(whole.sum()), len(whole)))
    mean = _mean(values)
    low, high = _or(mean["low"], mean), _or(mean["high"], mean)
    if measure.share:
        return f"{share(mean['mean'])} ({share(low)}–{share(high)})"
    return f"{mean['mean']:.3g} ({low:.3g}–{high:.3g})"


def _mean(values: Sequence[np.ndarray]) -> Mean:
    """Over cases and seeds, with an interval over cases."""
    cases = [str(i) for each in values for i in range(len(each))]
    return clustered_mean(np.concatenate(values).tolist(), cases)


def charts(summary: Summary) -> dict[str, str]:
    """File name → SVG: identity over the controls, against what it costs."""
    runs = [run for run, _ in next(q for q in QUESTIONS if q.key == "mechanisms").asked]
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
            found[f"identity-{measure}.svg"] = drawing(
                f"Identity against {title.partition(',')[0]}",
                (title, "identity"),
                series,
                shares=(MEASURES[measure].share, True),
            )
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
    y = _mean([value for each in found if (value := MEASURES["identity"].read(each)) is not None])
    return Point(float(np.mean(x)), y["mean"], y["low"], y["high"], label)


def _trainings(summary: Summary) -> list[str]:
    rows = []
    for run in plan():
        done: dict[str, Any] = summary.runs.get(run.name, {}).get("training", {})
        if done:
            falling = still_falling(done["losses"])
            rows.append(
                [
                    run.name,
                    f"{done['steps']:,} × {done['batch']}",
                    f"{done['parameters']:,}",
                    f"{done['minutes']:.0f}",
                    done["precision"],
                    f"{np.mean(done['losses'][-5:]):.4f}",
                    "" if np.isnan(falling) else share(falling, 1),
                ]
            )
    header = ["run", "steps", "parameters trained", "minutes", "arithmetic", "loss at the end"]
    text = (
        "The last column is by how much the loss of the last fifth of a run is below that of the fifth "
        "before: how flat its curve has become, while the learning rate fell to zero."
    )
    return [text, table([*header, "still falling"], rows)] if rows else ["None is complete yet."]
